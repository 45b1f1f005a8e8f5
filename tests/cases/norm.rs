//! Partial results, and the pieces of batch norms.

use residuum::ops::norm::Epilogue;

/// Bands and channels: one, as many as merge at a time, around the most of one launch; the last layers of ResNet-50, and
/// the tiles of its first, 256 images.
pub const BANDS: &[[usize; 2]] =
    &[[1, 1], [2, 7], [31, 9], [33, 24], [49, 2048], [512, 5], [513, 8], [1100, 3], [6272, 64], [140_000, 1]];

/// Every form of an epilogue.
pub const EPILOGUES: &[Epilogue] = &[
    Epilogue::Affine { relu: true, scaled: false },
    Epilogue::Affine { relu: false, scaled: false },
    Epilogue::Affine { relu: true, scaled: true },
    Epilogue::Affine { relu: false, scaled: true },
    Epilogue::Signs { norms: 1, gated: false },
    Epilogue::Signs { norms: 2, gated: false },
    Epilogue::Signs { norms: 1, gated: true },
    Epilogue::Signs { norms: 2, gated: true },
];
