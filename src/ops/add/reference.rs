//! The op in plain loops.

use super::Node;
use crate::ops::{parallel, HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        let (a, b) = (io.inputs[0].real(), io.inputs[1].real());
        let [y] = io.reals();
        for i in 0..y.len() {
            let sum = a[i] + b[i];
            y[i] = if self.relu { sum.maximum(T::ZERO) } else { sum };
        }
    }

    fn host(&self, io: &mut HostIo<'_, T>) {
        let (a, b) = (io.inputs[0].real(), io.inputs[1].real());
        let [y] = io.reals();
        parallel::elements(y, |first, y| {
            let terms = a[first..].iter().zip(&b[first..]);
            if self.relu {
                y.iter_mut().zip(terms).for_each(|(y, (&a, &b))| *y = (a + b).maximum(T::ZERO));
            } else {
                y.iter_mut().zip(terms).for_each(|(y, (&a, &b))| *y = a + b);
            }
        });
    }
}
