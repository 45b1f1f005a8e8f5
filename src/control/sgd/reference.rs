//! The step in plain loops.

use super::{Sgd, Spec};
use crate::device::cpu::vectorized;
use crate::ops::parallel::{in_lanes, split};
use crate::tensor::Real;

/// Elements per task.
const RUN: usize = 1 << 15;

/// The inputs that change from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepState {
    /// The learning rate.
    pub lr: f64,
    /// The factor of the gradients, positive and finite.
    pub grad_scale: f64,
    /// True at the first step: the velocity is not read.
    pub first: bool,
}

/// One step on the host: updates `param` and `velocity`. Elements below `decay_end` decay.
pub fn step<T: Real>(sgd: &Sgd, state: StepState, decay_end: usize, param: &mut [T], grad: &[T], velocity: &mut [T]) {
    let decay_end = decay_end.min(param.len());
    let (decaying, free) = param.split_at_mut(decay_end);
    let (decaying_velocity, free_velocity) = velocity.split_at_mut(decay_end);
    let halves = [(decaying, decaying_velocity, 0), (free, free_velocity, decay_end)];
    for (param, velocity, start) in halves {
        let weight_decay = if start < decay_end { sgd.spec.weight_decay } else { 0.0 };
        let spec = Spec { weight_decay, ..sgd.spec };
        let state = StepState { first: state.first || !sgd.has_velocity(), ..state };
        let lanes = split(param, RUN).into_iter().zip(split(velocity, RUN)).collect();
        in_lanes(lanes, |i, (param, velocity): (&mut [T], &mut [T])| {
            vectorized(|| run(&spec, state, param, &grad[start + i * RUN..], velocity));
        });
    }
}

#[inline(always)]
fn run<T: Real>(spec: &Spec, state: StepState, param: &mut [T], grad: &[T], velocity: &mut [T]) {
    let [momentum, keep, decay, scale, lr] =
        [spec.momentum, 1.0 - spec.dampening, spec.weight_decay, state.grad_scale, state.lr].map(T::from_f64);
    for ((p, &grad), v) in param.iter_mut().zip(grad).zip(velocity) {
        let mut g = grad / scale;
        if spec.weight_decay > 0.0 {
            g += decay * *p;
        }
        *v = if state.first { g } else { momentum * *v + keep * g };
        *p -= lr * if spec.nesterov { g + momentum * *v } else { *v };
    }
}
