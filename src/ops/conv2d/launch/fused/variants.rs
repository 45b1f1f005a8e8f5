//! The entry points of `kernels/conv2d/fused/`: one row each.

use super::params::{DataGradientParams, EndParams, ForwardParams, GradientsParams, WeightGradientParams};
use crate::device::Kernel;
use crate::ops::conv2d::launch::variants::Access::{self, Packed, Scalar, Stem, Vector};
use crate::ops::conv2d::launch::variants::{Tile, Variant};
use crate::tensor::DType::{self, BF16, F16, F32};

const fn forward(name: &'static str, dtype: DType, m: usize, n: usize, access: Access) -> Variant {
    let tile = Tile::new(m, n, matches!(dtype, F32));
    let kernel = Kernel::new::<ForwardParams>(name, tile.threads as u32, tile.shared_bytes(true));
    Variant { kernel, dtype, tile, access }
}

const fn end(name: &'static str, dtype: DType, m: usize, n: usize) -> Variant {
    let tile = Tile::new(m, n, matches!(dtype, F32));
    let kernel = Kernel::new::<EndParams>(name, tile.threads as u32, tile.paired_bytes(true));
    Variant { kernel, dtype, tile, access: Vector }
}

const fn data(name: &'static str, dtype: DType, m: usize, n: usize, access: Access) -> Variant {
    let tile = Tile::new(m, n, matches!(dtype, F32));
    let kernel = Kernel::new::<DataGradientParams>(name, tile.threads as u32, tile.paired_bytes(true));
    Variant { kernel, dtype, tile, access }
}

const fn weight(name: &'static str, dtype: DType, m: usize, n: usize, access: Access) -> Variant {
    let tile = Tile::new(m, n, true);
    let kernel = Kernel::new::<WeightGradientParams>(name, tile.threads as u32, tile.paired_bytes(false));
    Variant { kernel, dtype, tile, access }
}

/// An entry that computes both gradients: its tile of dx, then that of dw.
struct Pair {
    name: &'static str,
    dtype: DType,
    tiles: [(usize, usize); 2],
    access: Access,
}

const fn both(name: &'static str, dtype: DType, tiles: [(usize, usize); 2], access: Access) -> Pair {
    Pair { name, dtype, tiles, access }
}

impl Pair {
    const fn tile(&self, i: usize) -> Tile {
        Tile::new(self.tiles[i].0, self.tiles[i].1, matches!(self.dtype, F32))
    }

    /// The entry with tile `i`.
    const fn variant(&self, i: usize) -> Variant {
        let (x, w) = (self.tile(0).paired_bytes(true), self.tile(1).paired_bytes(false));
        let threads = self.tile(0).threads;
        assert!(threads == self.tile(1).threads, "one launch");
        let kernel = Kernel::new::<GradientsParams>(self.name, threads as u32, if x > w { x } else { w });
        Variant { kernel, dtype: self.dtype, tile: self.tile(i), access: self.access }
    }
}

const fn side(i: usize) -> [Variant; BOTH.len()] {
    let mut variants = [const { BOTH[0].variant(0) }; BOTH.len()];
    let mut at = 0;
    while at < BOTH.len() {
        variants[at] = BOTH[at].variant(i);
        at += 1;
    }
    variants
}

