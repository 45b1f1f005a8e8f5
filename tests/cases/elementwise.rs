//! Shapes of ReLUs and sums, and the terms of sums.

use residuum::ops::load::{Affine, Load, Operand};

/// N, H, W, C.
pub const SHAPES: &[[usize; 4]] = &[
    [1, 1, 1, 1],
    [1, 1, 1, 7],
    [2, 3, 5, 7],
    [3, 1, 1, 10],
    [1, 7, 1, 13],
    [2, 5, 3, 24],
    // A CIFAR stage, and the last one of ResNet-50.
    [2, 8, 8, 16],
    [1, 2, 2, 2048],
    // One pixel: two rows of 2048 channels and a tail of 3.
    [1, 1, 1, 4099],
    [3, 5, 7, 61],
];

/// Large enough that a thread walks down several rows in f32.
pub const LARGE: [usize; 4] = [1, 530, 1000, 4];

/// A term of a sum: plain or a batch norm's output, with or without a ReLU.
pub fn term(affine: bool, relu: bool) -> Operand {
    let load = if affine { Load::Affine { affine: Affine::default(), relu } } else { Load::AsIs };
    Operand { load, ..Operand::default() }
}
