//! Losses.

use residuum::ops::cross_entropy::Spec;

/// Every case.
pub const CASES: &[Spec] = &[
    Spec { n: 1, classes: 1, smoothing: 0.0, grad_scale: 1.0 },
    Spec { n: 2, classes: 10, smoothing: 0.0, grad_scale: 1.0 },
    Spec { n: 3, classes: 7, smoothing: 0.1, grad_scale: 128.0 },
    Spec { n: 1, classes: 257, smoothing: 0.1, grad_scale: 1.0 },
    Spec { n: 3, classes: 1000, smoothing: 0.0, grad_scale: 1024.0 },
    // More images than the threads that add up their losses.
    Spec { n: 300, classes: 3, smoothing: 0.2, grad_scale: 1.0 },
];
