//! Batch normalisation of `x[N,H,W,C]` over N, H and W, per channel.
//!
//! ```text
//! train  mean = sum x / m,  var = sum (x - mean)^2 / m,  invstd = 1 / sqrt(var + eps),  m = N*H*W
//!        y = gamma (x - mean) invstd + beta,  with `relu` max(y, 0)
//!        running_mean = (1 - momentum) running_mean + momentum mean
//!        running_var  = (1 - momentum) running_var  + momentum var m / (m - 1)
//! infer  y = gamma (x - running_mean) / sqrt(running_var + eps) + beta,  with `relu` max(y, 0)
//! fold   scale = share gamma / sqrt(running_var + eps),  shift = share beta + (bias - running_mean) scale
//! bwd    dbeta = sum dy,  dgamma = sum dy xhat,  xhat = (x - mean) invstd
//!        dx = gamma invstd (dy - dbeta / m - xhat dgamma / m)
//! ```
//!
//! The biased variance normalises, the unbiased one is stored (Ioffe and Szegedy, 2015; torch's convention). Everything
//! per channel is f32.
//!
//! ```
//! use residuum::ops::batch_norm::{BatchNorm, Infer, Spec};
//! use residuum::ops::{HostIo, HostMut, HostOp, HostRef};
//!
//! let op = BatchNorm::new(Spec { x: [1, 1, 2, 1], eps: 1e-5, momentum: 0.1 })?.infer(false);
//! let [x, gamma, beta, running_mean, running_var] =
//!     [&[5.0, 1.0][..], &[2.0], &[10.0], &[3.0], &[4.0 - 1e-5]].map(HostRef::Real);
//! let mut y = [f64::NAN; 2];
//! op.reference(&mut HostIo::of(Infer { x, gamma, beta, running_mean, running_var, y: HostMut::Real(&mut y) }));
//! assert_eq!(y, [12.0, 8.0]);
//! # Ok::<(), residuum::Error>(())
//! ```

mod host;
mod launch;
mod reference;

pub(super) use launch::band_moments;
pub(crate) use launch::KERNELS;
pub(super) use reference::mean_of;

use super::norm::merge::Bands;
use super::operands::call;
use super::{Call, Gradient, Io, Op, Operands, Operator, Source, Written};
use crate::device::{Launch, Target};
use crate::tensor::{is_addressable, TensorType};
use crate::{Error, Result};

/// The parameters of a batch norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// N, H, W, C of the input.
    pub x: [usize; 4],
    /// Added to the variance; 1e-5 in torchvision's residual networks.
    pub eps: f64,
    /// The weight of the batch in the running statistics; 0.1 in torch.
    pub momentum: f64,
}

/// A batch norm with a checked [`Spec`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    spec: Spec,
}

