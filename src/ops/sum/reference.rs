//! The op in plain loops, and on all cores.

use super::{Fwd, Kind, Node};
use crate::ops::load::rectified;
use crate::ops::store::write_signs;
use crate::ops::{parallel, HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        let (c, share) = (self.channels(), T::from_f64(self.share));
        let Fwd { a, b, gate, mut y, signs } = io.bind(self.form);
        let closed = gate.is_some_and(|gate| gate.real()[0] == T::ZERO);
        let (a, b, y) = (a.loaded(c), b.loaded(c), y.real());
        for (i, y) in y.iter_mut().enumerate() {
            *y = rectified(self.relu, if closed { a[i] } else { a[i] + share * b[i] });
        }
        if let Some(mut signs) = signs {
            write_signs(y, c, signs.byte());
        }
    }

    fn host(&self, io: &mut HostIo<'_, T>) {
        if matches!(self.kind(), Kind::End) {
            return self.reference(io);
        }
        let share = T::from_f64(self.share);
        let Fwd { a, b, gate, mut y, .. } = io.bind(self.form);
        let (a, b) = (a.value.real(), b.value.real());
        let closed = gate.is_some_and(|gate| gate.real()[0] == T::ZERO);
        let then = |sum: T| rectified(self.relu, sum);
        parallel::elements(y.real(), |first, y| {
            let a = &a[first..];
            if closed {
                y.iter_mut().zip(a).for_each(|(y, &a)| *y = then(a));
            } else {
                y.iter_mut().zip(a).zip(&b[first..]).for_each(|((y, &a), &b)| *y = then(a + share * b));
            }
        });
    }
}
