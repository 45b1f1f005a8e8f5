//! The fully connected layer: `y[n,k] = bias[k] + sum_f x[n,f] w[k,f]`.
//!
//! The input may still be an image `x[N,H,W,C]`; then `w` is `[K,H,W,C]`, which is torch's `[K, C*H*W]` with the
//! features in the library's order, so flattening never copies. To the kernels it is a convolution whose kernel covers
//! the image: they are conv2d's.

mod launch;
mod reference;

use super::{conv2d, Gradient, Io, Op, Operator, Source};
use crate::device::{Launch, Target};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// What a linear layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// N, H, W, C of the input.
    pub x: [usize; 4],
    /// Output features.
    pub k: usize,
}

/// A linear layer whose shapes have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Linear {
    conv: conv2d::Conv2d,
}

impl Linear {
    /// Checks `spec`: no extent is 0 or too large.
    pub fn new(spec: Spec) -> Result<Self> {
        let [n, h, w, c] = spec.x;
        let conv = conv2d::Conv2d::new(conv2d::Spec {
            n,
            h,
            w,
            c,
            k: spec.k,
            kernel: [h, w],
            stride: [1, 1],
            padding: [0, 0],
            dilation: [1, 1],
            groups: 1,
        })
        .map_err(|_| Error::invalid("linear", format!("{:?} to {} features", spec.x, spec.k)))?;
        Ok(Self { conv })
    }

    /// Images, input features and output features: N, F, K.
    pub fn extents(&self) -> [usize; 3] {
        let conv2d::Spec { n, h, w, c, k, .. } = *self.conv.spec();
        [n, h * w * c, k]
    }

    /// The shape of `w`: `[K,H,W,C]`.
    pub fn w_shape(&self) -> [usize; 4] {
        self.conv.w_shape()
    }
}

/// One pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// `x, w [, bias] -> y`.
    Fwd {
        /// Whether there is a bias.
        bias: bool,
    },
    /// `dy, w -> dx`.
    BwdX,
    /// `dy, x -> dw`, in f32.
    BwdW,
    /// `dy -> dbias`, in f32.
    BwdBias,
}

/// A linear layer's pass in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The layer.
    pub linear: Linear,
    /// The pass.
    pub pass: Pass,
}

impl Node {
    fn y(&self) -> TensorType {
        let [n, _, k] = self.linear.extents();
        TensorType::real([n, k])
    }

    fn per_feature(&self) -> TensorType {
        TensorType::stat([self.linear.extents()[2]])
    }
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match self.pass {
            Pass::Fwd { .. } => "linear_fwd",
            Pass::BwdX => "linear_bwd_x",
            Pass::BwdW => "linear_bwd_w",
            Pass::BwdBias => "linear_bwd_bias",
        }
    }

    fn summary(&self) -> String {
        let [n, f, k] = self.linear.extents();
        format!("n{n} c{f} k{k}")
    }

    fn inputs(&self) -> Vec<TensorType> {
        let (x, w) = (self.linear.conv.x(), TensorType::real(self.linear.w_shape()));
        match self.pass {
            Pass::Fwd { bias } => {
                let mut types = vec![x, w];
                types.extend(bias.then(|| self.per_feature()));
                types
            }
            Pass::BwdX => vec![self.y(), w],
            Pass::BwdW => vec![self.y(), x],
            Pass::BwdBias => vec![self.y()],
        }
    }

    fn outputs(&self) -> Vec<TensorType> {
        match self.pass {
            Pass::Fwd { .. } => vec![self.y()],
            Pass::BwdX => vec![self.linear.conv.x()],
            Pass::BwdW => vec![TensorType::stat(self.linear.w_shape())],
            Pass::BwdBias => vec![self.per_feature()],
        }
    }

    fn accumulates(&self) -> &'static [usize] {
        match self.pass {
            Pass::Fwd { .. } => &[],
            _ => &[0],
        }
    }

    fn flops(&self) -> u64 {
        let [n, f, k] = self.linear.extents();
        match self.pass {
            Pass::BwdBias => (n * k) as u64,
            _ => 2 * (n * f * k) as u64,
        }
    }

    fn gradient(&self, needed: &[bool]) -> Result<Vec<Gradient>> {
        let Pass::Fwd { bias } = self.pass else {
            return Err(Error::unsupported(format!("gradient of {}", self.name()), "only the forward pass has one"));
        };
        let rule = |pass: Pass, sources: Vec<Source>, target: usize| Gradient::Node {
            op: Op::Linear(Self { linear: self.linear, pass }),
            sources,
            targets: vec![Some(target)],
        };
        let mut rules = Vec::new();
        if bias && needed[2] {
            rules.push(rule(Pass::BwdBias, vec![Source::Grad(0)], 2));
        }
        if needed[1] {
            rules.push(rule(Pass::BwdW, vec![Source::Grad(0), Source::Input(0)], 1));
        }
        if needed[0] {
            rules.push(rule(Pass::BwdX, vec![Source::Grad(0), Source::Input(1)], 0));
        }
        Ok(rules)
    }

    fn scratch_bytes(&self, target: Target) -> usize {
        launch::as_conv(self).scratch_bytes(target)
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::as_conv(self).launches(target, io)
    }
}
