//! Partial results of a reduction over rows become results, in an order that depends on the shape only.
//!
//! A kernel that reduces rows leaves f32 numbers `[bands][channels]` in scratch memory; [`moments`] and [`sums`] are
//! the launches that merge them: one where there are few bands, two where there are many.

mod launch;

pub(crate) use launch::KERNELS;
pub use launch::{moments, sums};

use crate::device::View;
use crate::{Error, Result};

/// Bands that one launch merges: 16 to a thread. Beyond, a first launch merges [`PART`] bands to a part.
const ONE_LAUNCH: usize = 512;
/// Bands of a part, at least: 8 to a thread.
const PART: usize = 256;
/// Bands that a block takes at a time.
const STEP: usize = 32;

/// How many partial results there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bands {
    /// For each channel.
    pub count: usize,
    /// Channels.
    pub channels: usize,
}

impl Bands {
    /// Bytes of one tensor of them.
    pub fn bytes(&self) -> usize {
        self.count * self.channels * size_of::<f32>()
    }

    /// The parts of the first of two launches and the bands of each, or nothing where one launch is enough.
    fn parts(&self) -> Option<(Self, usize)> {
        if self.count <= ONE_LAUNCH {
            return None;
        }
        let each = self.count.div_ceil(ONE_LAUNCH).max(PART).next_multiple_of(STEP);
        Some((Self { count: self.count.div_ceil(each), ..*self }, each))
    }

    /// Bytes of scratch memory that merging `tensors` tensors needs besides the bands, at an address that is a multiple
    /// of 4. [`moments`] merges two.
    pub fn merge_bytes(&self, tensors: usize) -> usize {
        self.parts().map_or(0, |(parts, _)| tensors * parts.bytes())
    }
}

/// The rows that the bands are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BandRows {
    /// All rows.
    pub rows: usize,
    /// Rows of every band but the last, which has at least one.
    pub each: usize,
}

/// `tensors` tensors of partial results in the scratch memory, and what is left of it for merging them.
pub(super) fn band_views(bands: Bands, tensors: usize, scratch: Option<&View>) -> Result<(Vec<View>, View)> {
    let Some(scratch) = scratch else { return Err(Error::invalid("norm", "no scratch memory")) };
    let views = (0..tensors).map(|i| scratch.part(i * bands.bytes(), bands.bytes())).collect::<Result<_>>()?;
    Ok((views, scratch.part(tensors * bands.bytes(), bands.merge_bytes(tensors))?))
}
