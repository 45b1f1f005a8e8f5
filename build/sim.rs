//! Compiles the kernels for the simulator with the host's C++ compiler.

/// Nothing yet.
pub fn build() {}
