//! Partial results, and the pieces of batch norms.

/// Bands and channels: one, as many as merge at a time, around the most of one launch; the last layers of ResNet-50, and
/// the tiles of its first, 256 images.
pub const BANDS: &[[usize; 2]] =
    &[[1, 1], [2, 7], [31, 9], [33, 24], [49, 2048], [512, 5], [513, 8], [1100, 3], [6272, 64], [140_000, 1]];
