//! The parameter structs of `kernels/conv2d/params.cuh`; both sides assert their sizes.

use crate::ops::params::params;

/// Apply a ReLU.
pub const RELU: i32 = 1;
/// Accumulate the result.
pub const ACCUMULATE: i32 = 2;
/// The output and the residual allow 16-byte accesses.
pub const VECTOR_OUT: i32 = 4;
/// The partial sums allow 16-byte accesses.
pub const VECTOR_PARTIAL: i32 = 8;

params! {
    /// One spatial axis of a gather.
    pub struct Axis {
        input: i32, output: i32, taps: i32, stride: i32, pad: i32, dilation: i32, tap_step: i32, tap_shift: i32,
    }

    /// For fwd and bwd_x.
    pub struct GatherParams {
        input: u64, w: u64, out: u64, scale: u64, shift: u64, residual: u64, partial: u64,
        axis_h: Axis, axis_w: Axis, images: i32, in_c: i32, out_c: i32, in_stride: i32, out_stride: i32,
        residual_stride: i32, groups: i32, n_tiles: i32, splits: i32, flags: i32, w_c: i32, unused: i32,
    }

    /// For bwd_w.
    pub struct WeightParams {
        dy: u64, x: u64, dw: u64, partial: u64,
        axis_h: Axis, axis_w: Axis, images: i32, x_c: i32, dy_c: i32, x_stride: i32, dy_stride: i32, groups: i32,
        n_tiles: i32, splits: i32, flags: i32, w_c: i32,
    }

    /// For the sum over splits.
    pub struct ReduceParams {
        partial: u64, out: u64, scale: u64, shift: u64, residual: u64,
        rows: i64,
        cols: i32, splits: i32, out_stride: i32, residual_stride: i32, flags: i32, unused: i32,
    }

    /// For the column sums of dy.
    pub struct BiasParams { dy: u64, partial: u64, rows: i64, rows_per_split: i64, cols: i32, dy_stride: i32 }
}
