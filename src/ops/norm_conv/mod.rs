//! Convolution fused with the batch norms and ReLUs around it: [`conv2d`] with what
//! [`norm`] defines done while operands are loaded and results are stored.

mod launch;
mod reference;

pub(crate) use launch::KERNELS;

use super::conv2d::{self, Conv2d, Plan};
use super::norm::{self, Correction, Prologue};
use super::{Behind, Io, Operator};
use crate::device::{Launch, Target};
use crate::tensor::TensorType;
use crate::Result;

/// One pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// `x, w [, x_scale, x_shift: prologue] [, scale] [, shift] [, residual] -> y [, mean, var]`.
    Fwd {
        /// How x is loaded.
        prologue: Option<Prologue>,
        /// What is done to the sum, as in conv2d.
        epilogue: conv2d::Epilogue,
        /// Whether the moments of y, as stored, are left too: mean and biased variance of each channel.
        moments: bool,
    },
    /// The end of a residual block, which is stored as [`super::block_end`] does, and the convolution of it:
    /// `a, w, b [, a_scale, a_shift] [, b_scale, b_shift] -> y, mean, var, z, signs`, z and its signs with a ReLU.
    ///
    /// For 1x1 convolutions that allow it: [`allows_end`].
    FwdEnd {
        /// Whether a has a scale and a shift, and whether b has.
        affine: [bool; 2],
    },
    /// `g, w [, y [, a], b, c: correction] [, operands of the epilogue] -> dx [, sums of the epilogue]`.
    BwdX {
        /// How dy is loaded.
        correction: Option<Correction>,
        /// What is done to dx.
        epilogue: Option<norm::Epilogue>,
    },
    /// `g, x [, y [, a], b, c: correction] [, x_scale, x_shift: prologue] -> dw`, in f32.
    BwdW {
        /// How dy is loaded.
        correction: Option<Correction>,
        /// How x is loaded.
        prologue: Option<Prologue>,
    },
    /// Both gradients in one launch, whose blocks read g, y and x at about the same time:
    /// `g, w, x [, y [, a], b, c: correction] [, x_scale, x_shift: prologue] [, operands of the epilogue]
    /// -> dx, dw [, sums of the epilogue]`, dw in f32.
    Bwd {
        /// How dy is loaded.
        correction: Option<Correction>,
        /// How x is loaded.
        prologue: Option<Prologue>,
        /// What is done to dx.
        epilogue: Option<norm::Epilogue>,
    },
}

/// Whether `conv` can end the residual block that it reads: each element of x is loaded by the tiles of one row, in pieces
/// of 8 channels. That is so for 1x1 kernels with stride 1, no padding, one group and a multiple of 8 channels.
pub fn allows_end(conv: &Conv2d) -> bool {
    let s = conv.spec();
    s.kernel == [1, 1] && s.stride == [1, 1] && s.padding == [0, 0] && s.groups == 1 && s.c.is_multiple_of(8)
}

/// A fused convolution's pass in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The convolution.
    pub conv: Conv2d,
    /// The pass.
    pub pass: Pass,
}

impl Node {
    /// The operands of a prologue.
    fn prologue(&self, prologue: Option<Prologue>) -> Vec<TensorType> {
        prologue.map_or(Vec::new(), |_| vec![TensorType::stat([self.conv.spec().c]); 2])
    }

    /// The operands of a correction.
    fn correction(&self, correction: Option<Correction>) -> Vec<TensorType> {
        let Some(Correction { a }) = correction else { return Vec::new() };
        let mut types = vec![self.conv.y()];
        types.extend(vec![TensorType::stat([self.conv.spec().k]); 2 + usize::from(a)]);
        types
    }

