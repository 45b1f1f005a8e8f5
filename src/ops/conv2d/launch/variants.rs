//! The entry points of `kernels/conv2d/`: one row each.

use self::Access::{Packed, Scalar, Stem, Vector};
use super::params::{BiasParams, GatherParams, ReduceParams, WeightParams};
use crate::device::Kernel;
use crate::tensor::DType::{self, BF16, F16, F32};

/// The part of the result that a block computes, as in `tile.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Rows: output pixels, or output channels in bwd_w.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// Threads of a block.
    pub threads: usize,
}

/// Bytes of one row of an operand in a stage.
pub const STAGE_ROW_BYTES: usize = 64;
const STAGES: usize = 4;

impl Tile {
    /// Four warps, or eight for 128x128 results whose sums do not fit four.
    pub const fn new(m: usize, n: usize, eight_warps: bool) -> Self {
        Self { m, n, threads: if eight_warps && m * n > 128 * 64 { 256 } else { 128 } }
    }

    /// The stages, or the finished tile in floats with eight more a row; then 16 bytes a row for the table of rows.
    pub const fn shared_bytes(self, table: bool) -> u32 {
        self.bytes(STAGES * (self.m + self.n) * STAGE_ROW_BYTES, table)
    }

    /// The same for stages with a second operand A, one fewer: `Tile::Paired`.
    pub const fn paired_bytes(self, table: bool) -> u32 {
        self.bytes((STAGES - 1) * (2 * self.m + self.n) * STAGE_ROW_BYTES, table)
    }

    const fn bytes(self, pipeline: usize, table: bool) -> u32 {
        let staged = self.m * (self.n + 8) * 4;
        let most = if pipeline > staged { pipeline } else { staged };
        (most + if table { 16 * self.m } else { 0 }) as u32
    }
}

/// How a kernel reads its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// 16 bytes at once: channels of a group, pixel strides and addresses are multiples of it.
    Vector,
    /// Several narrow groups as one, to whose pixels 16-byte accesses fit.
    Packed,
    /// An x of one group of at most [`STEM_C`] channels whose pixels are so many elements apart.
    Stem,
    /// Element by element: anything.
    Scalar,
}

/// Elements from pixel to pixel in the stem.
pub const STEM_C: usize = 4;

/// A kernel of fwd, bwd_x or bwd_w.
#[derive(Debug)]
pub struct Variant {
    pub kernel: Kernel,
    pub dtype: DType,
    pub tile: Tile,
    pub access: Access,
}

impl PartialEq for Variant {
    fn eq(&self, other: &Self) -> bool {
        self.kernel.name == other.kernel.name
    }
}

const fn gather(name: &'static str, dtype: DType, m: usize, n: usize, access: Access) -> Variant {
    let tile = Tile::new(m, n, matches!(dtype, F32));
    let kernel = Kernel::new::<GatherParams>(name, tile.threads as u32, tile.shared_bytes(true));
    Variant { kernel, dtype, tile, access }
}

const fn weight(name: &'static str, dtype: DType, m: usize, n: usize, access: Access) -> Variant {
    let tile = Tile::new(m, n, true);
    let kernel = Kernel::new::<WeightParams>(name, tile.threads as u32, tile.shared_bytes(false));
    Variant { kernel, dtype, tile, access }
}

