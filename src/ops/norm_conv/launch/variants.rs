//! The entry points of `kernels/norm_conv/`: one row each.

use super::params::{DataGradientParams, ForwardParams, WeightGradientParams};
use crate::device::Kernel;
use crate::ops::conv2d::launch::variants::Access::{self, Scalar, Vector};
use crate::ops::conv2d::launch::variants::{Tile, Variant};
use crate::tensor::DType::{self, BF16, F16, F32};

const fn forward(name: &'static str, dtype: DType, m: usize, n: usize, access: Access) -> Variant {
    let tile = Tile::new(m, n, matches!(dtype, F32));
    let kernel = Kernel::new::<ForwardParams>(name, tile.threads as u32, tile.shared_bytes(true));
    Variant { kernel, dtype, tile, access }
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

pub static FWD: [Variant; 19] = [
    forward("norm_conv_fwd_f32_128x128", F32, 128, 128, Vector),
    forward("norm_conv_fwd_f32_64x64", F32, 64, 64, Vector),
    forward("norm_conv_fwd_f32_128x16", F32, 128, 16, Vector),
    forward("norm_conv_fwd_f32_64x64_scalar", F32, 64, 64, Scalar),
    forward("norm_conv_fwd_f32_128x16_scalar", F32, 128, 16, Scalar),
    forward("norm_conv_fwd_f16_128x128", F16, 128, 128, Vector),
    forward("norm_conv_fwd_f16_128x64", F16, 128, 64, Vector),
    forward("norm_conv_fwd_f16_64x64", F16, 64, 64, Vector),
    forward("norm_conv_fwd_f16_128x32", F16, 128, 32, Vector),
    forward("norm_conv_fwd_f16_128x16", F16, 128, 16, Vector),
    forward("norm_conv_fwd_f16_64x64_scalar", F16, 64, 64, Scalar),
    forward("norm_conv_fwd_f16_128x16_scalar", F16, 128, 16, Scalar),
    forward("norm_conv_fwd_bf16_128x128", BF16, 128, 128, Vector),
    forward("norm_conv_fwd_bf16_128x64", BF16, 128, 64, Vector),
    forward("norm_conv_fwd_bf16_64x64", BF16, 64, 64, Vector),
    forward("norm_conv_fwd_bf16_128x32", BF16, 128, 32, Vector),
    forward("norm_conv_fwd_bf16_128x16", BF16, 128, 16, Vector),
    forward("norm_conv_fwd_bf16_64x64_scalar", BF16, 64, 64, Scalar),
    forward("norm_conv_fwd_bf16_128x16_scalar", BF16, 128, 16, Scalar),
];

pub static BWD_X: [Variant; 19] = [
    data("norm_conv_bwd_x_f32_128x128", F32, 128, 128, Vector),
    data("norm_conv_bwd_x_f32_64x64", F32, 64, 64, Vector),
    data("norm_conv_bwd_x_f32_128x16", F32, 128, 16, Vector),
    data("norm_conv_bwd_x_f32_64x64_scalar", F32, 64, 64, Scalar),
    data("norm_conv_bwd_x_f32_128x16_scalar", F32, 128, 16, Scalar),
    data("norm_conv_bwd_x_f16_128x128", F16, 128, 128, Vector),
    data("norm_conv_bwd_x_f16_128x64", F16, 128, 64, Vector),
    data("norm_conv_bwd_x_f16_64x64", F16, 64, 64, Vector),
    data("norm_conv_bwd_x_f16_128x32", F16, 128, 32, Vector),
    data("norm_conv_bwd_x_f16_128x16", F16, 128, 16, Vector),
    data("norm_conv_bwd_x_f16_64x64_scalar", F16, 64, 64, Scalar),
    data("norm_conv_bwd_x_f16_128x16_scalar", F16, 128, 16, Scalar),
    data("norm_conv_bwd_x_bf16_128x128", BF16, 128, 128, Vector),
    data("norm_conv_bwd_x_bf16_128x64", BF16, 128, 64, Vector),
    data("norm_conv_bwd_x_bf16_64x64", BF16, 64, 64, Vector),
    data("norm_conv_bwd_x_bf16_128x32", BF16, 128, 32, Vector),
    data("norm_conv_bwd_x_bf16_128x16", BF16, 128, 16, Vector),
    data("norm_conv_bwd_x_bf16_64x64_scalar", BF16, 64, 64, Scalar),
    data("norm_conv_bwd_x_bf16_128x16_scalar", BF16, 128, 16, Scalar),
];

pub static BWD_W: [Variant; 19] = [
    weight("norm_conv_bwd_w_f32_128x128", F32, 128, 128, Vector),
    weight("norm_conv_bwd_w_f32_64x64", F32, 64, 64, Vector),
    weight("norm_conv_bwd_w_f32_32x128", F32, 32, 128, Vector),
    weight("norm_conv_bwd_w_f32_64x64_scalar", F32, 64, 64, Scalar),
    weight("norm_conv_bwd_w_f32_32x128_scalar", F32, 32, 128, Scalar),
    weight("norm_conv_bwd_w_f16_128x128", F16, 128, 128, Vector),
    weight("norm_conv_bwd_w_f16_64x128", F16, 64, 128, Vector),
    weight("norm_conv_bwd_w_f16_64x64", F16, 64, 64, Vector),
    weight("norm_conv_bwd_w_f16_32x128", F16, 32, 128, Vector),
    weight("norm_conv_bwd_w_f16_16x128", F16, 16, 128, Vector),
    weight("norm_conv_bwd_w_f16_64x64_scalar", F16, 64, 64, Scalar),
    weight("norm_conv_bwd_w_f16_16x128_scalar", F16, 16, 128, Scalar),
    weight("norm_conv_bwd_w_bf16_128x128", BF16, 128, 128, Vector),
    weight("norm_conv_bwd_w_bf16_64x128", BF16, 64, 128, Vector),
    weight("norm_conv_bwd_w_bf16_64x64", BF16, 64, 64, Vector),
    weight("norm_conv_bwd_w_bf16_32x128", BF16, 32, 128, Vector),
    weight("norm_conv_bwd_w_bf16_16x128", BF16, 16, 128, Vector),
    weight("norm_conv_bwd_w_bf16_64x64_scalar", BF16, 64, 64, Scalar),
    weight("norm_conv_bwd_w_bf16_16x128_scalar", BF16, 16, 128, Scalar),
];

const COUNT: usize = FWD.len() + BWD_X.len() + BWD_W.len();

/// Every entry.
pub static ALL: [&Kernel; COUNT] = {
    let mut all: [&Kernel; COUNT] = [&FWD[0].kernel; COUNT];
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
    all
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_the_row_says() {
        for (pass, table) in [("fwd", &FWD), ("bwd_x", &BWD_X), ("bwd_w", &BWD_W)] {
            for v in table {
                let mut name = format!("norm_conv_{pass}_{}_{}x{}", v.dtype, v.tile.m, v.tile.n);
                if v.access == Scalar {
                    name += "_scalar";
                }
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
        assert!(ALL.iter().all(|k| k.shared_bytes <= 81 * 1024), "two blocks in the 163 KiB of sm_80");
    }
}