    fn x_shape(&self) -> [usize; 4] {
        let conv2d::Spec { n, h, w, c, .. } = *self.conv.spec();
        [n, h, w, c]
    }
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match self.pass {
            Pass::Fwd { .. } => "norm_conv_fwd",
            Pass::FwdEnd { .. } => "norm_conv_fwd_end",
            Pass::BwdX { .. } => "norm_conv_bwd_x",
            Pass::BwdW { .. } => "norm_conv_bwd_w",
            Pass::Bwd { .. } => "norm_conv_bwd",
        }
    }

    fn summary(&self) -> String {
        self.conv.spec().summary()
    }

    fn inputs(&self) -> Vec<TensorType> {
        let (c, w) = (&self.conv, TensorType::real(self.conv.w_shape()));
        let per_output = TensorType::stat([c.spec().k]);
        match self.pass {
            Pass::Fwd { prologue, epilogue: e, .. } => {
                let mut types = vec![c.x(), w];
                types.extend(self.prologue(prologue));
                types.extend([e.scale, e.shift].iter().filter(|&&on| on).map(|_| per_output.clone()));
                types.extend(e.residual.then(|| c.y()));
                types
            }
            Pass::FwdEnd { affine } => {
                let mut types = vec![c.x(), w, c.x()];
                let affine = affine.iter().filter(|&&on| on).count();
                types.extend(vec![TensorType::stat([c.spec().c]); 2 * affine]);
                types
            }
            Pass::BwdX { correction, epilogue } => {
                let mut types = vec![c.y(), w];
                types.extend(self.correction(correction));
                types.extend(epilogue.iter().flat_map(|e| e.operands(self.x_shape())));
                types
            }
            Pass::BwdW { correction, prologue } => {
                let mut types = vec![c.y(), c.x()];
                types.extend(self.correction(correction));
                types.extend(self.prologue(prologue));
                types
            }
            Pass::Bwd { correction, prologue, epilogue } => {
                let mut types = vec![c.y(), w, c.x()];
                types.extend(self.correction(correction));
                types.extend(self.prologue(prologue));
                types.extend(epilogue.iter().flat_map(|e| e.operands(self.x_shape())));
                types
            }
        }
    }

    fn outputs(&self) -> Vec<TensorType> {
        let c = &self.conv;
        match self.pass {
            Pass::Fwd { moments, .. } => {
                let mut types = vec![c.y()];
                types.extend(vec![TensorType::stat([c.spec().k]); if moments { 2 } else { 0 }]);
                types
            }
            Pass::FwdEnd { .. } => {
                let per_output = TensorType::stat([c.spec().k]);
                let [n, h, w, channels] = self.x_shape();
                let signs = TensorType::byte([n, h, w, norm::sign_bytes(channels)]);
                vec![c.y(), per_output.clone(), per_output, c.x(), signs]
            }
            Pass::BwdX { epilogue, .. } => {
                let mut types = vec![c.x()];
                types.extend(epilogue.iter().flat_map(|e| e.sums(c.spec().c)));
                types
            }
            Pass::BwdW { .. } => vec![TensorType::stat(c.w_shape())],
            Pass::Bwd { epilogue, .. } => {
                let mut types = vec![c.x(), TensorType::stat(c.w_shape())];
                types.extend(epilogue.iter().flat_map(|e| e.sums(c.spec().c)));
                types
            }
        }
    }

    fn accumulates(&self) -> &'static [usize] {
        match self.pass {
            Pass::Fwd { .. } | Pass::FwdEnd { .. } => &[],
            Pass::BwdX { .. } | Pass::BwdW { .. } => &[0],
            Pass::Bwd { .. } => &[0, 1],
        }
    }

    fn behind_gate(&self) -> Behind {
        match self.pass {
            Pass::BwdX { epilogue: Some(e), .. } => e.behind_gate(self.inputs().len() - e.operands([1; 4]).len(), 1),
            Pass::Bwd { epilogue: Some(e), .. } => e.behind_gate(self.inputs().len() - e.operands([1; 4]).len(), 2),
            _ => Behind::default(),
        }
    }

    fn flops(&self) -> u64 {
        let products = if matches!(self.pass, Pass::Bwd { .. }) { 2 } else { 1 };
        let end = if matches!(self.pass, Pass::FwdEnd { .. }) { 5 * self.conv.x().shape.len() as u64 } else { 0 };
        2 * products * self.conv.macs() + end
    }

    fn scratch_bytes(&self, target: Target) -> usize {
        launch::scratch_bytes(self, target, None)
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io, None)
    }
}

impl Node {
    /// Every way in which the kernels can compute this pass, as [`conv2d::Node::plans`]; unsplit only where bwd_x
    /// has an epilogue. None in f64.
    pub fn plans(&self, target: Target) -> Vec<Plan> {
        launch::plans(self, target)
    }

    /// As [`Operator::scratch_bytes`], for `plan`.
    pub fn scratch_bytes_with(&self, target: Target, plan: Plan) -> usize {
        launch::scratch_bytes(self, target, Some(plan))
    }

    /// As [`Operator::launches`], for a `plan` of [`Node::plans`] for the same target.
    pub fn launches_with(&self, target: Target, io: &Io<'_>, plan: Plan) -> Result<Vec<Launch>> {
        launch::launches(self, target, io, Some(plan))
    }
}
