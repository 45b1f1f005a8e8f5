//! Parts of the simulator on their own, for its tests.

use super::{backend, Arithmetic};

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