pub static FWD: [Variant; 33] = [
    gather("conv2d_fwd_f32_128x128", F32, 128, 128, Vector),
    gather("conv2d_fwd_f32_64x64", F32, 64, 64, Vector),
    gather("conv2d_fwd_f32_128x16", F32, 128, 16, Vector),
    gather("conv2d_fwd_f32_64x64_scalar", F32, 64, 64, Scalar),
    gather("conv2d_fwd_f32_128x16_scalar", F32, 128, 16, Scalar),
    gather("conv2d_fwd_f16_128x128", F16, 128, 128, Vector),
    gather("conv2d_fwd_f16_128x64", F16, 128, 64, Vector),
    gather("conv2d_fwd_f16_64x64", F16, 64, 64, Vector),
    gather("conv2d_fwd_f16_128x32", F16, 128, 32, Vector),
    gather("conv2d_fwd_f16_128x16", F16, 128, 16, Vector),
    gather("conv2d_fwd_f16_64x64_scalar", F16, 64, 64, Scalar),
    gather("conv2d_fwd_f16_128x16_scalar", F16, 128, 16, Scalar),
    gather("conv2d_fwd_bf16_128x128", BF16, 128, 128, Vector),
    gather("conv2d_fwd_bf16_128x64", BF16, 128, 64, Vector),
    gather("conv2d_fwd_bf16_64x64", BF16, 64, 64, Vector),
    gather("conv2d_fwd_bf16_128x32", BF16, 128, 32, Vector),
    gather("conv2d_fwd_bf16_128x16", BF16, 128, 16, Vector),
    gather("conv2d_fwd_bf16_64x64_scalar", BF16, 64, 64, Scalar),
    gather("conv2d_fwd_bf16_128x16_scalar", BF16, 128, 16, Scalar),
    gather("conv2d_fwd_f32_64x64_packed", F32, 64, 64, Packed),
    gather("conv2d_fwd_f32_128x16_packed", F32, 128, 16, Packed),
    gather("conv2d_fwd_f16_64x64_packed", F16, 64, 64, Packed),
    gather("conv2d_fwd_f16_128x32_packed", F16, 128, 32, Packed),
    gather("conv2d_fwd_f16_128x16_packed", F16, 128, 16, Packed),
    gather("conv2d_fwd_bf16_64x64_packed", BF16, 64, 64, Packed),
    gather("conv2d_fwd_bf16_128x32_packed", BF16, 128, 32, Packed),
    gather("conv2d_fwd_bf16_128x16_packed", BF16, 128, 16, Packed),
    gather("conv2d_fwd_f32_64x64_stem", F32, 64, 64, Stem),
    gather("conv2d_fwd_f32_128x16_stem", F32, 128, 16, Stem),
    gather("conv2d_fwd_f16_128x64_stem", F16, 128, 64, Stem),
    gather("conv2d_fwd_f16_128x16_stem", F16, 128, 16, Stem),
    gather("conv2d_fwd_bf16_128x64_stem", BF16, 128, 64, Stem),
    gather("conv2d_fwd_bf16_128x16_stem", BF16, 128, 16, Stem),
];

pub static BWD_X: [Variant; 27] = [
    gather("conv2d_bwd_x_f32_128x128", F32, 128, 128, Vector),
    gather("conv2d_bwd_x_f32_64x64", F32, 64, 64, Vector),
    gather("conv2d_bwd_x_f32_128x16", F32, 128, 16, Vector),
    gather("conv2d_bwd_x_f32_64x64_scalar", F32, 64, 64, Scalar),
    gather("conv2d_bwd_x_f32_128x16_scalar", F32, 128, 16, Scalar),
    gather("conv2d_bwd_x_f16_128x128", F16, 128, 128, Vector),
    gather("conv2d_bwd_x_f16_128x64", F16, 128, 64, Vector),
    gather("conv2d_bwd_x_f16_64x64", F16, 64, 64, Vector),
    gather("conv2d_bwd_x_f16_128x32", F16, 128, 32, Vector),
    gather("conv2d_bwd_x_f16_128x16", F16, 128, 16, Vector),
    gather("conv2d_bwd_x_f16_64x64_scalar", F16, 64, 64, Scalar),
    gather("conv2d_bwd_x_f16_128x16_scalar", F16, 128, 16, Scalar),
    gather("conv2d_bwd_x_bf16_128x128", BF16, 128, 128, Vector),
    gather("conv2d_bwd_x_bf16_128x64", BF16, 128, 64, Vector),
    gather("conv2d_bwd_x_bf16_64x64", BF16, 64, 64, Vector),
    gather("conv2d_bwd_x_bf16_128x32", BF16, 128, 32, Vector),
    gather("conv2d_bwd_x_bf16_128x16", BF16, 128, 16, Vector),
    gather("conv2d_bwd_x_bf16_64x64_scalar", BF16, 64, 64, Scalar),
    gather("conv2d_bwd_x_bf16_128x16_scalar", BF16, 128, 16, Scalar),
    gather("conv2d_bwd_x_f32_64x64_packed", F32, 64, 64, Packed),
    gather("conv2d_bwd_x_f32_128x16_packed", F32, 128, 16, Packed),
    gather("conv2d_bwd_x_f16_64x64_packed", F16, 64, 64, Packed),
    gather("conv2d_bwd_x_f16_128x32_packed", F16, 128, 32, Packed),
    gather("conv2d_bwd_x_f16_128x16_packed", F16, 128, 16, Packed),
    gather("conv2d_bwd_x_bf16_64x64_packed", BF16, 64, 64, Packed),
    gather("conv2d_bwd_x_bf16_128x32_packed", BF16, 128, 32, Packed),
    gather("conv2d_bwd_x_bf16_128x16_packed", BF16, 128, 16, Packed),
];

