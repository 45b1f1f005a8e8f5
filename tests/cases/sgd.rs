//! Steps of the optimizer.

use residuum::control::sgd::Spec;

const PLAIN: Spec = Spec { momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: 0.0 };

/// Every spec, in numbers that f32 holds exactly.
pub const SPECS: &[Spec] = &[
    PLAIN,
    Spec { momentum: 0.5, weight_decay: 0.25, ..PLAIN },
    Spec { momentum: 0.75, dampening: 0.5, ..PLAIN },
    Spec { momentum: 0.5, nesterov: true, weight_decay: 0.125, ..PLAIN },
];

/// The papers' settings: not exact.
pub const USUAL: Spec = Spec { momentum: 0.9, weight_decay: 1e-4, nesterov: true, ..PLAIN };

/// The number of elements, and how many of them decay.
pub const SIZES: &[[usize; 2]] = &[[4, 0], [8, 8], [1024, 7], [1028, 1025], [4100, 2048]];

/// Momentum, dampening, weight decay and learning rate; Nesterov or not; and where `torch.optim.SGD` (2.11, f64) brings
/// a parameter from 1 with the gradients 1, -0.5 and 2.
pub const TORCH: &[([f64; 4], bool, [f64; 3])] = &[
    ([0.0, 0.0, 0.0, 0.1], false, [0.9, 0.9500000000000001, 0.75]),
    ([0.0, 0.0, 0.25, 0.1], false, [0.875, 0.903125, 0.680546875]),
    ([0.0, 0.5, 0.0, 0.1], false, [0.9, 0.9500000000000001, 0.75]),
    ([0.0, 0.5, 0.25, 0.1], false, [0.875, 0.903125, 0.680546875]),
    ([0.0, 0.5, 0.25, 0.0], false, [1.0, 1.0, 1.0]),
    ([0.0, 1.0, 0.0, 0.1], false, [0.9, 0.9500000000000001, 0.75]),
    ([0.0, 1.0, 0.25, 0.1], false, [0.875, 0.903125, 0.680546875]),
    ([0.5, 1.0, 0.0, 0.1], false, [0.9, 0.85, 0.825]),
    ([0.9, 0.0, 0.0, 0.1], false, [0.9, 0.86, 0.624]),
    ([0.9, 0.0, 0.25, 0.1], false, [0.875, 0.790625, 0.494921875]),
    ([0.9, 0.0, 0.0, 0.1], true, [0.81, 0.8240000000000001, 0.4116000000000001]),
    ([0.9, 0.0, 0.25, 0.1], true, [0.7625, 0.7200312499999999, 0.23976414062499987]),
    ([0.9, 0.0, 0.25, 0.0], true, [1.0, 1.0, 1.0]),
    ([0.9, 0.5, 0.0, 0.1], false, [0.9, 0.835, 0.6765]),
    ([0.9, 0.5, 0.25, 0.1], false, [0.875, 0.7765625, 0.57826171875]),
    ([0.9, 1.0, 0.0, 0.1], false, [0.9, 0.81, 0.7290000000000001]),
    ([0.9, 1.0, 0.25, 0.1], false, [0.875, 0.7625, 0.66125]),
    ([1.0, 0.0, 0.25, 0.1], false, [0.875, 0.778125, 0.46179687499999994]),
    ([1.0, 0.0, 0.25, 0.1], true, [0.75, 0.6875, 0.15937499999999996]),
    ([1.0, 1.0, 0.25, 0.1], false, [0.875, 0.75, 0.625]),
];
