//! The step in plain loops.

use super::Sgd;
use crate::tensor::Real;

/// One step on the host: updates `param` and `velocity`. The elements below `decay_end` decay; `first` at the first step.
pub fn step<T: Real>(
    sgd: &Sgd,
    lr: f64,
    first: bool,
    decay_end: usize,
    param: &mut [T],
    grad: &[T],
    velocity: &mut [T],
) {
    let spec = sgd.spec();
    let [momentum, keep, decay, scale, lr] =
        [spec.momentum, 1.0 - spec.dampening, spec.weight_decay, spec.grad_scale, lr].map(T::from_f64);
    for (i, ((p, &grad), v)) in param.iter_mut().zip(grad).zip(velocity).enumerate() {
        let mut g = grad / scale;
        if i < decay_end {
            g += decay * *p;
        }
        *v = if first { g } else { momentum * *v + keep * g };
        *p -= lr * if spec.nesterov { g + momentum * *v } else { *v };
    }
}
