//! Merges the partial results of a reduction over rows, in an order that depends only on the shape.
//!
//! A kernel that reduces rows leaves f32 tensors `[bands][channels]` in scratch memory. [`moments`] and [`sums`] merge
//! them in one launch if there are few bands, else in two.

mod launch;

pub(crate) use launch::KERNELS;
pub use launch::{moments, sums};

use crate::device::View;
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
}

/// The rows of the bands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BandRows {
    /// All rows.
    pub rows: usize,
    /// Rows per band; the last may have fewer, but at least one.
    pub each: usize,
}

/// The places of `tensors` tensors of partial results in the scratch memory, and the scratch memory for merging them.
pub(super) fn band_views(bands: Bands, tensors: usize, scratch: Option<&View>) -> Result<(Vec<View>, View)> {
    let Some(scratch) = scratch else { return Err(Error::invalid("norm", "no scratch memory")) };
    let views = (0..tensors).map(|i| scratch.part(i * bands.bytes(), bands.bytes())).collect::<Result<_>>()?;
    Ok((views, scratch.part(tensors * bands.bytes(), bands.merge_bytes(tensors))?))
}
