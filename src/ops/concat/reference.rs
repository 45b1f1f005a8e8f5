//! The op in plain loops, and the same on all cores.

use super::{Node, Pass};
use crate::ops::parallel::{in_lanes, split};
use crate::ops::{HostIo, HostOp};
use crate::tensor::Real;

/// The least elements of the whole that a lane copies.
const RUN: usize = 1 << 14;

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

    fn host(&self, io: &mut HostIo<'_, T>) {
        let (channels, whole_c) = (&self.concat.spec().channels, self.concat.whole()[3]);
        let run = RUN.div_ceil(whole_c);
        let from = |lane: usize| lane * run..;
        match self.pass {
            Pass::Fwd => {
                let parts: Vec<&[T]> = io.inputs.iter().map(|part| part.real()).collect();
                in_lanes(split(io.outputs[0].real(), run * whole_c), |lane, whole| {
                    for (pixel, mut whole) in from(lane).zip(whole.chunks_exact_mut(whole_c)) {
                        for (part, &c) in parts.iter().zip(channels) {
                            let place = whole.split_off_mut(..c).unwrap_or_default();
                            place.copy_from_slice(&part[pixel * c..][..c]);
                        }
                    }
                });
            }
            Pass::Bwd => {
                let whole = io.inputs[0].real();
                for ((part, &c), at) in io.outputs.iter_mut().zip(channels).zip(self.concat.offsets()) {
                    in_lanes(split(part.real(), run * c), |lane, part| {
                        for (pixel, part) in from(lane).zip(part.chunks_exact_mut(c)) {
                            part.copy_from_slice(&whole[pixel * whole_c + at..][..c]);
                        }
                    });
                }
            }
        }
    }
}
