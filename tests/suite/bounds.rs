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

/// A sum of `terms` products on tensor cores, in blocks of eight: each block is added to the sum in f32 with
/// truncation. Eight more for what follows: sums of sums, the epilogue.
pub fn tensor_core_sum(terms: usize, magnitude: f64) -> f64 {
    (terms as f64 / 8.0 + 8.0) * 2.0 * U * magnitude
}

/// A sum of at most `terms` quotients of whole numbers whose magnitudes add up to `magnitude`: each is a product with a
/// rounded reciprocal.
pub fn quotients(terms: usize, magnitude: f64) -> f64 {
    (terms as f64 + 2.0) * U * magnitude
}

/// A mean of `pixels` positive numbers that a block sums: groups of 32 in each of at least 8 threads, the groups, 8
/// levels of a tree, and a division.
pub fn tree_mean(pixels: usize, mean: f64) -> f64 {
    (32.0 + pixels as f64 / (8.0 * 32.0) + 1.0 + 8.0 + 1.0) * U * mean
}

/// How many additions lie between an element and the sum over `rows` rows of a channel: 16 rows of a thread, 8 levels of
/// a tree, then bands of at least 64 rows, every eighth to a thread, and 3 levels more.
pub fn band_depth(rows: usize) -> f64 {
    16.0 + 8.0 + rows as f64 / (64.0 * 8.0) + 1.0 + 3.0
}
