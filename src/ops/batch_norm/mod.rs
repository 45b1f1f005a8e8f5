//! Batch normalisation over N, H and W, per channel.
//!
//! ```text
//! train  mean = sum x / m,  var = sum (x - mean)^2 / m,  invstd = 1 / sqrt(var + eps),  m = N*H*W
//!        y = gamma (x - mean) invstd + beta,  optionally max(y, 0)
//!        running_mean = (1 - momentum) running_mean + momentum mean
//!        running_var  = (1 - momentum) running_var  + momentum var m / (m - 1)
//! infer  y = gamma (x - running_mean) / sqrt(running_var + eps) + beta
//! fold   scale = share gamma / sqrt(running_var + eps),  shift = share beta + (bias - running_mean) scale
//! bwd    dbeta = sum dy,  dgamma = sum dy xhat,  xhat = (x - mean) invstd
//!        dx = gamma invstd (dy - dbeta / m - xhat dgamma / m)
//! ```
//!
//! It normalises with the biased variance and stores the unbiased one (Ioffe and Szegedy, 2015; torch's convention).

mod host;
mod launch;
mod reference;

pub(crate) use launch::KERNELS;
pub(super) use launch::{band_moments, band_strips};
pub(super) use reference::mean_of;

use super::{Gradient, Io, Op, Operator, Source};
use crate::device::{Launch, Target};
use crate::tensor::{is_addressable, TensorType};
use crate::{Error, Result};

/// What a batch norm is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// N, H, W, C of the input.
    pub x: [usize; 4],
    /// Added to the variance; 1e-5 in torchvision's residual networks.
    pub eps: f64,
    /// The weight of the new batch in the running statistics; 0.1 in torch.
    pub momentum: f64,
}

/// A batch norm whose spec has been checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    spec: Spec,
}

impl BatchNorm {
    /// Checks `spec`: no extent 0, eps positive, momentum in 0..=1.
    pub fn new(spec: Spec) -> Result<Self> {
        if spec.x.contains(&0) {
            return Err(Error::invalid("batch_norm", format!("input {:?} has a zero extent", spec.x)));
        }
        if !is_addressable(&spec.x) {
            return Err(Error::invalid("batch_norm", format!("input {:?}, more than any memory holds", spec.x)));
        }
        if !(spec.eps > 0.0 && spec.eps.is_finite() && (0.0..=1.0).contains(&spec.momentum)) {
            return Err(Error::invalid(
                "batch_norm",
                format!("eps {} and momentum {}, expected eps > 0 and momentum in 0..=1", spec.eps, spec.momentum),
            ));
        }
        Ok(Self { spec })
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The input and output.
    pub fn x(&self) -> TensorType {
        TensorType::real(self.spec.x)
    }

    /// A tensor with a number for each channel.
    pub fn per_channel(&self) -> TensorType {
        TensorType::stat([self.spec.x[3]])
    }

    /// Elements of a channel: N H W.
    pub fn count(&self) -> usize {
        self.spec.x[..3].iter().product()
    }

    /// The training pass. Fails where a channel has a single element: its unbiased variance does not exist.
    pub fn train(self, relu: bool) -> Result<Node> {
        if self.count() < 2 {
            return Err(Error::invalid(
                "batch_norm",
                format!("training on {:?}: at least 2 elements per channel are needed", self.spec.x),
            ));
        }
        Ok(Node { bn: self, pass: Pass::Train { relu } })
    }
}

/// One pass of a batch norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pass {
    /// `x, gamma, beta -> y, mean, invstd, running_mean (updated), running_var (updated)`.
    Train {
        /// Whether a ReLU follows.
        relu: bool,
    },
    /// `x, gamma, beta, running_mean, running_var -> y`.
    Infer {
        /// Whether a ReLU follows.
        relu: bool,
    },
    /// `gamma, beta, running_mean, running_var [, bias] -> scale, shift`.
    Fold {
        /// Whether the convolution before it has a bias.
        bias: bool,
        /// What y is multiplied by: 1, or what a later op would multiply it by.
        share: f64,
    },
    /// `dy, x, gamma, mean, invstd [, y] -> dx, dgamma, dbeta`; y where a ReLU followed.
    Bwd {
        /// Whether a ReLU followed: dy counts as 0 where y is 0 or less.
        relu: bool,
    },
}

/// A batch norm's pass in a graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    /// The batch norm.
    pub bn: BatchNorm,
    /// The pass.
    pub pass: Pass,
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match self.pass {
            Pass::Train { .. } => "batch_norm_train",
            Pass::Infer { .. } => "batch_norm_infer",
            Pass::Fold { .. } => "batch_norm_fold",
            Pass::Bwd { .. } => "batch_norm_bwd",
        }
    }

    fn inputs(&self) -> Vec<TensorType> {
        let (x, c) = (self.bn.x(), self.bn.per_channel());
        match self.pass {
            Pass::Train { .. } => vec![x, c.clone(), c],
            Pass::Infer { .. } => vec![x, c.clone(), c.clone(), c.clone(), c],
            Pass::Fold { bias, .. } => vec![c; 4 + usize::from(bias)],
            Pass::Bwd { relu } => {
                let mut types = vec![x.clone(), x.clone(), c.clone(), c.clone(), c];
                types.extend(relu.then_some(x));
                types
            }
        }
    }

    fn outputs(&self) -> Vec<TensorType> {
        let (x, c) = (self.bn.x(), self.bn.per_channel());
        match self.pass {
            Pass::Train { .. } => vec![x, c.clone(), c.clone(), c.clone(), c],
            Pass::Infer { .. } => vec![x],
            Pass::Fold { .. } => vec![c.clone(), c],
            Pass::Bwd { .. } => vec![x, c.clone(), c],
        }
    }

    fn updates(&self) -> &'static [usize] {
        match self.pass {
            Pass::Train { .. } => &[3, 4],
            _ => &[],
        }
    }

    fn accumulates(&self) -> &'static [usize] {
        match self.pass {
            Pass::Bwd { .. } => &[0],
            _ => &[],
        }
    }

    fn flops(&self) -> u64 {
        let elements = self.bn.x().shape.len() as u64;
        match self.pass {
            Pass::Train { .. } => 5 * elements,
            Pass::Infer { .. } => 2 * elements,
            Pass::Fold { .. } => 6 * self.bn.spec.x[3] as u64,
            Pass::Bwd { .. } => 8 * elements,
        }
    }

    fn gradient(&self, _needed: &[bool]) -> Result<Vec<Gradient>> {
        let Pass::Train { relu } = self.pass else {
            return Err(Error::unsupported(format!("gradient of {}", self.name()), "only the training pass has one"));
        };
        let mut sources =
            vec![Source::Grad(0), Source::Input(0), Source::Input(1), Source::Output(1), Source::Output(2)];
        sources.extend(relu.then_some(Source::Output(0)));
        let op = Op::BatchNorm(Self { bn: self.bn, pass: Pass::Bwd { relu } });
        Ok(vec![Gradient::Node { op, sources, targets: vec![Some(0), Some(1), Some(2)] }])
    }

    fn scratch_bytes(&self, target: Target) -> usize {
        launch::scratch_bytes(self, target)
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
