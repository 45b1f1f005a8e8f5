//! Batch norm in training in pieces, so that none of them needs a pass over memory of its own: the producer of y leaves
//! its moments, the consumers of the activation apply scale and shift while they load, the producer of the gradient
//! leaves two sums a channel, and the consumers of the gradient apply the rest while they load. See
//! [`batch_norm`](super::batch_norm) for the whole.
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
//! Where several batch norms read the same y (a DenseNet's concatenation), they share its moments, and
//! `dy = sum a_i g_i + (sum b_i) y + sum c_i`: the sum over i is accumulated, `scaled` by each a_i, and corrected once.

pub(super) mod gradient;
mod launch;
pub mod merge;
mod reference;

pub(crate) use launch::KERNELS;
pub(super) use launch::{measure, sums_shared};
pub(super) use reference::{gradient as reference_gradient, moments as reference_moments};

use super::batch_norm::BatchNorm;
use super::operands::call;
use super::store::{Mask, Moments, Sums};
use super::{Io, Operands, Operator, Written};
use crate::device::{Launch, Target};
use crate::Result;

call! {
    /// `y -> mean, var`: where the producer of y cannot leave them.
    #[derive(Copy)]
    pub struct Measure {
        reads {
            /// `[N,H,W,C]`.
            y: I [one],
        }
        writes {
            /// Of y.
            moments: Moments<O> [group],
        }
    }
}

call! {
    /// Scale and shift of a batch norm, and its running statistics. As [`BatchNorm::train`], for at least 2 elements a
    /// channel.
    #[derive(Copy)]
    pub struct Scale {
        reads {
            /// A number a channel, as all operands.
            gamma: I [one],
            /// Beta.
            beta: I [one],
            /// Of y.
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
}

call! {
    /// Masks a gradient and sums it: where its producer cannot do it.
    #[derive(Copy)]
    pub struct Gradient {
        reads {
            /// `[N,H,W,C]`.
            dz: I [one],
            /// What is done to it.
            mask: Mask<I> [group],
        }
        writes {
            /// Of the shape of dz; may be added to.
            g: O [one],
            /// Of g.
            sums: Sums<O> [group],
        }
    }
}

call! {
    /// The gradients of gamma and beta, and the numbers of the correction.
    ///
    /// Without `a` the gradients were `scaled` and accumulated, and b and c may be added to.
    #[derive(Copy)]
    pub struct Coefficients {
        reads {
            /// The sum of g, a number a channel, as all operands.
            dy_sum: I [one],
            /// The sum of `g (y - mean)`.
            dyx_sum: I [one],
            /// Gamma.
            gamma: I [one],
            /// Of y.
            moments: Moments<I> [group],
        }
        writes {
            /// The gradient of gamma.
            dgamma: O [one],
            /// The gradient of beta.
            dbeta: O [one],
            /// Of the correction.
            a: Option<O> [maybe],
            /// Of the correction.
            b: O [one],
            /// Of the correction.
            c: O [one],
            /// The gradient of a bias that was added to what became y: the sum of dy, `a dy_sum + m (b mean + c)`,
            /// which is 0 but for rounding.
            dbias: Option<O> [maybe],
        }
    }
}

/// One piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Mean and variance.
    Measure,
    /// Scale and shift.
    Scale,
    /// Mask and sums.
    Gradient(Gradient),
    /// The correction's numbers.
    Coefficients(Coefficients),
}

/// A piece of a batch norm in a graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    /// The batch norm.
    pub bn: BatchNorm,
    /// The piece.
    pub pass: Pass,
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match self.pass {
            Pass::Measure => "norm_moments",
            Pass::Scale => "norm_affine",
            Pass::Gradient(_) => "norm_gradient",
            Pass::Coefficients(_) => "norm_coefficients",
        }
    }

    fn operands(&self) -> Operands {
        let (y, number) = (self.bn.x(), || self.bn.per_channel());
        match self.pass {
            Pass::Measure => {
                Operands::of(Measure { y: y.into(), moments: Moments { mean: number().into(), var: number().into() } })
            }
            Pass::Scale => Operands::of(Scale {
                gamma: number().into(),
                beta: number().into(),
                moments: Moments { mean: number().into(), var: number().into() },
                scale: number().into(),
                shift: number().into(),
                running_mean: Written::updated(number()),
                running_var: Written::updated(number()),
            }),
            Pass::Gradient(Gradient { mask, .. }) => Operands::of(Gradient {
                dz: y.clone().into(),
                mask: mask.types(self.bn.spec().x),
                g: Written::accumulated(y).in_place(),
                sums: mask.sum_types(self.bn.spec().x),
            }),
            Pass::Coefficients(form) => {
                let added = || match form.a {
                    Some(()) => number().into(),
                    None => Written::accumulated(number()),
                };
                Operands::of(Coefficients {
                    dy_sum: number().into(),
                    dyx_sum: number().into(),
                    gamma: number().into(),
                    moments: Moments { mean: number().into(), var: number().into() },
                    dgamma: number().into(),
                    dbeta: number().into(),
                    a: form.a.map(|()| number().into()),
                    b: added(),
                    c: added(),
                    dbias: form.dbias.map(|()| number().into()),
                })
            }
        }
    }

    fn flops(&self) -> u64 {
        let (elements, channels) = (self.bn.x().shape.len() as u64, self.bn.spec().x[3] as u64);
        match self.pass {
            Pass::Measure => 3 * elements,
            Pass::Scale => 12 * channels,
            Pass::Gradient(_) => 6 * elements,
            Pass::Coefficients(_) => 12 * channels,
        }
    }

    fn scratch_bytes(&self, target: Target) -> usize {
        launch::scratch_bytes(self, target)
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
