//! Inputs of batch norms.

/// N, H, W, C.
pub const SHAPES: &[[usize; 4]] = &[
    [2, 1, 1, 1],
    [3, 1, 1, 10],
    [3, 5, 7, 13],
    [5, 9, 9, 24],
    // Stages of the CIFAR networks and of ResNet-50.
    [4, 8, 8, 16],
    [2, 8, 8, 64],
    [3, 2, 2, 2048],
    [2, 3, 3, 129],
    // One strip wide and long.
    [1, 61, 67, 3],
    // More bands than threads that merge them.
    [11, 10, 10, 128],
];

/// Inputs whose number of pixels is a power of two, so that every statistic can be exact.
pub const EXACT_SHAPES: &[[usize; 4]] =
    &[[4, 1, 1, 3], [1, 8, 8, 16], [4, 8, 8, 24], [16, 8, 8, 5], [8, 16, 16, 16], [16, 8, 8, 128]];
