//! The kernels that load and store with more operands: `kernels/conv2d/fused/`.

pub mod params;
pub mod variants;
