//! The parameter structs of `kernels/conv2d/fused/params.cuh`; both sides assert their sizes.

use crate::ops::conv2d::launch::params::{GatherParams, WeightParams};
use crate::ops::params::params;

/// The load of x ends in a ReLU.
pub const ACTIVATE: i32 = 16;
/// dx is 0 where the ReLU's output was 0.
pub const MASK: i32 = 32;
/// dx is multiplied by the scale, after the sums.
pub const SCALED: i32 = 64;

params! {
    /// For fwd.
    pub struct ForwardParams { gather: GatherParams, x_scale: u64, x_shift: u64, mean: u64, m2: u64 }

    /// For fwd that loads the end of a block.
    pub struct EndParams {
        forward: ForwardParams,
        other: u64, other_scale: u64, other_shift: u64, z: u64, signs: u64,
        other_stride: i32, z_stride: i32, signs_stride: i32, unused: i32,
    }

    /// For bwd_x.
    pub struct DataGradientParams {
        gather: GatherParams,
        y: u64, a: u64, b: u64, c: u64, bits: u64, y0: u64, y1: u64, mean0: u64, mean1: u64, sums: u64, gate: u64,
        y_stride: i32, bits_stride: i32, y0_stride: i32, y1_stride: i32, m_tiles: i32, bands: i32,
    }

    /// For bwd_w.
    pub struct WeightGradientParams {
        weight: WeightParams,
        y: u64, a: u64, b: u64, c: u64, x_scale: u64, x_shift: u64,
        y_stride: i32, unused: i32,
    }

    /// For both gradients in one launch.
    pub struct GradientsParams {
        x: DataGradientParams, w: WeightGradientParams, x_blocks: i32, x_segment: i32, x_residues: i32, w_blocks: i32,
    }
}
