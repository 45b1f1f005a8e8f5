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

use super::operands::call;
use super::{Call, Gradient, Io, Op, Operands, Operator, Source, Written};
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

    /// The pass on running statistics.
    pub fn infer(self, relu: bool) -> Node {
        Node { bn: self, pass: Pass::Infer { relu } }
    }

    /// Folding after a convolution, with a bias or without; y is multiplied by `share`.
    pub fn fold(self, bias: bool, share: f64) -> Node {
        let form = Fold { bias: bias.then_some(()), ..Fold::default() };
        Node { bn: self, pass: Pass::Fold { form, share } }
    }

    /// The backward pass; with `relu` that of the batch norm and the ReLU behind it.
    pub fn bwd(self, relu: bool) -> Node {
        Node { bn: self, pass: Pass::Bwd(Bwd { y: relu.then_some(()), ..Bwd::default() }) }
    }
}

call! {
    /// The operands of the training pass.
    pub struct Train {
        reads {
            /// The input.
            x: I [one],
            /// A number a channel.
            gamma: I [one],
            /// A number a channel.
            beta: I [one],
        }
        writes {
            /// The output.
            y: O [one],
            /// The batch's mean of each channel.
            mean: O [one],
            /// `1 / sqrt(var + eps)` of each channel.
            invstd: O [one],
            /// Updated.
            running_mean: O [one],
            /// Updated.
            running_var: O [one],
        }
    }
}

call! {
    /// The operands of the pass on running statistics.
    pub struct Infer {
        reads {
            /// The input.
            x: I [one],
            /// A number a channel.
            gamma: I [one],
            /// A number a channel.
            beta: I [one],
            /// A number a channel.
            running_mean: I [one],
            /// A number a channel.
            running_var: I [one],
        }
        writes {
            /// The output.
            y: O [one],
        }
    }
}

call! {
    /// The operands of folding; all hold a number a channel.
    pub struct Fold {
        reads {
            /// The batch norm's gamma.
            gamma: I [one],
            /// Its beta.
            beta: I [one],
            /// Its running mean.
            running_mean: I [one],
            /// Its running variance.
            running_var: I [one],
            /// The bias of the convolution before it.
            bias: Option<I> [maybe],
        }
        writes {
            /// `scale[c]`.
            scale: O [one],
            /// `shift[c]`.
            shift: O [one],
        }
    }
}

call! {
    /// The operands of the backward pass.
    pub struct Bwd {
        reads {
            /// The gradient of the output.
            dy: I [one],
            /// The input.
            x: I [one],
            /// A number a channel.
            gamma: I [one],
            /// The batch's mean of each channel.
            mean: I [one],
            /// `1 / sqrt(var + eps)` of each channel.
            invstd: I [one],
            /// The output, if a ReLU followed: dy counts as 0 where y is 0 or less.
            y: Option<I> [maybe],
        }
        writes {
            /// The gradient of the input.
            dx: O [one],
            /// A number a channel.
            dgamma: O [one],
            /// A number a channel.
            dbeta: O [one],
        }
    }
}

impl Copy for Fold {}
impl Copy for Bwd {}

/// One pass of a batch norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pass {
    /// [`Train`].
    Train {
        /// Whether a ReLU follows.
        relu: bool,
    },
    /// [`Infer`].
    Infer {
        /// Whether a ReLU follows.
        relu: bool,
    },
    /// [`Fold`].
    Fold {
        /// Its operands.
        form: Fold,
        /// What y is multiplied by: 1, or what a later op would multiply it by.
        share: f64,
    },
    /// [`Bwd`].
    Bwd(Bwd),
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

    fn operands(&self) -> Operands {
        let (x, c) = (|| self.bn.x(), || self.bn.per_channel());
        match self.pass {
            Pass::Train { .. } => Operands::of(Train {
                x: x().into(),
                gamma: c().into(),
                beta: c().into(),
                y: x().into(),
                mean: c().into(),
                invstd: c().into(),
                running_mean: Written::updated(c()),
                running_var: Written::updated(c()),
            }),
            Pass::Infer { .. } => Operands::of(Infer {
                x: x().into(),
                gamma: c().into(),
                beta: c().into(),
                running_mean: c().into(),
                running_var: c().into(),
                y: x().into(),
            }),
            Pass::Fold { form, .. } => Operands::of(form.map(|_, ()| c().into(), |_, ()| c().into())),
            Pass::Bwd(form) => Operands::of(Bwd {
                dy: x().into(),
                x: x().into(),
                gamma: c().into(),
                mean: c().into(),
                invstd: c().into(),
                y: form.y.map(|()| x().into()),
                dx: Written::accumulated(x()),
                dgamma: c().into(),
                dbeta: c().into(),
            }),
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
        let at = Train::<()>::default().places();
        let bwd = Bwd {
            dy: Source::Grad(at.y),
            x: Source::Input(at.x),
            gamma: Source::Input(at.gamma),
            mean: Source::Output(at.mean),
            invstd: Source::Output(at.invstd),
            y: relu.then_some(Source::Output(at.y)),
            dx: Some(at.x),
            dgamma: Some(at.gamma),
            dbeta: Some(at.beta),
        };
        Ok(vec![Gradient::node(Op::BatchNorm(self.bn.bwd(relu)), bwd)])
    }

    fn scratch_bytes(&self, target: Target) -> usize {
        launch::scratch_bytes(self, target)
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