const BOTH: [Pair; 29] = [
    both("conv2d_fused_bwd_f32_128x128_128x128", F32, [(128, 128), (128, 128)], Vector),
    both("conv2d_fused_bwd_f32_64x64_64x64", F32, [(64, 64), (64, 64)], Vector),
    both("conv2d_fused_bwd_f32_64x64_32x128", F32, [(64, 64), (32, 128)], Vector),
    both("conv2d_fused_bwd_f32_128x16_32x128", F32, [(128, 16), (32, 128)], Vector),
    both("conv2d_fused_bwd_f32_64x64_64x64_scalar", F32, [(64, 64), (64, 64)], Scalar),
    both("conv2d_fused_bwd_f32_64x64_64x64_packed", F32, [(64, 64), (64, 64)], Packed),
    both("conv2d_fused_bwd_f32_128x16_32x128_packed", F32, [(128, 16), (32, 128)], Packed),
    both("conv2d_fused_bwd_f16_128x128_64x128", F16, [(128, 128), (64, 128)], Vector),
    both("conv2d_fused_bwd_f16_128x128_32x128", F16, [(128, 128), (32, 128)], Vector),
    both("conv2d_fused_bwd_f16_128x64_64x128", F16, [(128, 64), (64, 128)], Vector),
    both("conv2d_fused_bwd_f16_128x64_64x64", F16, [(128, 64), (64, 64)], Vector),
    both("conv2d_fused_bwd_f16_64x64_64x64", F16, [(64, 64), (64, 64)], Vector),
    both("conv2d_fused_bwd_f16_128x32_32x128", F16, [(128, 32), (32, 128)], Vector),
    both("conv2d_fused_bwd_f16_128x16_16x128", F16, [(128, 16), (16, 128)], Vector),
    both("conv2d_fused_bwd_f16_64x64_64x64_scalar", F16, [(64, 64), (64, 64)], Scalar),
    both("conv2d_fused_bwd_f16_64x64_64x64_packed", F16, [(64, 64), (64, 64)], Packed),
    both("conv2d_fused_bwd_f16_128x32_32x128_packed", F16, [(128, 32), (32, 128)], Packed),
    both("conv2d_fused_bwd_f16_128x16_16x64_packed", F16, [(128, 16), (16, 64)], Packed),
    both("conv2d_fused_bwd_bf16_128x128_64x128", BF16, [(128, 128), (64, 128)], Vector),
    both("conv2d_fused_bwd_bf16_128x128_32x128", BF16, [(128, 128), (32, 128)], Vector),
    both("conv2d_fused_bwd_bf16_128x64_64x128", BF16, [(128, 64), (64, 128)], Vector),
    both("conv2d_fused_bwd_bf16_128x64_64x64", BF16, [(128, 64), (64, 64)], Vector),
    both("conv2d_fused_bwd_bf16_64x64_64x64", BF16, [(64, 64), (64, 64)], Vector),
    both("conv2d_fused_bwd_bf16_128x32_32x128", BF16, [(128, 32), (32, 128)], Vector),
    both("conv2d_fused_bwd_bf16_128x16_16x128", BF16, [(128, 16), (16, 128)], Vector),
    both("conv2d_fused_bwd_bf16_64x64_64x64_scalar", BF16, [(64, 64), (64, 64)], Scalar),
    both("conv2d_fused_bwd_bf16_64x64_64x64_packed", BF16, [(64, 64), (64, 64)], Packed),
    both("conv2d_fused_bwd_bf16_128x32_32x128_packed", BF16, [(128, 32), (32, 128)], Packed),
    both("conv2d_fused_bwd_bf16_128x16_16x64_packed", BF16, [(128, 16), (16, 64)], Packed),
];

/// The entries for both gradients with the tile of dx, and in the same order with that of dw.
pub static BOTH_X: [Variant; BOTH.len()] = side(0);
pub static BOTH_W: [Variant; BOTH.len()] = side(1);

