//! Merges the partial results of a reduction over rows, in an order that depends only on the shape.
//!
//! A kernel that reduces rows leaves f32 tensors `[bands][channels]` in scratch memory. [`moments`] and [`sums`] merge
//! them in one launch if there are few bands, else in two.

mod launch;

pub(crate) use launch::KERNELS;
pub use launch::{moments, sums};

use crate::device::View;
use crate::ops::strips::{Rows, Strips};
use crate::tensor::DType;
use crate::{Error, Result};

/// The most bands of one launch: 16 per thread. With more, a first launch merges at least [`PART`] bands to a part.
const ONE_LAUNCH: usize = 512;
/// The fewest bands of a part: 8 per thread.
const PART: usize = 256;
/// Bands that a block reads at a time.
const STEP: usize = 32;

/// The number of partial results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bands {
    /// Bands per channel.
    pub count: usize,
    /// Channels.
    pub channels: usize,
}

impl Bands {
    /// The bands of a reduction over the pixels of images `[N,H,W,C]`; none if no launch can do it.
    pub(in crate::ops) fn of(shape: [usize; 4], dtype: DType) -> Self {
        let strips = Strips::bands(Rows::pixels(shape), dtype, &[], &[]);
        Self { count: strips.map_or(0, |strips| strips.band_count()), channels: shape[3] }
    }

    /// Bytes of one tensor.
    pub fn bytes(&self) -> usize {
        self.count * self.channels * size_of::<f32>()
    }

    /// The parts that the first of two launches leaves, and the bands per part; `None` if one launch is enough.
    fn parts(&self) -> Option<(Self, usize)> {
        if self.count <= ONE_LAUNCH {
            return None;
        }
        let each = self.count.div_ceil(ONE_LAUNCH).max(PART).next_multiple_of(STEP);
        Some((Self { count: self.count.div_ceil(each), ..*self }, each))
    }

    /// Bytes of scratch memory, aligned to 4, for merging `tensors` tensors, without the bands. [`moments`] merges two.
    pub fn merge_bytes(&self, tensors: usize) -> usize {
        self.parts().map_or(0, |(parts, _)| tensors * parts.bytes())
    }

    /// Bytes of scratch memory for the bands of `tensors` tensors and for merging them.
    pub(in crate::ops) fn scratch_bytes(&self, tensors: usize) -> usize {
        tensors * self.bytes() + self.merge_bytes(tensors)
    }

    /// The places of `tensors` tensors at the start of the scratch memory.
    pub(in crate::ops) fn views(&self, tensors: usize, scratch: Option<&View>) -> Result<Vec<View>> {
        let absent = || Error::invalid("norm", "no scratch memory");
        (0..tensors).map(|i| scratch.ok_or_else(absent)?.part(i * self.bytes(), self.bytes())).collect()
    }

    /// The scratch memory after `tensors` tensors.
    pub(in crate::ops) fn after(&self, tensors: usize, scratch: Option<&View>) -> Result<Option<View>> {
        let used = tensors * self.bytes();
        scratch.map(|view| view.part(used, view.bytes() - used)).transpose()
    }
}

/// The rows of the bands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BandRows {
    /// All rows.
    pub rows: usize,
    /// Rows per band; the last may have fewer, but at least one.
    pub each: usize,
}
