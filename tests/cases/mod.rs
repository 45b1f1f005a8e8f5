//! The cases of every op: real layers of the networks, scaled down, and odd sizes. One table for each op drives its
//! tests and its benches.

pub mod batch_norm;
pub mod concat;
pub mod conv2d;
pub mod conv2d_fused;
pub mod cross_entropy;
pub mod elementwise;
pub mod networks;
pub mod norm;
pub mod pool;
pub mod sgd;
pub mod shortcut;
