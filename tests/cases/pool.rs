//! Poolings.

use residuum::ops::pool::{Kind, Window};

/// An input and its windows, for a maximum and for averages.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// N, H, W, C.
    pub x: [usize; 4],
    /// The windows.
    pub window: Window,
}

const fn sliding(x: [usize; 4], kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2], ceil: bool) -> Case {
    Case { x, window: Window::Sliding { kernel, stride, padding, ceil } }
}

const fn adaptive(x: [usize; 4], count: [usize; 2]) -> Case {
    Case { x, window: Window::Adaptive(count) }
}

/// For every kind of pooling.
pub const CASES: &[Case] = &[
    sliding([1, 1, 1, 1], [1, 1], [1, 1], [0, 0], false),
    // The stem of ResNet.
    sliding([2, 12, 12, 16], [3, 3], [2, 2], [1, 1], false),
    // VGG, and the downsampling of ResNet-D.
    sliding([2, 6, 6, 24], [2, 2], [2, 2], [0, 0], false),
    sliding([1, 7, 5, 16], [2, 2], [2, 2], [0, 0], true),
    // GoogLeNet.
    sliding([1, 7, 8, 13], [3, 3], [2, 2], [0, 0], true),
    sliding([1, 6, 7, 8], [3, 3], [1, 1], [1, 1], false),
    // Ceil mode: the last window starts in the padding, or would.
    sliding([1, 5, 4, 3], [2, 2], [2, 2], [1, 1], true),
    sliding([1, 6, 7, 5], [3, 3], [3, 3], [1, 1], true),
    // A stride larger than the kernel, one tap, different extents along H and W.
    sliding([1, 8, 7, 7], [2, 2], [3, 3], [0, 0], false),
    sliding([1, 4, 5, 8], [1, 1], [2, 2], [0, 0], false),
    sliding([2, 8, 5, 7], [3, 2], [2, 1], [1, 0], false),
    sliding([1, 3, 3, 33], [5, 5], [1, 1], [2, 2], false),
    sliding([1, 9, 11, 8], [5, 4], [2, 3], [2, 2], true),
    // Windows that differ in size, overlap, and repeat pixels.
    adaptive([1, 7, 5, 9], [3, 2]),
    adaptive([1, 3, 2, 8], [5, 4]),
    adaptive([2, 4, 4, 64], [1, 1]),
    adaptive([1, 13, 6, 16], [6, 6]),
];

/// A maximum over the largest window whose positions fit a byte.
pub const LARGEST_MAX: Case = sliding([1, 17, 16, 8], [16, 16], [1, 1], [0, 0], false);

/// Averages over windows that a block sums: global ones of ResNet-50 and the CIFAR networks, odd and large ones.
pub const LARGE_AVERAGES: &[Case] = &[
    adaptive([2, 7, 7, 264], [1, 1]),
    adaptive([3, 8, 8, 64], [1, 1]),
    adaptive([1, 13, 11, 7], [2, 1]),
    sliding([1, 10, 9, 5], [7, 6], [2, 2], [3, 3], true),
    adaptive([1, 97, 89, 3], [1, 1]),
    adaptive([1, 128, 64, 8], [1, 1]),
];

/// Windows of all forms, each with every kind of pooling.
pub fn crossed() -> Vec<(Window, Kind)> {
    let sliding = |kernel, stride, padding, ceil| Window::Sliding { kernel, stride, padding, ceil };
    let windows = [
        sliding([2, 2], [2, 2], [0, 0], false),
        sliding([3, 3], [2, 2], [1, 1], false),
        sliding([3, 2], [2, 3], [1, 0], true),
        sliding([1, 1], [2, 2], [0, 0], false),
        Window::Adaptive([1, 1]),
        Window::Adaptive([3, 4]),
        Window::Adaptive([9, 8]),
    ];
    let kinds = [Kind::Max, Kind::Average { count_padding: false }, Kind::Average { count_padding: true }];
    windows.into_iter().flat_map(|window| kinds.map(|kind| (window, kind))).collect()
}
