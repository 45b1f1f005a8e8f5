//! `residuum`: hand-written CUDA kernels for residual networks, wrapped in safe Rust and composed into training and
//! inference graphs, every one checked against a CPU reference.
//!
//! Layers, each using only those before it: [`files`], [`tensor`], [`device`], [`ops`], [`control`], [`graph`],
//! [`models`], [`data`], [`train`].

pub mod control;
pub mod data;
pub mod device;
mod error;
pub mod files;
pub mod graph;
pub mod models;
pub mod ops;
pub mod tensor;
pub mod train;

#[cfg(feature = "cuda")]
pub use cudarc;
pub use error::{Error, Result};
pub use half;

/// Every kernel that launch code uses.
pub fn kernels() -> impl Iterator<Item = &'static device::Kernel> {
    ops::kernels().chain(control::kernels())
}

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
