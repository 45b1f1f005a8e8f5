//! The op in plain loops.

use super::{Bwd, Fwd, Node, Pass, Spec};
use crate::ops::{parallel, HostIo, HostOp, HostOut, Write};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        let Spec { x: [n, h, w, c], k, stride, lead } = *self.shortcut.spec();
        let [_, p, q, _] = self.shortcut.y_shape();
        let (src, dst) = match self.pass {
            Pass::Fwd => {
                let Fwd { x, y } = io.numbers(Fwd::default());
                (x, y)
            }
            Pass::Bwd => {
                let Bwd { dy, dx } = io.numbers(Bwd::default());
                (dy, dx)
            }
        };
        dst.fill(T::ZERO);
        for n in 0..n {
            for i in 0..p {
                for j in 0..q {
                    let x = ((n * h + i * stride) * w + j * stride) * c;
                    let y = ((n * p + i) * q + j) * k + lead;
                    match self.pass {
                        Pass::Fwd => dst[y..y + c].copy_from_slice(&src[x..x + c]),
                        Pass::Bwd => dst[x..x + c].copy_from_slice(&src[y..y + c]),
                    }
                }
            }
        }
    }

    fn host(&self, io: &mut HostIo<'_, T>) {
        let Spec { x: [_, h, w, c], k, stride, lead } = *self.shortcut.spec();
        let [_, p, q, _] = self.shortcut.y_shape();
        let mut bwd = (self.pass == Pass::Bwd).then(|| io.bind(Bwd::default()));
        let Some(Bwd { dy, dx: HostOut { to: dx, write: Write::Accumulate } }) = &mut bwd else {
            return self.reference(io);
        };
        for (dx, dy) in dx.real().chunks_exact_mut(h * w * c).zip(dy.real().chunks_exact(p * q * k)) {
            for (pixel, dy) in dy.chunks_exact(k).enumerate() {
                let x = (pixel / q * w + pixel % q) * stride * c;
                parallel::add(&mut dx[x..x + c], &dy[lead..]);
            }
        }
    }
}
