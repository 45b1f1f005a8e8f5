//! The op in plain loops.

use super::{Bwd, Fwd, Node, Pass, Spec};
use crate::ops::{HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        let Spec { n, classes, smoothing, grad_scale } = *self.loss.spec();
        let on = T::from_f64(1.0 - smoothing);
        let everywhere = T::from_f64(smoothing / classes as f64);
        // A label that is no class makes its image's loss and gradient NaN.
        let of_label = |logits: &[T], label: i32| usize::try_from(label).ok().and_then(|k| logits.get(k).copied());
        let nan = T::from_f64(f64::NAN);
        match self.pass {
            Pass::Fwd => {
                let Fwd { logits, labels, loss: mut mean, correct: mut count } = io.bind(Fwd::default());
                let (mut loss, mut correct) = (T::ZERO, 0);
                for (logits, &label) in logits.real().chunks_exact(classes).zip(labels.index()) {
                    let log_sum = log_sum_exp(logits);
                    loss += of_label(logits, label).map_or(nan, |l| on * (log_sum - l));
                    // Without smoothing the other classes do not count, even if infinite: 0 times infinity is 0.
                    if smoothing != 0.0 {
                        loss += everywhere * logits.iter().map(|&l| log_sum - l).sum();
                    }
                    correct += usize::from(first_largest(logits).is_some_and(|k| k as i32 == label));
                }
                mean.real().fill(loss / T::from_usize(n));
                count.real().fill(T::from_usize(correct));
            }
            Pass::Bwd(form) => {
                let Bwd { logits, labels, loss_scale, mut dlogits } = io.bind(form);
                let loss_scale = loss_scale.map_or(T::ONE, |scale| scale.real()[0]);
                let scale = T::from_f64(grad_scale / n as f64) * loss_scale;
                let images = logits.real().chunks_exact(classes).zip(labels.index());
                for ((logits, &label), d) in images.zip(dlogits.real().chunks_exact_mut(classes)) {
                    let log_sum = log_sum_exp(logits);
                    let on = of_label(logits, label).map_or(nan, |_| on);
                    let others = on * T::ZERO;
                    for k in 0..classes {
                        let target = everywhere + if k as i32 == label { on } else { others };
                        d[k] = scale * ((logits[k] - log_sum).exp() - target);
                    }
                }
            }
        }
    }
}

/// log of the sum of e^l, with the largest logit factored out against overflow.
fn log_sum_exp<T: Real>(logits: &[T]) -> T {
    let largest = logits.iter().fold(T::LOWEST, |a, &b| a.maximum(b));
    largest + logits.iter().map(|&l| (l - largest).exp()).sum::<T>().ln()
}

/// The index of the largest logit, the first of equal ones; `None` if one is NaN.
fn first_largest<T: Real>(logits: &[T]) -> Option<usize> {
    if logits.iter().any(|l| l.partial_cmp(l).is_none()) {
        return None;
    }
    (0..logits.len()).reduce(|best, k| if logits[k] > logits[best] { k } else { best })
}
