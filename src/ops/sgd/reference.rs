//! The step in plain loops.
use super::Sgd;
use crate::tensor::Real;

/// One step on the host: updates `param` and `velocity`. The elements below `decay_end` decay; `first` at the first step.
pub fn step<T: Real>(
    _sgd: &Sgd,
    _lr: f64,
    _first: bool,
    _decay_end: usize,
    _param: &mut [T],
    _grad: &[T],
    _velocity: &mut [T],
) {
    unimplemented!()
}