pub static FWD: [Variant; 33] = [
    forward("conv2d_fused_fwd_f32_128x128", F32, 128, 128, Vector),
    forward("conv2d_fused_fwd_f32_64x64", F32, 64, 64, Vector),
    forward("conv2d_fused_fwd_f32_128x16", F32, 128, 16, Vector),
    forward("conv2d_fused_fwd_f32_64x64_scalar", F32, 64, 64, Scalar),
    forward("conv2d_fused_fwd_f32_128x16_scalar", F32, 128, 16, Scalar),
    forward("conv2d_fused_fwd_f16_128x128", F16, 128, 128, Vector),
    forward("conv2d_fused_fwd_f16_128x64", F16, 128, 64, Vector),
    forward("conv2d_fused_fwd_f16_64x64", F16, 64, 64, Vector),
    forward("conv2d_fused_fwd_f16_128x32", F16, 128, 32, Vector),
    forward("conv2d_fused_fwd_f16_128x16", F16, 128, 16, Vector),
    forward("conv2d_fused_fwd_f16_64x64_scalar", F16, 64, 64, Scalar),
    forward("conv2d_fused_fwd_f16_128x16_scalar", F16, 128, 16, Scalar),
    forward("conv2d_fused_fwd_bf16_128x128", BF16, 128, 128, Vector),
    forward("conv2d_fused_fwd_bf16_128x64", BF16, 128, 64, Vector),
    forward("conv2d_fused_fwd_bf16_64x64", BF16, 64, 64, Vector),
    forward("conv2d_fused_fwd_bf16_128x32", BF16, 128, 32, Vector),
    forward("conv2d_fused_fwd_bf16_128x16", BF16, 128, 16, Vector),
    forward("conv2d_fused_fwd_bf16_64x64_scalar", BF16, 64, 64, Scalar),
    forward("conv2d_fused_fwd_bf16_128x16_scalar", BF16, 128, 16, Scalar),
    forward("conv2d_fused_fwd_f32_64x64_packed", F32, 64, 64, Packed),
    forward("conv2d_fused_fwd_f32_128x16_packed", F32, 128, 16, Packed),
    forward("conv2d_fused_fwd_f16_64x64_packed", F16, 64, 64, Packed),
    forward("conv2d_fused_fwd_f16_128x32_packed", F16, 128, 32, Packed),
    forward("conv2d_fused_fwd_f16_128x16_packed", F16, 128, 16, Packed),
    forward("conv2d_fused_fwd_bf16_64x64_packed", BF16, 64, 64, Packed),
    forward("conv2d_fused_fwd_bf16_128x32_packed", BF16, 128, 32, Packed),
    forward("conv2d_fused_fwd_bf16_128x16_packed", BF16, 128, 16, Packed),
    forward("conv2d_fused_fwd_f32_64x64_stem", F32, 64, 64, Stem),
    forward("conv2d_fused_fwd_f32_128x16_stem", F32, 128, 16, Stem),
    forward("conv2d_fused_fwd_f16_128x64_stem", F16, 128, 64, Stem),
    forward("conv2d_fused_fwd_f16_128x16_stem", F16, 128, 16, Stem),
    forward("conv2d_fused_fwd_bf16_128x64_stem", BF16, 128, 64, Stem),
    forward("conv2d_fused_fwd_bf16_128x16_stem", BF16, 128, 16, Stem),
];

/// The tiles of [`FWD`] in its order, so that the same shape takes the same tile: bits do not depend on where a block
/// ends.
pub static END: [Variant; 13] = [
    end("conv2d_fused_fwd_end_f32_128x128", F32, 128, 128),
    end("conv2d_fused_fwd_end_f32_64x64", F32, 64, 64),
    end("conv2d_fused_fwd_end_f32_128x16", F32, 128, 16),
    end("conv2d_fused_fwd_end_f16_128x128", F16, 128, 128),
    end("conv2d_fused_fwd_end_f16_128x64", F16, 128, 64),
    end("conv2d_fused_fwd_end_f16_64x64", F16, 64, 64),
    end("conv2d_fused_fwd_end_f16_128x32", F16, 128, 32),
    end("conv2d_fused_fwd_end_f16_128x16", F16, 128, 16),
    end("conv2d_fused_fwd_end_bf16_128x128", BF16, 128, 128),
    end("conv2d_fused_fwd_end_bf16_128x64", BF16, 128, 64),
    end("conv2d_fused_fwd_end_bf16_64x64", BF16, 64, 64),
    end("conv2d_fused_fwd_end_bf16_128x32", BF16, 128, 32),
    end("conv2d_fused_fwd_end_bf16_128x16", BF16, 128, 16),
];

