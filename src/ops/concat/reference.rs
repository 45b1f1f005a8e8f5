//! The op in plain loops, and on all cores.

use super::{Bwd, Fwd, Node, Pass};
use crate::ops::parallel::{in_lanes, split};
use crate::ops::{HostIo, HostOp};
use crate::tensor::Real;

/// The fewest elements of the whole that a lane copies.
const RUN: usize = 1 << 14;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        let whole_c = self.concat.whole()[3];
        let places = self.concat.spec().channels.iter().zip(self.concat.offsets());
        match self.pass {
            Pass::Fwd => {
                let Fwd { x, mut y } = io.bind(self.concat.joins());
                for (part, (&c, at)) in x.iter().zip(places) {
                    for (part, whole) in part.real().chunks_exact(c).zip(y.real().chunks_exact_mut(whole_c)) {
                        whole[at..at + c].copy_from_slice(part);
                    }
                }
            }
            Pass::Bwd => {
                let Bwd { dy, mut dx } = io.bind(self.concat.splits());
                for (part, (&c, at)) in dx.iter_mut().zip(places) {
                    for (part, whole) in part.real().chunks_exact_mut(c).zip(dy.real().chunks_exact(whole_c)) {
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
                let Fwd { x, mut y } = io.bind(self.concat.joins());
                let parts: Vec<&[T]> = x.iter().map(|part| part.real()).collect();
                in_lanes(split(y.real(), run * whole_c), |lane, whole| {
                    for (pixel, mut whole) in from(lane).zip(whole.chunks_exact_mut(whole_c)) {
                        for (part, &c) in parts.iter().zip(channels) {
                            let place = whole.split_off_mut(..c).unwrap_or_default();
                            place.copy_from_slice(&part[pixel * c..][..c]);
                        }
                    }
                });
            }
            Pass::Bwd => {
                let Bwd { dy, mut dx } = io.bind(self.concat.splits());
                let whole = dy.real();
                for ((part, &c), at) in dx.iter_mut().zip(channels).zip(self.concat.offsets()) {
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
