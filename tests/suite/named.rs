//! Operands by name.

use residuum::ops::Call;

use crate::harness::{Compare, Data, Judged};

impl<'a> Judged<'a> {
    /// Inputs and outputs by name, if all hold numbers.
    pub fn numbers<C: Call<(), ()>>(&self, form: C) -> C::Of<&'a [f64], &'a [f64]> {
        form.with(self.inputs.iter().map(Data::real), self.outputs.iter().map(Data::real))
    }
}

/// The inputs of `call`, in a case's order.
pub fn inputs(call: impl Call<Vec<f64>, ()>) -> Vec<Data> {
    call.into_lists().0.into_iter().map(Data::Real).collect()
}

/// The outputs of a call by name.
pub fn outputs<C: Call<(), ()>>(form: C, outputs: Vec<Data>) -> C::Of<(), Data> {
    let mut outputs = outputs.into_iter();
    form.map(|_, ()| (), |_, ()| outputs.next().expect("an output"))
}

/// The only tensor of a list.
pub fn only(tensors: Vec<Data>) -> Data {
    let [tensor] = <[Data; 1]>::try_from(tensors).expect("one tensor");
    tensor
}

/// The rules for the outputs of `call`, in a case's order.
pub fn rules(call: impl Call<(), Compare>) -> Vec<Compare> {
    call.into_lists().1
}
