//! The parameter structs of `kernels/conv2d/params.cuh`; both sides assert their sizes.

use bytemuck::{Pod, Zeroable};

/// Replace negative results by 0.
pub const RELU: i32 = 1;
/// Add to what is there.
pub const ACCUMULATE: i32 = 2;
/// The output and the residual take 16-byte accesses.
pub const VECTOR_OUT: i32 = 4;
/// So do the partial sums.
pub const VECTOR_PARTIAL: i32 = 8;

/// One spatial axis of a gather.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Axis {
    pub input: i32,
    pub output: i32,
    pub taps: i32,
    pub stride: i32,
    pub pad: i32,
    pub dilation: i32,
    pub tap_step: i32,
    pub tap_shift: i32,
}

/// Of fwd and bwd_x.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GatherParams {
    pub input: u64,
    pub w: u64,
    pub out: u64,
    pub scale: u64,
    pub shift: u64,
    pub residual: u64,
    pub partial: u64,
    pub axis_h: Axis,
    pub axis_w: Axis,
    pub images: i32,
    pub in_c: i32,
    pub out_c: i32,
    pub in_stride: i32,
    pub out_stride: i32,
    pub residual_stride: i32,
    pub groups: i32,
    pub n_tiles: i32,
    pub splits: i32,
    pub flags: i32,
    pub w_c: i32,
    pub unused: i32,
}

/// Of bwd_w.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct WeightParams {
    pub dy: u64,
    pub x: u64,
    pub dw: u64,
    pub partial: u64,
    pub axis_h: Axis,
    pub axis_w: Axis,
    pub images: i32,
    pub x_c: i32,
    pub dy_c: i32,
    pub x_stride: i32,
    pub dy_stride: i32,
    pub groups: i32,
    pub n_tiles: i32,
    pub splits: i32,
    pub flags: i32,
    pub w_c: i32,
}

/// Of the sum over splits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ReduceParams {
    pub partial: u64,
    pub out: u64,
    pub scale: u64,
    pub shift: u64,
    pub residual: u64,
    pub rows: i64,
    pub cols: i32,
    pub splits: i32,
    pub out_stride: i32,
    pub residual_stride: i32,
    pub flags: i32,
    pub unused: i32,
}

/// Of the column sums of dy.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BiasParams {
    pub dy: u64,
    pub partial: u64,
    pub rows: i64,
    pub rows_per_split: i64,
    pub cols: i32,
    pub dy_stride: i32,
}
