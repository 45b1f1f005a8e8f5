//! The op in plain loops.

use super::Node;
use crate::ops::{HostIo, HostOp};
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
}
