//! Every test of the library that needs more than one module, in one binary.

mod bounds;
mod build;
mod data;
mod golden;
mod graph;
mod harness;
mod ops;
mod random;
mod sim;
mod tidy;
mod train;
