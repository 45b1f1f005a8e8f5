//! The operands of a [`Case`](crate::harness::Case) by name.

use residuum::ops::Call;

use crate::harness::{Compare, Data, Judged};

impl<'a> Judged<'a> {
    /// Inputs and outputs by name, where all hold numbers.
    pub fn numbers<C: Call<(), ()>>(&self, form: C) -> C::Of<&'a [f64], &'a [f64]> {
        form.with(self.inputs.iter().map(Data::real), self.outputs.iter().map(Data::real))
    }
}

/// The inputs of `call`, numbers, as a case lists them.
pub fn inputs(call: impl Call<Vec<f64>, ()>) -> Vec<Data> {
    call.into_lists().0.into_iter().map(Data::Real).collect()
}

/// The rules for the outputs of `call`, as a case's judge lists them.
pub fn rules(call: impl Call<(), Compare>) -> Vec<Compare> {
    call.into_lists().1
}