pub static BWD_X: [Variant; 27] = [
    data("conv2d_fused_bwd_x_f32_128x128", F32, 128, 128, Vector),
    data("conv2d_fused_bwd_x_f32_64x64", F32, 64, 64, Vector),
    data("conv2d_fused_bwd_x_f32_128x16", F32, 128, 16, Vector),
    data("conv2d_fused_bwd_x_f32_64x64_scalar", F32, 64, 64, Scalar),
    data("conv2d_fused_bwd_x_f32_128x16_scalar", F32, 128, 16, Scalar),
    data("conv2d_fused_bwd_x_f16_128x128", F16, 128, 128, Vector),
    data("conv2d_fused_bwd_x_f16_128x64", F16, 128, 64, Vector),
    data("conv2d_fused_bwd_x_f16_64x64", F16, 64, 64, Vector),
    data("conv2d_fused_bwd_x_f16_128x32", F16, 128, 32, Vector),
    data("conv2d_fused_bwd_x_f16_128x16", F16, 128, 16, Vector),
    data("conv2d_fused_bwd_x_f16_64x64_scalar", F16, 64, 64, Scalar),
    data("conv2d_fused_bwd_x_f16_128x16_scalar", F16, 128, 16, Scalar),
    data("conv2d_fused_bwd_x_bf16_128x128", BF16, 128, 128, Vector),
    data("conv2d_fused_bwd_x_bf16_128x64", BF16, 128, 64, Vector),
    data("conv2d_fused_bwd_x_bf16_64x64", BF16, 64, 64, Vector),
    data("conv2d_fused_bwd_x_bf16_128x32", BF16, 128, 32, Vector),
    data("conv2d_fused_bwd_x_bf16_128x16", BF16, 128, 16, Vector),
    data("conv2d_fused_bwd_x_bf16_64x64_scalar", BF16, 64, 64, Scalar),
    data("conv2d_fused_bwd_x_bf16_128x16_scalar", BF16, 128, 16, Scalar),
    data("conv2d_fused_bwd_x_f32_64x64_packed", F32, 64, 64, Packed),
    data("conv2d_fused_bwd_x_f32_128x16_packed", F32, 128, 16, Packed),
    data("conv2d_fused_bwd_x_f16_64x64_packed", F16, 64, 64, Packed),
    data("conv2d_fused_bwd_x_f16_128x32_packed", F16, 128, 32, Packed),
    data("conv2d_fused_bwd_x_f16_128x16_packed", F16, 128, 16, Packed),
    data("conv2d_fused_bwd_x_bf16_64x64_packed", BF16, 64, 64, Packed),
    data("conv2d_fused_bwd_x_bf16_128x32_packed", BF16, 128, 32, Packed),
    data("conv2d_fused_bwd_x_bf16_128x16_packed", BF16, 128, 16, Packed),
];

