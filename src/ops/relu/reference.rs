//! The op in plain loops.

use super::{Node, Pass};
use crate::ops::{parallel, HostIo, HostOp, Write};
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
                    dx[i] = passed((&dy[i], &y[i]));
                }
            }
        }
    }

    fn host(&self, io: &mut HostIo<'_, T>) {
        let accumulate = io.writes[0] == Write::Accumulate;
        let (a, b) = (io.inputs[0].real(), io.inputs.get(1).map(|b| b.real()).unwrap_or_default());
        let [out] = io.reals();
        parallel::elements(out, |first, out| {
            let (a, b) = (&a[first..], b.get(first..).unwrap_or_default());
            match (self.pass, accumulate) {
                (Pass::Fwd, _) => out.iter_mut().zip(a).for_each(|(y, &x)| *y = x.maximum(T::ZERO)),
                (Pass::Bwd, false) => out.iter_mut().zip(a.iter().zip(b)).for_each(|(dx, g)| *dx = passed(g)),
                (Pass::Bwd, true) => out.iter_mut().zip(a.iter().zip(b)).for_each(|(dx, g)| *dx += passed(g)),
            }
        });
    }
}

/// 0 where y is 0 or less, else dy.
fn passed<T: Real>((&dy, &y): (&T, &T)) -> T {
    if y <= T::ZERO {
        T::ZERO
    } else {
        dy
    }
}
