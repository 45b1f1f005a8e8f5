//! Batch norm ([`batch_norm`](super::batch_norm)) in training, in pieces without passes over memory of their own: the
//! producer of y leaves its moments, the readers of the activation apply scale and shift as they load, the producer of
//! the gradient leaves two sums per channel, and the readers of the gradient correct it as they load.
//!
//! ```text
//! moments       mean = sum y / m,  var = sum (y - mean)^2 / m,  m = N*H*W
//! affine        scale = gamma / sqrt(var + eps),  shift = beta - mean scale;  running statistics as in batch_norm
//! activation    z = y scale + shift, or max(y scale + shift, 0)
//! gradient      g = 0 where z <= 0 else dz;  dy_sum = sum g,  dyx_sum = sum g (y - mean)
//! coefficients  dbeta = dy_sum,  dgamma = invstd dyx_sum
//!               a = gamma invstd,  b = -a invstd dgamma / m,  c = -a dbeta / m - b mean
//! correction    dy = a g + b y + c
//! ```
//!
//! Several batch norms of one y (DenseNet's concatenations) share its moments, and
//! `dy = sum a_i g_i + (sum b_i) y + sum c_i`: the gradients are accumulated, each `scaled` by a_i, and corrected once.
//!
//! ```
//! use residuum::ops::norm::{Measure, Node, Pass};
//! use residuum::ops::store::Moments;
//! use residuum::ops::{HostIo, HostMut, HostOp, HostRef};
//!
//! let (y, mut mean, mut var) = ([1.0, 5.0], [f64::NAN], [f64::NAN]);
//! let moments = Moments { mean: HostMut::Real(&mut mean), var: HostMut::Real(&mut var) };
//! Node { x: [1, 1, 2, 1], pass: Pass::Measure }.reference(&mut HostIo::of(Measure { y: HostRef::Real(&y), moments }));
//! assert_eq!((mean, var), ([3.0], [4.0]));
//! ```

pub(super) mod gradient;
mod launch;
pub mod merge;
mod reference;

pub(crate) use launch::KERNELS;
pub(super) use launch::{measure, sums_shared};
pub(super) use reference::{gradient as reference_gradient, moments as reference_moments};

use super::operands::call;
use super::store::{Mask, Moments, Sums};
use super::{Call, Io, Operands, Operator, Written};
use crate::device::{Launch, Target};
use crate::tensor::TensorType;
use crate::Result;

call! {
    /// The moments of y, if its producer cannot leave them.
    pub struct Measure {
        reads {
            /// `[N,H,W,C]`.
            y: I [one],
        }
        writes {
            /// The moments of y.
            moments: Moments<O> [group],
        }
    }

    /// Scale, shift and running statistics of a batch norm, each operand `[C]`. A channel needs at least 2 elements, as
    /// in [`BatchNorm::train`](super::batch_norm::BatchNorm::train).
    pub struct Scale {
        reads {
            /// Gamma.
            gamma: I [one],
            /// Beta.
            beta: I [one],
            /// The moments of y.
            moments: Moments<I> [group],
        }
        writes {
            /// `gamma / sqrt(var + eps)`.
            scale: O [one],
            /// `beta - mean scale`.
            shift: O [one],
            /// Updated.
            running_mean: O [one],
            /// Updated.
            running_var: O [one],
        }
    }

    /// Masks a gradient and sums it, if its producer cannot.
    pub struct Gradient {
        reads {
            /// `[N,H,W,C]`.
            dz: I [one],
            /// The mask.
            mask: Mask<I> [group],
        }
        writes {
            /// `[N,H,W,C]`; may be accumulated.
            g: O [one],
            /// The sums of g.
            sums: Sums<O> [group],
        }
    }

    /// The gradients of gamma and beta, and the correction; each operand is `[C]`.
    ///
    /// Without `a` the gradients were `scaled` and accumulated, and b and c may be accumulated.
    pub struct Coefficients {
        reads {
            /// The sum of g.
            dy_sum: I [one],
            /// The sum of `g (y - mean)`.
            dyx_sum: I [one],
            /// Gamma.
            gamma: I [one],
            /// The moments of y.
            moments: Moments<I> [group],
        }
        writes {
            /// The gradient of gamma.
            dgamma: O [one],
            /// The gradient of beta.
            dbeta: O [one],
            /// a of the correction.
            a: Option<O> [maybe],
            /// b of the correction.
            b: O [one],
            /// c of the correction.
            c: O [one],
            /// The gradient of the bias of the convolution before y: the sum of dy, `a dy_sum + m (b mean + c)`, which
            /// is 0 except for rounding.
            dbias: Option<O> [maybe],
        }
    }
}

/// One piece.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pass {
    /// [`Measure`]: the op `norm_moments`.
    Measure,
    /// [`Scale`]: the op `norm_affine`.
    Scale {
        /// Added to the variance.
        eps: f64,
        /// The weight of the batch in the running statistics.
        momentum: f64,
    },
    /// [`Gradient`].
    Gradient(Gradient),
    /// [`Coefficients`].
    Coefficients {
        /// Its operands.
        form: Coefficients,
        /// Added to the variance.
        eps: f64,
    },
}

/// A piece of a batch norm in a graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    /// N, H, W, C of the batch norm's input.
    pub x: [usize; 4],
    /// The piece.
    pub pass: Pass,
}

impl Node {
    /// Elements per channel.
    fn count(&self) -> usize {
        self.x[..3].iter().product()
    }
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match self.pass {
            Pass::Measure => "norm_moments",
            Pass::Scale { .. } => "norm_affine",
            Pass::Gradient(_) => "norm_gradient",
            Pass::Coefficients { .. } => "norm_coefficients",
        }
    }

    fn operands(&self) -> Operands {
        let (y, number) = (TensorType::real(self.x), || TensorType::stat([self.x[3]]));
        let read = |_, ()| number().into();
        match self.pass {
            Pass::Measure => Operands::of(Measure::default().map(|_, ()| y.clone().into(), |_, ()| number().into())),
            Pass::Scale { .. } => {
                let written = |name, ()| match name {
                    "running_mean" | "running_var" => Written::updated(number()),
                    _ => number().into(),
                };
                Operands::of(Scale::default().map(read, written))
            }
            Pass::Gradient(Gradient { mask, .. }) => Operands::of(Gradient {
                dz: y.clone().into(),
                mask: mask.types(self.x),
                g: Written::accumulated(y).in_place(),
                sums: mask.sum_types(self.x),
            }),
            Pass::Coefficients { form, .. } => {
                let written = |name, ()| match name {
                    "b" | "c" if form.a.is_none() => Written::accumulated(number()),
                    _ => number().into(),
                };
                Operands::of(form.map(read, written))
            }
        }
    }

    fn flops(&self) -> u64 {
        let (elements, channels) = (self.x.iter().product::<usize>() as u64, self.x[3] as u64);
        match self.pass {
            Pass::Measure => 3 * elements,
            Pass::Gradient(_) => 6 * elements,
            Pass::Scale { .. } | Pass::Coefficients { .. } => 12 * channels,
        }
    }

    fn scratch_bytes(&self, target: Target) -> usize {
        match self.pass {
            Pass::Measure => merge::Bands::of(self.x, target.dtype).scratch_bytes(2),
            Pass::Gradient(Gradient { mask, .. }) => gradient::scratch_bytes(mask, self.x, target.dtype),
            Pass::Scale { .. } | Pass::Coefficients { .. } => 0,
        }
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
