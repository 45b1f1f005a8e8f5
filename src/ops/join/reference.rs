//! The op in plain loops.

use super::{Keep, Node};
use crate::ops::{parallel, HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        let (a, b) = (io.inputs[0].real(), io.inputs[1].real());
        let closed = self.keep == Keep::Gated && io.inputs[2].real()[0] == T::ZERO;
        let [y] = io.reals();
        for i in 0..y.len() {
            let sum = match self.keep {
                _ if closed => a[i],
                Keep::Gated => a[i] + b[i],
                Keep::Scaled(share) => a[i] + T::from_f64(share) * b[i],
            };
            y[i] = if self.relu { sum.maximum(T::ZERO) } else { sum };
        }
    }

    fn host(&self, io: &mut HostIo<'_, T>) {
        let (a, b) = (io.inputs[0].real(), io.inputs[1].real());
        let closed = self.keep == Keep::Gated && io.inputs[2].real()[0] == T::ZERO;
        let share = match self.keep {
            Keep::Gated => T::ONE,
            Keep::Scaled(share) => T::from_f64(share),
        };
        let [y] = io.reals();
        let then = |sum: T| if self.relu { sum.maximum(T::ZERO) } else { sum };
        parallel::elements(y, |first, y| {
            let a = &a[first..];
            if closed {
                y.iter_mut().zip(a).for_each(|(y, &a)| *y = then(a));
            } else {
                y.iter_mut().zip(a).zip(&b[first..]).for_each(|((y, &a), &b)| *y = then(a + share * b));
            }
        });
    }
}
