//! The op in plain loops.

use super::{Node, Pass};
use crate::ops::{HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        let whole_c = self.concat.whole()[3];
        for (i, (&c, at)) in self.concat.spec().channels.iter().zip(self.concat.offsets()).enumerate() {
            match self.pass {
                Pass::Fwd => {
                    let (part, whole) = (io.inputs[i].real(), io.outputs[0].real());
                    for (part, whole) in part.chunks_exact(c).zip(whole.chunks_exact_mut(whole_c)) {
                        whole[at..at + c].copy_from_slice(part);
                    }
                }
                Pass::Bwd => {
                    let (whole, part) = (io.inputs[0].real(), io.outputs[i].real());
                    for (part, whole) in part.chunks_exact_mut(c).zip(whole.chunks_exact(whole_c)) {
                        part.copy_from_slice(&whole[at..at + c]);
                    }
                }
            }
        }
    }
}
