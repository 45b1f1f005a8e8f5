//! The op in plain loops, and on all cores.

use super::{Bwd, Fwd, Node, Pass};
use crate::ops::{parallel, HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        match self.pass {
            Pass::Fwd => {
                let Fwd { x, mut y } = io.bind(Fwd::default());
                y.real().iter_mut().zip(x.real()).for_each(|(y, &x)| *y = x.maximum(T::ZERO));
            }
            Pass::Bwd => {
                let Bwd { dy, y, mut dx } = io.bind(Bwd::default());
                dx.real().iter_mut().zip(dy.real().iter().zip(y.real())).for_each(|(dx, g)| *dx = passed(g));
            }
        }
    }

    fn host(&self, io: &mut HostIo<'_, T>) {
        match self.pass {
            Pass::Fwd => {
                let Fwd { x, mut y } = io.bind(Fwd::default());
                let x = x.real();
                parallel::elements(y.real(), |first, y| {
                    y.iter_mut().zip(&x[first..]).for_each(|(y, &x)| *y = x.maximum(T::ZERO));
                });
            }
            Pass::Bwd => {
                let Bwd { dy, y, mut dx } = io.bind(Bwd::default());
                let (dy, y, adds) = (dy.real(), y.real(), dx.adds());
                parallel::elements(dx.real(), |first, dx| {
                    let gradients = dx.iter_mut().zip(dy[first..].iter().zip(&y[first..]));
                    if adds {
                        gradients.for_each(|(dx, g)| *dx += passed(g));
                    } else {
                        gradients.for_each(|(dx, g)| *dx = passed(g));
                    }
                });
            }
        }
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
