//! Softmax cross-entropy with label smoothing, averaged over the batch.
//!
//! ```text
//! target[n,k] = (1 - smoothing) [k = label n] + smoothing / K
//! loss        = mean over n of -sum_k target[n,k] log softmax(logits)[n,k]
//! dlogits     = grad_scale / N * (softmax(logits) - target)          times the loss scale, if there is one
//! ```
//!
//! `correct` counts the images whose largest logit (the first of equal ones) is the label. An image with a NaN logit
//! never counts: torch's `argmax` takes the NaN for the largest, so that a network of NaNs would be right on all images
//! of class 0.
//!
//! Non-finite logits are treated as in torch. A logit of minus infinity is a class of probability 0: its gradient is
//! the target's part alone. It adds nothing to the loss if its target is 0 (0 times infinity is 0 here), else the loss
//! is infinite. Loss and gradient of an image are NaN if a logit is NaN or plus infinity, if all are minus infinity, or
//! if the label is no class.
//!
//! ```
//! use residuum::ops::cross_entropy::{CrossEntropy, Fwd, Spec};
//! use residuum::ops::{HostIo, HostMut, HostOp, HostRef};
//!
//! let op = CrossEntropy::new(Spec { n: 1, classes: 2, smoothing: 0.0, grad_scale: 1.0 })?.fwd();
//! let (logits, labels) = (HostRef::Real(&[3.0, 3.0]), HostRef::Index(&[0]));
//! let (mut mean, mut count) = ([f64::NAN], [f64::NAN]);
//! let (loss, correct) = (HostMut::Real(&mut mean), HostMut::Real(&mut count));
//! op.reference(&mut HostIo::of(Fwd { logits, labels, loss, correct }));
//! assert!((mean[0] - 2f64.ln()).abs() < 1e-12 && count == [1.0]);
//! # Ok::<(), residuum::Error>(())
//! ```

mod launch;
mod reference;

pub(crate) use launch::KERNELS;

use super::operands::{call, Call, Operands};
use super::{Gradient, Io, Op, Operator, Source};
use crate::device::{Launch, Target};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// The parameters of a loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// Images, N.
    pub n: usize,
    /// Classes, K.
    pub classes: usize,
    /// Label smoothing, in 0..1.
    pub smoothing: f64,
    /// A fixed factor of the gradient, to keep f16 gradients representable.
    pub grad_scale: f64,
}

/// A loss with a checked [`Spec`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    spec: Spec,
}

impl CrossEntropy {
    /// Fails without an image or a class, with smoothing outside 0..1, or if `grad_scale` is no positive normal f32.
    pub fn new(spec: Spec) -> Result<Self> {
        let Spec { n, classes, smoothing, grad_scale } = spec;
        Error::check(n > 0 && classes > 0, "cross_entropy", || format!("{n} images of {classes} classes"))?;
        let problem = || format!("{smoothing}, expected at least 0, less than 1");
        Error::check((0.0..1.0).contains(&smoothing), "smoothing", problem)?;
        let normal = (f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&grad_scale);
        let problem = || format!("{grad_scale:e}, expected a number from 1.2e-38 to 3.4e38");
        Error::check(normal, "gradient scale", problem)?;
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
    pub struct Fwd {
        reads {
            /// `[N,K]`.
            logits: I [one],
            /// `[N]`, i32: the class of each image.
            labels: I [one],
        }
        writes {
            /// `[1]`, f32: the mean loss.
            loss: O [one],
            /// `[1]`, f32: the number of images that are right.
            correct: O [one],
        }
    }

    /// The backward pass. The gradient of the loss is 1.
    pub struct Bwd {
        reads {
            /// `[N,K]`.
            logits: I [one],
            /// `[N]`, i32.
            labels: I [one],
            /// `[1]`, f32: a factor of the gradient that changes between runs, see `control::loss_scale`.
            loss_scale: Option<I> [maybe],
        }
        writes {
            /// The gradient of the logits, `[N,K]`.
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

    /// Forward: the loss of each image, and 1 if it is right.
    fn scratch_bytes(&self, _target: Target) -> usize {
        match self.pass {
            Pass::Fwd => 2 * self.loss.spec.n * size_of::<f32>(),
            Pass::Bwd(_) => 0,
        }
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
