//! Option-A shortcuts.

use residuum::ops::shortcut::Spec;

/// Every case.
pub const CASES: &[Spec] = &[
    Spec { x: [1, 1, 1, 1], k: 1, stride: 1, lead: 0 },
    Spec { x: [1, 1, 1, 3], k: 8, stride: 2, lead: 2 },
    // ResNet-20's two, halved; zero channels at the end, as in the authors' code, and on both sides.
    Spec { x: [2, 16, 16, 16], k: 32, stride: 2, lead: 0 },
    Spec { x: [2, 8, 8, 32], k: 64, stride: 2, lead: 16 },
    // Odd extents, a lead that breaks the alignment, more stride than pixels.
    Spec { x: [1, 5, 7, 16], k: 24, stride: 2, lead: 4 },
    Spec { x: [3, 7, 4, 5], k: 11, stride: 3, lead: 3 },
    Spec { x: [1, 3, 3, 8], k: 40, stride: 5, lead: 32 },
    Spec { x: [2, 3, 2, 24], k: 24, stride: 1, lead: 0 },
];
