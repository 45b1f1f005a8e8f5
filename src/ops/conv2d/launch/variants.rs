//! The entries of `kernels/conv2d/`, from the table of kernels.

use super::params::{BiasParams, GatherParams, ReduceParams, WeightParams};
use crate::device::table::{count, entry, kernels, rows, Row};
use crate::device::{Kernel, Target};
use crate::tensor::DType;
use crate::Result;

/// The part of the result that a block computes, see `tile.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Rows: output pixels, or output channels in bwd_w.
    pub m: usize,
    /// Columns.
    pub n: usize,
}

/// Bytes of an operand's row in a stage.
pub const STAGE_ROW_BYTES: usize = 64;
const STAGES: usize = 4;

impl Tile {
    /// The larger of the stages (one fewer if operand A has two tensors) and the finished tile (floats, rows padded by
    /// 8); plus the table of rows.
    pub const fn shared_bytes(self, stages: Stages) -> u32 {
        let (count, a) = if stages.paired { (STAGES - 1, 2 * self.m) } else { (STAGES, self.m) };
        let (pipeline, staged) = (count * (a + self.n) * STAGE_ROW_BYTES, self.m * (self.n + 8) * 4);
        let most = if pipeline > staged { pipeline } else { staged };
        (most + if stages.table { 16 * self.m } else { 0 }) as u32
    }
}

/// The accesses of a kernel to its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// 16 bytes: addresses, pixel strides and the channels of a group are multiples of it.
    Vector,
    /// 16 bytes, to the pixels of several narrow groups that are computed as one.
    Packed,
    /// Pixels of an x of one group with at most [`STEM_C`] channels and a pixel stride of [`STEM_C`].
    Stem,
    /// Element by element, for any operands.
    Scalar,
}

/// The pixel stride of x in the stem.
pub const STEM_C: usize = 4;

/// A kernel of fwd, bwd_x or bwd_w.
#[derive(Clone, Copy, Debug)]
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

impl AsRef<Kernel> for Variant {
    fn as_ref(&self) -> &Kernel {
        &self.kernel
    }
}

/// The layout of a block's shared memory, besides the finished tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stages {
    /// True if operand A has two tensors (`Tile::Paired`).
    pub paired: bool,
    /// True if there are 16 bytes for each row of the tile.
    pub table: bool,
}

impl Variant {
    /// The entry of `row`, with its `i`-th tile.
    pub(in crate::ops) const fn new<P: bytemuck::Pod>(row: &Row, params: &str, i: usize, shared_bytes: u32) -> Self {
        let kernel = Kernel::of::<P>(row, params, shared_bytes);
        Self { kernel, dtype: row.dtype, tile: tile(row, i), access: access(row) }
    }
}

/// The `i`-th tile of `row`.
pub(in crate::ops) const fn tile(row: &Row, i: usize) -> Tile {
    let [m, n, row_bytes, stages] = row.tiles[i];
    assert!(row_bytes == STAGE_ROW_BYTES && stages == STAGES, "as `shared_bytes` and `choose` assume");
    Tile { m, n }
}

const fn access(row: &Row) -> Access {
    match row.access.as_bytes() {
        b"vector" => Access::Vector,
        b"packed" => Access::Packed,
        b"stem" => Access::Stem,
        b"scalar" => Access::Scalar,
        _ => panic!("the name of a product says how it reads"),
    }
}

/// The entries of `kind`, which take a `P`.
pub const fn variants<P: bytemuck::Pod, const N: usize>(kind: &str, params: &str, stages: Stages) -> [Variant; N] {
    let rows = rows::<N>(kind);
    let mut variants = [Variant::new::<P>(rows[0], params, 0, tile(rows[0], 0).shared_bytes(stages)); N];
    let mut i = 1;
    while i < N {
        variants[i] = Variant::new::<P>(rows[i], params, 0, tile(rows[i], 0).shared_bytes(stages));
        i += 1;
    }
    variants
}

/// Declares the entries of a kind of products: `FWD: GatherParams = "conv2d_fwd_*", STAGES;`.
macro_rules! products {
    ($($(#[$doc:meta])* $name:ident: $params:ident = $kind:literal, $stages:expr;)+) => {
        $($(#[$doc])* pub static $name: [Variant; count($kind)] =
            variants::<$params, _>($kind, stringify!($params), $stages);)+
    };
}
pub(in crate::ops) use products;

products! {
    FWD: GatherParams = "conv2d_fwd_*", Stages { paired: false, table: true };
    BWD_X: GatherParams = "conv2d_bwd_x_*", Stages { paired: false, table: true };
    BWD_W: WeightParams = "conv2d_bwd_w_*", Stages { paired: false, table: false };
}

/// Results per block of the sum over splits, one per thread.
pub const REDUCE_THREADS: usize = 256;
/// Channels per block of the bias gradient.
pub const BIAS_COLS: usize = 32;

kernels! {
    REDUCE: ReduceParams = "conv2d_reduce_*", 0;
    BWD_BIAS: BiasParams = "conv2d_bwd_bias_*", 1024;
}

/// The sum over splits into `target.dtype`.
pub fn reduce(target: Target) -> Result<&'static Kernel> {
    entry(target, &REDUCE)
}

/// The column sums of dy in `target.dtype`.
pub fn bwd_bias(target: Target) -> Result<&'static Kernel> {
    entry(target, &BWD_BIAS)
}

/// The entries of the products.
pub fn all() -> impl Iterator<Item = &'static Kernel> {
    FWD.iter().chain(&BWD_X).chain(&BWD_W).map(|variant| &variant.kernel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Arch;

    #[test]
    fn no_entry_asks_for_too_much_memory() {
        let most = |kernel: &Kernel| kernel.family.unwrap_or(Arch::Sm80).shared_limit();
        assert!(all().all(|kernel| kernel.shared_bytes <= most(kernel)));
    }
}
