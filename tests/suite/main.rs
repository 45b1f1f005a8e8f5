//! All tests of the library that need more than one module, in one binary.

#![allow(clippy::unwrap_used)]

mod bits;
mod bounds;
mod build;
mod captured;
#[path = "../cases/mod.rs"]
mod cases;
mod concat;
mod constant;
mod control;
mod data;
mod depth;
mod distance;
mod fusion;
mod golden;
mod gradients;
mod graph;
mod harness;
mod host;
mod loss_scale;
mod machine;
mod models;
mod named;
mod networks;
mod nonfinite;
mod ops;
mod plan;
#[cfg(feature = "cuda")]
mod planted;
mod random;
mod sets;
mod sim;
mod sweep;
mod tidy;
mod traffic;
mod train;
mod wiring;
