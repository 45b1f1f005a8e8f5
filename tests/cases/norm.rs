//! Partial results, and the pieces of batch norms.

use residuum::ops::store::{Mask, Normalised};

/// Bands and channels: one band, as many as merge at a time, around the maximum of one launch; the last layers of
/// ResNet-50, and the tiles of its first, for 256 images.
pub const BANDS: &[[usize; 2]] =
    &[[1, 1], [2, 7], [31, 9], [33, 24], [49, 2048], [512, 5], [513, 8], [1100, 3], [6272, 64], [140_000, 1]];

const fn affine(relu: bool, scaled: bool) -> Mask {
    Mask::Affine { y: (), scale: (), shift: (), mean: (), relu, scaled }
}

const fn signs(two: bool, gated: bool) -> Mask {
    let one = Normalised { y: (), mean: () };
    Mask::Signs {
        bits: (),
        first: one,
        second: if two { Some(one) } else { None },
        gate: if gated { Some(()) } else { None },
    }
}

/// Every form of a mask.
pub const MASKS: &[Mask] = &[
    affine(true, false),
    affine(false, false),
    affine(true, true),
    affine(false, true),
    signs(false, false),
    signs(true, false),
    signs(false, true),
    signs(true, true),
];
