//! Steps of the optimizer.

use residuum::ops::sgd::Spec;

const PLAIN: Spec = Spec { momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: 0.0, grad_scale: 1.0 };

/// Every spec, in numbers that f32 holds exactly.
pub const SPECS: &[Spec] = &[
    PLAIN,
    Spec { momentum: 0.5, weight_decay: 0.25, ..PLAIN },
    Spec { momentum: 0.75, dampening: 0.5, grad_scale: 4.0, ..PLAIN },
    Spec { momentum: 0.5, nesterov: true, weight_decay: 0.125, grad_scale: 1024.0, ..PLAIN },
];

/// As the papers': not exact.
pub const USUAL: Spec = Spec { momentum: 0.9, weight_decay: 1e-4, nesterov: true, ..PLAIN };

/// Elements, and how many of them decay.
pub const SIZES: &[[usize; 2]] = &[[4, 0], [8, 8], [1024, 7], [1028, 1025], [4100, 2048]];
