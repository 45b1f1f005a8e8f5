//! The fully connected layer: `y[n,k] = bias[k] + sum_f x[n,f] w[k,f]`.
//!
//! The input may still be an image `x[N,H,W,C]`; then `w` is `[K,H,W,C]`, which is torch's `[K, C*H*W]` with the
//! features in the library's order, so flattening never copies. To the kernels it is a convolution whose kernel covers
//! the image: they are conv2d's.

mod reference;

use super::operands::call;
use super::{conv2d, Call, Gradient, Io, Op, Operands, Operator, Source, Written};
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

    /// The forward pass, with a bias or without.
    pub fn fwd(self, bias: bool) -> Node {
        Node { linear: self, pass: Pass::Fwd(Fwd { bias: bias.then_some(()), ..Fwd::default() }) }
    }
}

call! {
    /// The operands of the forward pass.
    pub struct Fwd {
        reads {
            /// The input.
            x: I [one],
            /// The weight.
            w: I [one],
            /// `bias[k]`.
            bias: Option<I> [maybe],
        }
        writes {
            /// The output.
            y: O [one],
        }
    }
}

call! {
    /// The operands of the input's gradient.
    pub struct BwdX {
        reads {
            /// The gradient of the output.
            dy: I [one],
            /// The weight.
            w: I [one],
        }
        writes {
            /// The gradient of the input.
            dx: O [one],
        }
    }
}

call! {
    /// The operands of the weight's gradient.
    pub struct BwdW {
        reads {
            /// The gradient of the output.
            dy: I [one],
            /// The input.
            x: I [one],
        }
        writes {
            /// The gradient of the weight, in f32.
            dw: O [one],
        }
    }
}

call! {
    /// The operands of the bias's gradient.
    pub struct BwdBias {
        reads {
            /// The gradient of the output.
            dy: I [one],
        }
        writes {
            /// The gradient of the bias, in f32.
            dbias: O [one],
        }
    }
}

impl Copy for Fwd {}

/// One pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// [`Fwd`].
    Fwd(Fwd),
    /// [`BwdX`].
    BwdX,
    /// [`BwdW`].
    BwdW,
    /// [`BwdBias`].
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

    /// The pass of `conv` that has the operands of this one.
    fn as_conv(&self, conv: conv2d::Conv2d) -> conv2d::Node {
        let pass = match self.pass {
            Pass::Fwd(form) => conv2d::Pass::fwd(form.bias.is_some()),
            Pass::BwdX => conv2d::Pass::BwdX(Default::default()),
            Pass::BwdW => conv2d::Pass::BwdW(Default::default()),
            Pass::BwdBias => conv2d::Pass::BwdBias(Default::default()),
        };
        conv2d::Node { conv, pass }
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

    fn operands(&self) -> Operands {
        let (x, y, w_shape) = (self.linear.conv.x(), self.y(), self.linear.w_shape());
        let w = TensorType::real(w_shape);
        match self.pass {
            Pass::Fwd(form) => Operands::of(Fwd {
                x: x.into(),
                w: w.into(),
                bias: form.bias.map(|()| self.per_feature().into()),
                y: y.into(),
            }),
            Pass::BwdX => Operands::of(BwdX { dy: y.into(), w: w.into(), dx: Written::accumulated(x) }),
            Pass::BwdW => {
                let dw = Written::accumulated(TensorType::stat(w_shape));
                Operands::of(BwdW { dy: y.into(), x: x.into(), dw })
            }
            Pass::BwdBias => Operands::of(BwdBias { dy: y.into(), dbias: Written::accumulated(self.per_feature()) }),
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
        let Pass::Fwd(form) = self.pass else {
            return Err(Error::unsupported(format!("gradient of {}", self.name()), "only the forward pass has one"));
        };
        let (at, op) = (form.places(), |pass| Op::Linear(Self { linear: self.linear, pass }));
        let (dy, x, w) = (Source::Grad(at.y), Source::Input(at.x), Source::Input(at.w));
        let mut rules = Vec::new();
        if at.bias.is_some_and(|bias| needed[bias]) {
            rules.push(Gradient::node(op(Pass::BwdBias), BwdBias { dy, dbias: at.bias }));
        }
        if needed[at.w] {
            rules.push(Gradient::node(op(Pass::BwdW), BwdW { dy, x, dw: Some(at.w) }));
        }
        if needed[at.x] {
            rules.push(Gradient::node(op(Pass::BwdX), BwdX { dy, w, dx: Some(at.x) }));
        }
        Ok(rules)
    }

    fn scratch_bytes(&self, target: Target) -> usize {
        self.as_conv(self.linear.conv).scratch_bytes(target)
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        self.as_conv(self.linear.conv).launches(target, io)
    }
}
