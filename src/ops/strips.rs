//! The launch geometry of the memory-bound kernels, shared with kernels/common/strips.cuh.

use super::params::narrow;
use super::Arg;
use crate::tensor::{DType, Shape};
use crate::Result;

/// Threads per block.
pub(crate) const THREADS: u32 = 256;
/// Elements of a row of a tensor without pixels: 8 strips of a 16-bit type for each of 32 lanes.
const FLAT_ROW: usize = 2048;
/// Blocks that fill a large GPU several times over; more gain nothing.
const MANY_BLOCKS: usize = 1024;
/// The most threads of a block along the channels: a warp.
const MOST_LANES: usize = 32;

/// The division of a tensor among blocks: `Strips` of kernels/common/strips.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Strips {
    rows: i64,
    channels: u32,
    last_channels: u32,
    blocks_per_row: u32,
    lanes_log2: u32,
    rows_per_block: u32,
    wide: u32,
}

/// A tensor as rows of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    rows: usize,
    channels: usize,
    last_channels: usize,
    /// True if the rows are pixels, at each tensor's own stride; false if they are runs of a dense tensor.
    pixels: bool,
}

impl Rows {
    /// The pixels of images `[N,H,W,C]`.
    pub fn pixels([n, h, w, c]: [usize; 4]) -> Self {
        Self { rows: n * h * w, channels: c, last_channels: c, pixels: true }
    }

    /// The pixels of `shape` if one of `args` is a slice of channels, else runs of [`FLAT_ROW`] elements.
    pub fn of(shape: &Shape, args: &[&Arg]) -> Self {
        match *shape.dims() {
            [n, h, w, c] if args.iter().any(|a| a.pixel_stride != c) => Self::pixels([n, h, w, c]),
            _ => {
                let rows = shape.len().div_ceil(FLAT_ROW).max(1);
                let last_channels = shape.len() - (rows - 1) * FLAT_ROW;
                Self { rows, channels: FLAT_ROW, last_channels, pixels: false }
            }
        }
    }

    /// Elements from one row of `arg` to the next.
    pub fn stride(&self, arg: &Arg) -> i64 {
        (if self.pixels { arg.pixel_stride } else { self.channels }) as i64
    }

    /// True if every strip is aligned to its size: 16 bytes of `numbers`, or the bytes of as many `positions`.
    pub fn wide(&self, dtype: DType, numbers: &[&Arg], positions: &[&Arg]) -> bool {
        let width = Strips::width(dtype);
        let aligned =
            |arg: &Arg, to: usize| arg.view.address().is_multiple_of(to as u64) && self.stride(arg) % width as i64 == 0;
        numbers.iter().all(|a| aligned(a, 16)) && positions.iter().all(|a| aligned(a, width))
    }
}

/// The most rows per thread of an elementwise launch.
pub(super) const WALK: usize = 4;

/// The strips of an elementwise launch on `args`, tensors of `shape`, and the stride of each.
pub(super) fn elementwise<const N: usize>(shape: &Shape, dtype: DType, args: [&Arg; N]) -> Result<(Strips, [i64; N])> {
    let rows = Rows::of(shape, &args);
    Ok((Strips::new(rows, dtype, WALK, rows.wide(dtype, &args, &[]))?, args.map(|arg| rows.stride(arg))))
}

impl Strips {
    /// Elements of a strip: 16 bytes of `dtype`.
    pub fn width(dtype: DType) -> usize {
        16 / dtype.bytes()
    }

    /// Divides `rows` so that each thread walks `walk` rows, or fewer if too few blocks would remain to fill the GPU.
    pub fn new(rows: Rows, dtype: DType, walk: usize, wide: bool) -> Result<Self> {
        let mut strips = Self::blocks(rows, dtype, wide)?;
        let blocks = |walk: usize| rows.rows.div_ceil(strips.walkers() * walk) * strips.blocks_per_row as usize;
        let walk = (1..=walk).rev().find(|&w| blocks(w) >= MANY_BLOCKS).unwrap_or(1);
        strips.rows_per_block = (strips.walkers() * walk) as u32;
        Ok(strips)
    }

    /// As [`new`](Self::new), with 8 channels per thread for every dtype.
    pub fn eights(rows: Rows, walk: usize, wide: bool) -> Result<Self> {
        Self::new(rows, DType::F16, walk, wide)
    }

    /// Divides `rows` into bands for a reduction over rows of `numbers` and of window `positions`. The bands depend
    /// only on shape and dtype.
    pub fn bands(rows: Rows, dtype: DType, numbers: &[&Arg], positions: &[&Arg]) -> Result<Self> {
        /// The fewest rows per thread: with fewer, merging would cost more than adding.
        const LEAST_WALK: usize = 8;
        let mut strips = Self::blocks(rows, dtype, rows.wide(dtype, numbers, positions))?;
        let most = (MANY_BLOCKS / strips.blocks_per_row as usize).max(1);
        let bands = rows.rows.div_ceil(strips.walkers() * LEAST_WALK).clamp(1, most);
        let per_walker = rows.rows.div_ceil(bands * strips.walkers());
        [strips.rows_per_block] = narrow("launch", [per_walker * strips.walkers()])?;
        Ok(strips)
    }

    /// Divides `rows` so that each block takes one.
    pub fn blocks(rows: Rows, dtype: DType, wide: bool) -> Result<Self> {
        let across = rows.channels.div_ceil(Self::width(dtype));
        let lanes = across.next_power_of_two().min(MOST_LANES);
        let [channels, last_channels, blocks_per_row] =
            narrow("launch", [rows.channels, rows.last_channels, across.div_ceil(lanes)])?;
        let (rows, lanes_log2, wide) = (rows.rows as i64, lanes.ilog2(), wide.into());
        Ok(Self { rows, channels, last_channels, blocks_per_row, lanes_log2, rows_per_block: 1, wide })
    }

    /// Walkers of a block: threads at different rows.
    fn walkers(&self) -> usize {
        (THREADS >> self.lanes_log2) as usize
    }

    /// The number of bands: blocks along the rows.
    pub fn band_count(&self) -> usize {
        (self.rows as usize).div_ceil(self.rows_per_block as usize)
    }

    /// Rows per band; the last may have fewer.
    pub fn rows_per_band(&self) -> u32 {
        self.rows_per_block
    }

    /// The grid. Fails beyond 2^31 - 1 blocks.
    pub fn grid(&self) -> Result<[u32; 3]> {
        let [blocks] = narrow("launch", [self.band_count() * self.blocks_per_row as usize])?;
        Ok([blocks, 1, 1])
    }
}