pub static BWD_W: [Variant; 39] = [
    weight("conv2d_bwd_w_f32_128x128", F32, 128, 128, Vector),
    weight("conv2d_bwd_w_f32_64x64", F32, 64, 64, Vector),
    weight("conv2d_bwd_w_f32_32x128", F32, 32, 128, Vector),
    weight("conv2d_bwd_w_f32_64x64_scalar", F32, 64, 64, Scalar),
    weight("conv2d_bwd_w_f32_32x128_scalar", F32, 32, 128, Scalar),
    weight("conv2d_bwd_w_f16_128x128", F16, 128, 128, Vector),
    weight("conv2d_bwd_w_f16_64x128", F16, 64, 128, Vector),
    weight("conv2d_bwd_w_f16_64x64", F16, 64, 64, Vector),
    weight("conv2d_bwd_w_f16_32x128", F16, 32, 128, Vector),
    weight("conv2d_bwd_w_f16_16x128", F16, 16, 128, Vector),
    weight("conv2d_bwd_w_f16_64x64_scalar", F16, 64, 64, Scalar),
    weight("conv2d_bwd_w_f16_16x128_scalar", F16, 16, 128, Scalar),
    weight("conv2d_bwd_w_bf16_128x128", BF16, 128, 128, Vector),
    weight("conv2d_bwd_w_bf16_64x128", BF16, 64, 128, Vector),
    weight("conv2d_bwd_w_bf16_64x64", BF16, 64, 64, Vector),
    weight("conv2d_bwd_w_bf16_32x128", BF16, 32, 128, Vector),
    weight("conv2d_bwd_w_bf16_16x128", BF16, 16, 128, Vector),
    weight("conv2d_bwd_w_bf16_64x64_scalar", BF16, 64, 64, Scalar),
    weight("conv2d_bwd_w_bf16_16x128_scalar", BF16, 16, 128, Scalar),
    weight("conv2d_bwd_w_f32_64x64_packed", F32, 64, 64, Packed),
    weight("conv2d_bwd_w_f32_32x128_packed", F32, 32, 128, Packed),
    weight("conv2d_bwd_w_f16_64x64_packed", F16, 64, 64, Packed),
    weight("conv2d_bwd_w_f16_32x128_packed", F16, 32, 128, Packed),
    weight("conv2d_bwd_w_f16_16x128_packed", F16, 16, 128, Packed),
    weight("conv2d_bwd_w_f16_16x64_packed", F16, 16, 64, Packed),
    weight("conv2d_bwd_w_bf16_64x64_packed", BF16, 64, 64, Packed),
    weight("conv2d_bwd_w_bf16_32x128_packed", BF16, 32, 128, Packed),
    weight("conv2d_bwd_w_bf16_16x128_packed", BF16, 16, 128, Packed),
    weight("conv2d_bwd_w_bf16_16x64_packed", BF16, 16, 64, Packed),
    weight("conv2d_bwd_w_f32_64x64_stem", F32, 64, 64, Stem),
    weight("conv2d_bwd_w_f32_32x128_stem", F32, 32, 128, Stem),
    weight("conv2d_bwd_w_f16_64x128_stem", F16, 64, 128, Stem),
    weight("conv2d_bwd_w_f16_64x64_stem", F16, 64, 64, Stem),
    weight("conv2d_bwd_w_f16_16x128_stem", F16, 16, 128, Stem),
    weight("conv2d_bwd_w_f16_16x64_stem", F16, 16, 64, Stem),
    weight("conv2d_bwd_w_bf16_64x128_stem", BF16, 64, 128, Stem),
    weight("conv2d_bwd_w_bf16_64x64_stem", BF16, 64, 64, Stem),
    weight("conv2d_bwd_w_bf16_16x128_stem", BF16, 16, 128, Stem),
    weight("conv2d_bwd_w_bf16_16x64_stem", BF16, 16, 64, Stem),
];

