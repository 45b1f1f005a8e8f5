//! Softmax cross-entropy with label smoothing, averaged over the batch.
//!
//! ```text
//! target[n,k] = (1 - smoothing) [k = label n] + smoothing / K
//! loss        = mean over n of -sum_k target[n,k] log softmax(logits)[n,k]
//! dlogits     = grad_scale / N * (softmax(logits) - target)          times the loss scale, where there is one
//! ```
//!
//! `correct` counts the images whose largest logit (the first of equal ones) is the label. An image with a NaN among
//! its logits is never counted: torch's `argmax` would take the NaN for the largest, and a network that gives nothing
//! but NaN would be right on every image of its first class.
//!
//! What is not finite is treated as torch does. A logit of minus infinity is a class of probability 0: its gradient is
//! that of the target alone, and it adds nothing to the loss where its target is 0 (0 times infinity is 0 here); where
//! it is the label's, or with smoothing, the loss is infinite. With a NaN, plus infinity, or nothing but minus infinity
//! among the logits of an image its loss and gradient are NaN. A label that is no class does the same.

mod launch;
mod reference;

pub(crate) use launch::KERNELS;

use super::operands::{call, Call, Operands};
use super::{Gradient, Io, Op, Operator, Source};
use crate::device::{Launch, Target};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// What a loss is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// Images, N.
    pub n: usize,
    /// Classes, K.
    pub classes: usize,
    /// The share of the target that is spread evenly over all classes, in 0..1.
    pub smoothing: f64,
    /// What the gradient is multiplied by: a fixed loss scale that keeps f16 gradients representable.
    pub grad_scale: f64,
}

/// A loss whose spec has been checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    spec: Spec,
}

impl CrossEntropy {
    /// Checks `spec`: at least one image and class, smoothing in 0..1, a positive scale in the
    /// range of f32's normal numbers.
    pub fn new(spec: Spec) -> Result<Self> {
        if spec.n == 0 || spec.classes == 0 {
            return Err(Error::invalid("cross_entropy", format!("{} images of {} classes", spec.n, spec.classes)));
        }
        if !(0.0..1.0).contains(&spec.smoothing) {
            let problem = format!("{}, expected at least 0, less than 1", spec.smoothing);
            return Err(Error::invalid("smoothing", problem));
        }
        if !(f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&spec.grad_scale) {
            let problem = format!("{:e}, expected a number from 1.2e-38 to 3.4e38", spec.grad_scale);
            return Err(Error::invalid("gradient scale", problem));
        }
        Ok(Self { spec })
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The forward pass.
    pub fn fwd(self) -> Node {
        Node { loss: self, pass: Pass::Fwd }
    }
}

call! {
    /// The forward pass.
    #[derive(Copy)]
    pub struct Fwd {
        reads {
            /// `[N,K]`.
            logits: I [one],
            /// `[N]`.
            labels: I [one],
        }
        writes {
            /// `[1]`.
            loss: O [one],
            /// `[1]`: how many images were right.
            correct: O [one],
        }
    }
}

call! {
    /// The backward pass. The incoming gradient is 1 by definition: a loss is where differentiation starts.
    #[derive(Copy)]
    pub struct Bwd {
        reads {
            /// `[N,K]`.
            logits: I [one],
            /// `[N]`.
            labels: I [one],
            /// `[1]`: multiplies the gradient, and moves between runs, see `control::loss_scale`.
            loss_scale: Option<I> [maybe],
        }
        writes {
            /// The gradient of the logits.
            dlogits: O [one],
        }
    }
}

/// One pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// [`Fwd`].
    Fwd,
    /// [`Bwd`].
    Bwd(Bwd),
}

/// A loss's pass in a graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    /// The loss.
    pub loss: CrossEntropy,
    /// The pass.
    pub pass: Pass,
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match self.pass {
            Pass::Fwd => "cross_entropy_fwd",
            Pass::Bwd(_) => "cross_entropy_bwd",
        }
    }

    fn operands(&self) -> Operands {
        let Spec { n, classes, .. } = self.loss.spec;
        let (logits, labels) = (TensorType::real([n, classes]), TensorType::index([n]).into());
        let number = || TensorType::stat([1]);
        match self.pass {
            Pass::Fwd => {
                Operands::of(Fwd { logits: logits.into(), labels, loss: number().into(), correct: number().into() })
            }
            Pass::Bwd(Bwd { loss_scale, .. }) => Operands::of(Bwd {
                logits: logits.clone().into(),
                labels,
                loss_scale: loss_scale.map(|()| number().into()),
                dlogits: logits.into(),
            }),
        }
    }

    fn flops(&self) -> u64 {
        5 * (self.loss.spec.n * self.loss.spec.classes) as u64
    }

    fn gradient(&self, _needed: &[bool]) -> Result<Vec<Gradient>> {
        let op = Op::CrossEntropy(Self { loss: self.loss, pass: Pass::Bwd(Bwd::default()) });
        let at = <Fwd>::default().places();
        let (logits, labels) = (Source::Input(at.logits), Source::Input(at.labels));
        Ok(vec![Gradient::node(op, Bwd { logits, labels, loss_scale: None, dlogits: Some(at.logits) })])
    }

    fn scratch_bytes(&self, target: Target) -> usize {
        launch::scratch_bytes(self, target)
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
