//! The op in plain loops.

use super::{Node, Pass, Spec};
use crate::ops::{HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        let Spec { n, classes, smoothing, grad_scale } = *self.loss.spec();
        let (logits, labels) = (io.inputs[0].real(), io.inputs[1].index());
        let on = T::from_f64(1.0 - smoothing);
        let everywhere = T::from_f64(smoothing / classes as f64);
        let target = |label: i32, k: usize| everywhere + if k as i32 == label { on } else { T::ZERO };
        let images = logits.chunks_exact(classes).zip(labels);
        match self.pass {
            Pass::Fwd => {
                let (mut loss, mut correct) = (T::ZERO, 0);
                for (logits, &label) in images {
                    let log_sum = log_sum_exp(logits);
                    loss += logits.iter().enumerate().map(|(k, &l)| target(label, k) * (log_sum - l)).sum();
                    correct += usize::from(first_largest(logits) as i32 == label);
                }
                let [out, count] = io.reals();
                out[0] = loss / T::from_usize(n);
                count[0] = T::from_usize(correct);
            }
            Pass::Bwd | Pass::ScaledBwd => {
                let loss_scale = io.inputs.get(2).map_or(T::ONE, |scale| scale.real()[0]);
                let scale = T::from_f64(grad_scale / n as f64) * loss_scale;
                let [dlogits] = io.reals();
                for ((logits, &label), d) in images.zip(dlogits.chunks_exact_mut(classes)) {
                    let log_sum = log_sum_exp(logits);
                    for k in 0..classes {
                        d[k] = scale * ((logits[k] - log_sum).exp() - target(label, k));
                    }
                }
            }
        }
    }
}

/// log of the sum of e^l. The largest logit is taken out first, so that nothing overflows.
fn log_sum_exp<T: Real>(logits: &[T]) -> T {
    let largest = logits.iter().fold(T::LOWEST, |a, &b| a.maximum(b));
    largest + logits.iter().map(|&l| (l - largest).exp()).sum::<T>().ln()
}

/// The index of the largest logit, the first of equal ones.
fn first_largest<T: Real>(logits: &[T]) -> usize {
    (1..logits.len()).fold(0, |best, k| if logits[k] > logits[best] { k } else { best })
}