impl BatchNorm {
    /// Fails if an extent is 0 or too large, eps is not positive, or momentum is not in 0..=1.
    pub fn new(spec: Spec) -> Result<Self> {
        let check = |holds, problem: &dyn Fn() -> String| Error::check(holds, "batch_norm", problem);
        let Spec { x, eps, momentum } = spec;
        check(!x.contains(&0), &|| format!("input {x:?} has a zero extent"))?;
        check(is_addressable(&x), &|| format!("input {x:?}, more than any memory holds"))?;
        check(eps > 0.0 && eps.is_finite() && (0.0..=1.0).contains(&momentum), &|| {
            format!("eps {eps} and momentum {momentum}, expected eps > 0 and momentum in 0..=1")
        })?;
        Ok(Self { spec })
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// x and y, `[N,H,W,C]`.
    pub fn x(&self) -> TensorType {
        TensorType::real(self.spec.x)
    }

    /// A tensor `[C]`, f32.
    pub fn per_channel(&self) -> TensorType {
        TensorType::stat([self.spec.x[3]])
    }

    /// Elements per channel: N H W.
    pub fn count(&self) -> usize {
        self.spec.x[..3].iter().product()
    }

    /// The training pass. Fails if a channel has one element, whose unbiased variance does not exist.
    pub fn train(self, relu: bool) -> Result<Node> {
        let problem = || format!("training on {:?}: at least 2 elements per channel are needed", self.spec.x);
        Error::check(self.count() >= 2, "batch_norm", problem)?;
        Ok(Node { bn: self, pass: Pass::Train { relu } })
    }

    /// The pass with running statistics.
    pub fn infer(self, relu: bool) -> Node {
        Node { bn: self, pass: Pass::Infer { relu } }
    }

    /// Folding into the convolution before it, with or without a bias; `share` multiplies y.
    pub fn fold(self, bias: bool, share: f64) -> Node {
        let form = Fold { bias: bias.then_some(()), ..Fold::default() };
        Node { bn: self, pass: Pass::Fold { form, share } }
    }

    /// The backward pass; with `relu` also through the ReLU after the batch norm.
    pub fn bwd(self, relu: bool) -> Node {
        Node { bn: self, pass: Pass::Bwd(Bwd { y: relu.then_some(()), ..Bwd::default() }) }
    }
}

call! {
    /// The operands of the training pass.
    pub struct Train {
        reads {
            /// `[N,H,W,C]`.
            x: I [one],
            /// `[C]`.
            gamma: I [one],
            /// `[C]`.
            beta: I [one],
        }
        writes {
            /// `[N,H,W,C]`.
            y: O [one],
            /// `[C]`: the batch's mean.
            mean: O [one],
            /// `[C]`: `1 / sqrt(var + eps)`.
            invstd: O [one],
            /// `[C]`; updated.
            running_mean: O [one],
            /// `[C]`; updated.
            running_var: O [one],
        }
    }

    /// The operands of the pass with running statistics.
    pub struct Infer {
        reads {
            /// `[N,H,W,C]`.
            x: I [one],
            /// `[C]`.
            gamma: I [one],
            /// `[C]`.
            beta: I [one],
            /// `[C]`.
            running_mean: I [one],
            /// `[C]`.
            running_var: I [one],
        }
        writes {
            /// `[N,H,W,C]`.
            y: O [one],
        }
    }

    /// The operands of folding, each `[C]`.
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
            /// The bias of the convolution.
            bias: Option<I> [maybe],
        }
        writes {
            /// `[C]`.
            scale: O [one],
            /// `[C]`.
            shift: O [one],
        }
    }

    /// The operands of the backward pass.
    pub struct Bwd {
        reads {
            /// `[N,H,W,C]`.
            dy: I [one],
            /// `[N,H,W,C]`.
            x: I [one],
            /// `[C]`.
            gamma: I [one],
            /// `[C]`: the batch's mean.
            mean: I [one],
            /// `[C]`: `1 / sqrt(var + eps)`.
            invstd: I [one],
            /// `[N,H,W,C]`, if a ReLU follows: dy counts as 0 where y is 0 or less.
            y: Option<I> [maybe],
        }
        writes {
            /// `[N,H,W,C]`; may be accumulated.
            dx: O [one],
            /// `[C]`.
            dgamma: O [one],
            /// `[C]`.
            dbeta: O [one],
        }
    }
}

/// One pass of a batch norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pass {
    /// [`Train`].
    Train {
        /// True if a ReLU follows.
        relu: bool,
    },
    /// [`Infer`].
    Infer {
        /// True if a ReLU follows.
        relu: bool,
    },
    /// [`Fold`].
    Fold {
        /// Its operands.
        form: Fold,
        /// The factor of y: 1, or the factor of a later op.
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
        let read = |name, ()| match name {
            "x" | "y" | "dy" => x().into(),
            _ => c().into(),
        };
        let written = |name, ()| match name {
            "y" => x().into(),
            "dx" => Written::accumulated(x()),
            "running_mean" | "running_var" => Written::updated(c()),
            _ => c().into(),
        };
        match self.pass {
            Pass::Train { .. } => Operands::of(Train::default().map(read, written)),
            Pass::Infer { .. } => Operands::of(Infer::default().map(read, written)),
            Pass::Fold { form, .. } => Operands::of(form.map(read, written)),
            Pass::Bwd(form) => Operands::of(form.map(read, written)),
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

    /// Two numbers per band and channel.
    fn scratch_bytes(&self, target: Target) -> usize {
        match self.pass {
            Pass::Train { .. } | Pass::Bwd { .. } => 2 * Bands::of(self.bn.spec.x, target.dtype).bytes(),
            Pass::Infer { .. } | Pass::Fold { .. } => 0,
        }
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
