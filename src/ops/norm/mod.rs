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

pub(super) use launch::sums_shared;
pub(crate) use launch::KERNELS;
pub(super) use reference::gradient as reference_gradient;

use super::batch_norm::BatchNorm;
use super::{Behind, Io, Operator};
use crate::device::{Launch, Target};
use crate::tensor::TensorType;
use crate::Result;

/// How a consumer loads an activation: `z = x * scale[c] + shift[c]`, rounded to the storage type. Padding stays 0.
///
/// Its operands, where the op's documentation says `prologue`, are `scale, shift`: a number a channel each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prologue {
    /// Whether negative results become 0.
    pub relu: bool,
}

/// How a consumer loads a gradient: `dy = a[k] * g + b[k] * y + c[k]`, rounded to the storage type.
///
/// Its operands, where the op's documentation says `correction`, are `y [, a], b, c`: y of dy's shape, a number a channel
/// each of the others; without `a` it is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Correction {
    /// Whether there is an `a`.
    pub a: bool,
}

/// What the producer of a gradient dz does to it before it is stored, and which sums of it it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// The value went through one batch norm: operands `y, scale, shift, mean`, the sums `dy_sum, dyx_sum`.
    ///
    /// `v = dz (+ what is there, where dz is accumulated and not scaled)`, then, with a ReLU, 0 where
    /// `y * scale + shift`, rounded to the storage type, is 0 or less. The sums are of v. Stored is v, or with
    /// `scaled` what is there plus `scale * v` (accumulated), or `scale * v` (overwritten).
    Affine {
        /// Whether a ReLU followed the batch norm.
        relu: bool,
        /// Whether what is stored is multiplied by the scale, after the sums.
        scaled: bool,
    },
    /// The value is the end of a residual block: `max(n_0(y_0) + n_1(y_1), 0)` or `max(n_0(y_0) + shortcut, 0)`, n_i a
    /// batch norm. Operands `bits, y_0, mean_0 [, y_1, mean_1] [, gate]`, sums `dy_sum, dyx_sum_0 [, dyx_sum_1]`.
    ///
    /// `v = dz (+ what is there)`, then 0 where the bit is not set (see [`super::block_end`]). Stored is v.
    Signs {
        /// Batch norms whose outputs were added: 1 or 2.
        norms: usize,
        /// Whether n_0 is in a branch that may be dropped: where the gate is 0, y_0 and mean_0 are not read, and dyx_sum_0
        /// is 0.
        gated: bool,
    },
}

/// Bytes of a pixel of the signs of `channels` channels: bit `c % 8` of byte `c / 8` is 0 where channel c is 0 or less.
pub fn sign_bytes(channels: usize) -> usize {
    channels.div_ceil(8)
}

impl Epilogue {
    /// The types of its operands, for a gradient of shape `[N,H,W,C]`.
    pub fn operands(&self, shape: [usize; 4]) -> Vec<TensorType> {
        let [n, h, w, c] = shape;
        let (y, number) = (TensorType::real(shape), TensorType::stat([c]));
        match *self {
            Self::Affine { .. } => vec![y, number.clone(), number.clone(), number],
            Self::Signs { norms, gated } => {
                let mut types = vec![TensorType::byte([n, h, w, sign_bytes(c)])];
                (0..norms).for_each(|_| types.extend([y.clone(), number.clone()]));
                types.extend(gated.then(|| TensorType::stat([1])));
                types
            }
        }
    }

    /// The types of its sums.
    pub fn sums(&self, channels: usize) -> Vec<TensorType> {
        let norms = match *self {
            Self::Affine { .. } => 1,
            Self::Signs { norms, .. } => norms,
        };
        vec![TensorType::stat([channels]); 1 + norms]
    }

    /// Whether its last operand is a gate.
    pub fn is_gated(&self) -> bool {
        matches!(self, Self::Signs { gated: true, .. })
    }

    /// What is behind the gate, in an op whose operands of this epilogue are inputs from `operand` on and whose sums are
    /// outputs from `sum` on.
    pub(super) fn behind_gate(&self, operand: usize, sum: usize) -> Behind {
        match self.is_gated() {
            true => Behind { inputs: vec![operand + 1, operand + 2], outputs: vec![sum + 1] },
            false => Behind::default(),
        }
    }
}

/// One piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// `y -> mean, var`: where the producer cannot leave them.
    Moments,
    /// `gamma, beta, mean, var -> scale, shift, running_mean (updated), running_var (updated)`. As
    /// [`BatchNorm::train`], for at least 2 elements a channel.
    Affine,
    /// `dz, epilogue -> g, sums`: where the producer of dz cannot do it.
    Gradient(Epilogue),
    /// `dy_sum, dyx_sum, gamma, mean, var -> dgamma, dbeta [, a], b, c [, dbias]`.
    ///
    /// With `lazy` there is no `a`, and b and c can be accumulated.
    Coefficients {
        /// Whether the gradients were `scaled` and accumulated.
        lazy: bool,
        /// Whether a bias was added to what became y: its gradient is the sum of dy, `a dy_sum + m (b mean + c)`, which is
        /// 0 but for rounding.
        bias: bool,
    },
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
            Pass::Moments => "norm_moments",
            Pass::Affine => "norm_affine",
            Pass::Gradient(_) => "norm_gradient",
            Pass::Coefficients { .. } => "norm_coefficients",
        }
    }

    fn inputs(&self) -> Vec<TensorType> {
        let (y, c) = (self.bn.x(), self.bn.per_channel());
        match self.pass {
            Pass::Moments => vec![y],
            Pass::Affine => vec![c; 4],
            Pass::Gradient(epilogue) => {
                let mut types = vec![y];
                types.extend(epilogue.operands(self.bn.spec().x));
                types
            }
            Pass::Coefficients { .. } => vec![c; 5],
        }
    }

    fn outputs(&self) -> Vec<TensorType> {
        let (y, c) = (self.bn.x(), self.bn.per_channel());
        match self.pass {
            Pass::Moments => vec![c; 2],
            Pass::Affine => vec![c; 4],
            Pass::Gradient(epilogue) => {
                let mut types = vec![y];
                types.extend(epilogue.sums(self.bn.spec().x[3]));
                types
            }
            Pass::Coefficients { lazy, bias } => vec![c; if lazy { 4 } else { 5 } + usize::from(bias)],
        }
    }

    fn updates(&self) -> &'static [usize] {
        match self.pass {
            Pass::Affine => &[2, 3],
            _ => &[],
        }
    }

    fn accumulates(&self) -> &'static [usize] {
        match self.pass {
            Pass::Gradient(_) => &[0],
            Pass::Coefficients { lazy: true, .. } => &[2, 3],
            _ => &[],
        }
    }

    fn behind_gate(&self) -> Behind {
        match self.pass {
            Pass::Gradient(epilogue) => epilogue.behind_gate(1, 1),
            _ => Behind::default(),
        }
    }

    fn flops(&self) -> u64 {
        let (elements, channels) = (self.bn.x().shape.len() as u64, self.bn.spec().x[3] as u64);
        match self.pass {
            Pass::Moments => 3 * elements,
            Pass::Affine => 12 * channels,
            Pass::Gradient(_) => 6 * elements,
            Pass::Coefficients { .. } => 12 * channels,
        }
    }

    fn scratch_bytes(&self, target: Target) -> usize {
        launch::scratch_bytes(self, target)
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
