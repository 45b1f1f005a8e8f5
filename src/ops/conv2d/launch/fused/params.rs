//! The parameter structs of `kernels/conv2d/fused/params.cuh`; both sides assert their sizes.

use bytemuck::{Pod, Zeroable};

use crate::ops::conv2d::launch::params::{GatherParams, WeightParams};

/// The prologue ends with a ReLU.
pub const ACTIVATE: i32 = 16;
/// dx is 0 where the ReLU was closed.
pub const MASK: i32 = 32;
/// dx is multiplied by the scale, after the sums.
pub const SCALED: i32 = 64;

/// Of fwd.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ForwardParams {
    pub gather: GatherParams,
    pub in_scale: u64,
    pub in_shift: u64,
    pub mean: u64,
    pub m2: u64,
}

/// Of fwd with the end of a block.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct EndParams {
    pub forward: ForwardParams,
    pub b: u64,
    pub b_scale: u64,
    pub b_shift: u64,
    pub z: u64,
    pub signs: u64,
    pub b_stride: i32,
    pub z_stride: i32,
    pub signs_stride: i32,
    pub unused: i32,
}

/// Of bwd_x.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct DataGradientParams {
    pub gather: GatherParams,
    pub y: u64,
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub bits: u64,
    pub y0: u64,
    pub y1: u64,
    pub mean0: u64,
    pub mean1: u64,
    pub sums: u64,
    pub open: u64,
    pub y_stride: i32,
    pub bits_stride: i32,
    pub y0_stride: i32,
    pub y1_stride: i32,
    pub m_tiles: i32,
    pub bands: i32,
}

/// Of bwd_w.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct WeightGradientParams {
    pub weight: WeightParams,
    pub y: u64,
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub x_scale: u64,
    pub x_shift: u64,
    pub y_stride: i32,
    pub unused: i32,
}

/// Of both gradients in one launch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GradientsParams {
    pub x: DataGradientParams,
    pub w: WeightGradientParams,
    pub x_blocks: i32,
    pub x_segment: i32,
    pub x_residues: i32,
    pub w_blocks: i32,
}
