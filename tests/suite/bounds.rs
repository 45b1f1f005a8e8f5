//! Every tolerance of the kernel tests, computed from the storage type and the length of the reduction. They bound the
//! result before it is stored; the harness adds the rounding to the storage type.
//!
//! A bound is raised only with a reason in the commit.

/// The unit roundoff of f32: half the distance from 1 to the next number.
pub const U: f64 = 1.0 / (1u64 << 24) as f64;

/// A sum of `terms` products whose magnitudes add up to `magnitude`, in f32 with any order of additions: each term is
/// rounded as a product once and at most `terms` times as a part of a sum.
pub fn sum(terms: usize, magnitude: f64) -> f64 {
    (terms as f64 + 1.0) * U * magnitude
}
