//! Concatenations.

/// N, H, W, and the channels of each part.
pub type Case = ([usize; 3], &'static [usize]);

/// Every case.
pub const CASES: &[Case] = &[
    ([1, 1, 1], &[1]),
    ([1, 1, 1], &[1, 1]),
    ([2, 3, 5], &[7, 1, 3]),
    // Parts that start at and between multiples of 16 bytes.
    ([2, 5, 3], &[16, 8, 8, 4, 12]),
    // Layers of DenseNet-121 and DenseNet-40, and an Inception module, with fewer pixels.
    ([2, 7, 7], &[64, 32]),
    ([1, 4, 4], &[28, 12]),
    ([1, 7, 7], &[64, 128, 32, 32]),
    // Wider than a row of blocks; enough rows for a thread to walk down several.
    ([1, 2, 2], &[2048, 3]),
    ([1, 130, 260], &[24, 8]),
];