/// Results that a block of the sum over splits computes, one a thread.
pub const REDUCE_THREADS: usize = 256;
/// Channels that a block of the bias gradient sums.
pub const BIAS_COLS: usize = 32;

static REDUCE_F32: Kernel = Kernel::new::<ReduceParams>("conv2d_reduce_f32", REDUCE_THREADS as u32, 0);
static REDUCE_F16: Kernel = Kernel::new::<ReduceParams>("conv2d_reduce_f16", REDUCE_THREADS as u32, 0);
static REDUCE_BF16: Kernel = Kernel::new::<ReduceParams>("conv2d_reduce_bf16", REDUCE_THREADS as u32, 0);
static BWD_BIAS_F32: Kernel = Kernel::new::<BiasParams>("conv2d_bwd_bias_f32", 256, 1024);
static BWD_BIAS_F16: Kernel = Kernel::new::<BiasParams>("conv2d_bwd_bias_f16", 256, 1024);
static BWD_BIAS_BF16: Kernel = Kernel::new::<BiasParams>("conv2d_bwd_bias_bf16", 256, 1024);

/// The sum over splits into `dtype`; `None` for f64.
pub fn reduce(dtype: DType) -> Option<&'static Kernel> {
    match dtype {
        F32 => Some(&REDUCE_F32),
        F16 => Some(&REDUCE_F16),
        BF16 => Some(&REDUCE_BF16),
        DType::F64 => None,
    }
}

/// The column sums of dy in `dtype`; `None` for f64.
pub fn bwd_bias(dtype: DType) -> Option<&'static Kernel> {
    match dtype {
        F32 => Some(&BWD_BIAS_F32),
        F16 => Some(&BWD_BIAS_F16),
        BF16 => Some(&BWD_BIAS_BF16),
        DType::F64 => None,
    }
}

const COUNT: usize = FWD.len() + BWD_X.len() + BWD_W.len() + 6;

/// Every entry.
pub static ALL: [&Kernel; COUNT] = {
    let mut all: [&Kernel; COUNT] = [&REDUCE_F32; COUNT];
    let rest = [&REDUCE_F32, &REDUCE_F16, &REDUCE_BF16, &BWD_BIAS_F32, &BWD_BIAS_F16, &BWD_BIAS_BF16];
    let tables: [&[Variant]; 3] = [&FWD, &BWD_X, &BWD_W];
    let (mut at, mut t) = (0, 0);
    while t < tables.len() {
        let mut i = 0;
        while i < tables[t].len() {
            all[at] = &tables[t][i].kernel;
            i += 1;
            at += 1;
        }
        t += 1;
    }
    let mut i = 0;
    while i < rest.len() {
        all[at] = rest[i];
        i += 1;
        at += 1;
    }
    all
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_the_row_says() {
        for (pass, table) in [("fwd", &FWD[..]), ("bwd_x", &BWD_X[..]), ("bwd_w", &BWD_W[..])] {
            for v in table {
                let mut name = format!("conv2d_{pass}_{}_{}x{}", v.dtype, v.tile.m, v.tile.n);
                name += match v.access {
                    Vector => "",
                    Packed => "_packed",
                    Stem => "_stem",
                    Scalar => "_scalar",
                };
                assert_eq!(v.kernel.name, name);
            }
        }
    }

    #[test]
    fn no_entry_is_listed_twice_or_asks_for_too_much_memory() {
        let mut names: Vec<_> = ALL.iter().map(|k| k.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), COUNT);
        assert!(ALL.iter().all(|k| k.shared_bytes <= 163 * 1024), "sm_80 has 163 KiB a block");
    }
}
