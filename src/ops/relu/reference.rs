//! The op in plain loops.

use super::{Node, Pass};
use crate::ops::{HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        match self.pass {
            Pass::Fwd => {
                let x = io.inputs[0].real();
                let [y] = io.reals();
                for i in 0..y.len() {
                    y[i] = x[i].maximum(T::ZERO);
                }
            }
            Pass::Bwd => {
                let (dy, y) = (io.inputs[0].real(), io.inputs[1].real());
                let [dx] = io.reals();
                for i in 0..dx.len() {
                    dx[i] = if y[i] > T::ZERO { dy[i] } else { T::ZERO };
                }
            }
        }
    }
}
