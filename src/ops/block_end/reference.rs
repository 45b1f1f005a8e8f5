//! The op in plain loops.

use super::Node;
use crate::ops::norm::sign_bytes;
use crate::ops::{HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        let c = self.shape[3];
        let (a, b) = (io.inputs[0].real(), io.inputs[1].real());
        let mut numbers = io.inputs[2..].chunks_exact(2).map(|pair| (pair[0].real(), pair[1].real()));
        let [of_a, of_b] = self.affine.map(|on| if on { numbers.next() } else { None });
        let closed = self.gated && io.inputs[io.inputs.len() - 1].real()[0] == T::ZERO;
        let term = |x: T, k: usize, of: Option<(&[T], &[T])>, activated: bool| {
            let z = of.map_or(x, |(scale, shift)| x * scale[k] + shift[k]);
            if activated {
                z.maximum(T::ZERO)
            } else {
                z
            }
        };
        let (y, signs) = io.outputs.split_at_mut(1);
        let y = y[0].real();
        for (i, y) in y.iter_mut().enumerate() {
            let first = term(a[i], i % c, of_a, self.activated[0]);
            let sum = if closed { first } else { first + term(b[i], i % c, of_b, self.activated[1]) };
            *y = if self.relu { sum.maximum(T::ZERO) } else { sum };
        }
        for bytes in signs {
            let pixels = bytes.byte().chunks_exact_mut(sign_bytes(c)).zip(y.chunks_exact(c));
            for (byte, values) in pixels.flat_map(|(bytes, y)| bytes.iter_mut().zip(y.chunks(8))) {
                *byte = values.iter().enumerate().map(|(j, &v)| u8::from(v.is_open()) << j).sum();
            }
        }
    }
}