pub static BWD_W: [Variant; 39] = [
    weight("conv2d_fused_bwd_w_f32_128x128", F32, 128, 128, Vector),
    weight("conv2d_fused_bwd_w_f32_64x64", F32, 64, 64, Vector),
    weight("conv2d_fused_bwd_w_f32_32x128", F32, 32, 128, Vector),
    weight("conv2d_fused_bwd_w_f32_64x64_scalar", F32, 64, 64, Scalar),
    weight("conv2d_fused_bwd_w_f32_32x128_scalar", F32, 32, 128, Scalar),
    weight("conv2d_fused_bwd_w_f16_128x128", F16, 128, 128, Vector),
    weight("conv2d_fused_bwd_w_f16_64x128", F16, 64, 128, Vector),
    weight("conv2d_fused_bwd_w_f16_64x64", F16, 64, 64, Vector),
    weight("conv2d_fused_bwd_w_f16_32x128", F16, 32, 128, Vector),
    weight("conv2d_fused_bwd_w_f16_16x128", F16, 16, 128, Vector),
    weight("conv2d_fused_bwd_w_f16_64x64_scalar", F16, 64, 64, Scalar),
    weight("conv2d_fused_bwd_w_f16_16x128_scalar", F16, 16, 128, Scalar),
    weight("conv2d_fused_bwd_w_bf16_128x128", BF16, 128, 128, Vector),
    weight("conv2d_fused_bwd_w_bf16_64x128", BF16, 64, 128, Vector),
    weight("conv2d_fused_bwd_w_bf16_64x64", BF16, 64, 64, Vector),
    weight("conv2d_fused_bwd_w_bf16_32x128", BF16, 32, 128, Vector),
    weight("conv2d_fused_bwd_w_bf16_16x128", BF16, 16, 128, Vector),
    weight("conv2d_fused_bwd_w_bf16_64x64_scalar", BF16, 64, 64, Scalar),
    weight("conv2d_fused_bwd_w_bf16_16x128_scalar", BF16, 16, 128, Scalar),
    weight("conv2d_fused_bwd_w_f32_64x64_packed", F32, 64, 64, Packed),
    weight("conv2d_fused_bwd_w_f32_32x128_packed", F32, 32, 128, Packed),
    weight("conv2d_fused_bwd_w_f16_64x64_packed", F16, 64, 64, Packed),
    weight("conv2d_fused_bwd_w_f16_32x128_packed", F16, 32, 128, Packed),
    weight("conv2d_fused_bwd_w_f16_16x128_packed", F16, 16, 128, Packed),
    weight("conv2d_fused_bwd_w_f16_16x64_packed", F16, 16, 64, Packed),
    weight("conv2d_fused_bwd_w_bf16_64x64_packed", BF16, 64, 64, Packed),
    weight("conv2d_fused_bwd_w_bf16_32x128_packed", BF16, 32, 128, Packed),
    weight("conv2d_fused_bwd_w_bf16_16x128_packed", BF16, 16, 128, Packed),
    weight("conv2d_fused_bwd_w_bf16_16x64_packed", BF16, 16, 64, Packed),
    weight("conv2d_fused_bwd_w_f32_64x64_stem", F32, 64, 64, Stem),
    weight("conv2d_fused_bwd_w_f32_32x128_stem", F32, 32, 128, Stem),
    weight("conv2d_fused_bwd_w_f16_64x128_stem", F16, 64, 128, Stem),
    weight("conv2d_fused_bwd_w_f16_64x64_stem", F16, 64, 64, Stem),
    weight("conv2d_fused_bwd_w_f16_16x128_stem", F16, 16, 128, Stem),
    weight("conv2d_fused_bwd_w_f16_16x64_stem", F16, 16, 64, Stem),
    weight("conv2d_fused_bwd_w_bf16_64x128_stem", BF16, 64, 128, Stem),
    weight("conv2d_fused_bwd_w_bf16_64x64_stem", BF16, 64, 64, Stem),
    weight("conv2d_fused_bwd_w_bf16_16x128_stem", BF16, 16, 128, Stem),
    weight("conv2d_fused_bwd_w_bf16_16x64_stem", BF16, 16, 64, Stem),
];

const COUNT: usize = FWD.len() + END.len() + BWD_X.len() + BWD_W.len() + BOTH.len();

/// Every entry.
pub static ALL: [&Kernel; COUNT] = {
    let mut all: [&Kernel; COUNT] = [&FWD[0].kernel; COUNT];
    let tables: [&[Variant]; 5] = [&FWD, &END, &BWD_X, &BWD_W, &BOTH_X];
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
    all
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_the_row_says() {
        for (pass, table) in [("fwd", &FWD[..]), ("fwd_end", &END), ("bwd_x", &BWD_X), ("bwd_w", &BWD_W)] {
            for v in table {
                let mut name = format!("conv2d_fused_{pass}_{}_{}x{}", v.dtype, v.tile.m, v.tile.n);
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
    fn a_pair_names_both_tiles() {
        for (x, w) in BOTH_X.iter().zip(&BOTH_W) {
            let tiles = format!("{}x{}_{}x{}", x.tile.m, x.tile.n, w.tile.m, w.tile.n);
            let end = match x.access {
                Vector => "",
                Packed => "_packed",
                Stem => "_of_no_stem",
                Scalar => "_scalar",
            };
            assert_eq!(x.kernel.name, format!("conv2d_fused_bwd_{}_{tiles}{end}", x.dtype));
            assert_eq!(w.kernel.name, x.kernel.name);
        }
    }

    #[test]
    fn no_entry_is_listed_twice_or_asks_for_too_much_memory() {
        let mut names: Vec<_> = ALL.iter().map(|k| k.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), COUNT);
        assert!(ALL.iter().all(|k| k.shared_bytes <= 81 * 1024), "two blocks in the 163 KiB of sm_80");
    }
}
