//! Parts of the simulator on their own, for its tests.

use std::path::Path;

use super::{backend, Arithmetic};
use crate::Result;

/// What a launch touched in global memory: sectors of 32 bytes, each counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of the sectors that were read.
    pub bytes_read: u64,
    /// Bytes of the sectors that were written.
    pub bytes_written: u64,
}

/// Loads the kernels that devices with `SimOptions::traffic` run: a shared object of the kernels' wrappers compiled with
/// `-fsanitize=thread`, which makes them tell of every access. Fails where it cannot be loaded.
pub fn load_counted(library: &Path) -> Result<()> {
    backend::load_counted(library)
}

/// What the launches of this thread have touched on devices with `SimOptions::traffic` since the last call, in order.
pub fn traffic() -> Vec<Traffic> {
    std::iter::from_fn(backend::next_counted)
        .map(|(bytes_read, bytes_written)| Traffic { bytes_read, bytes_written })
        .collect()
}

/// Name, bytes of parameters and threads of every kernel that is compiled in.
pub fn kernels() -> Vec<(String, usize, u32)> {
    backend::kernels()
}

/// `c + a.b` as a tensor core adds it, for bf16 or f16 bit patterns of a length that is a multiple of 8. Panics where the
/// lengths differ.
pub fn dot(bf16: bool, arithmetic: Arithmetic, a: &[u16], b: &[u16], c: f32) -> f32 {
    backend::dot(bf16, arithmetic, a, b, c)
}

/// The value of an f16 bit pattern.
pub fn from_f16(bits: u16) -> f32 {
    backend::from_f16(bits)
}

/// The nearest f16, ties to even, as a bit pattern.
pub fn to_f16(v: f32) -> u16 {
    backend::to_f16(v)
}

/// The nearest bf16, ties to even, as a bit pattern.
pub fn to_bf16(v: f32) -> u16 {
    backend::to_bf16(v)
}
