//! The fully connected layer: `y[n,k] = bias[k] + sum_f x[n,f] w[k,f]`.
//!
//! The input is an image `[N,H,W,C]` with F = H W C features. The weight `[K,H,W,C]` is torch's `[K, C*H*W]` with the
//! features reordered, so flattening never copies. The kernels are conv2d's: the layer is a convolution whose kernel
//! covers the image. The [crate's documentation](crate#a-single-op) runs a linear layer.

mod reference;

use super::operands::call;
use super::{conv2d, Call, Gradient, Io, Op, Operands, Operator, Source, Written};
use crate::device::{Launch, Target};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// The parameters of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// N, H, W, C of the input.
    pub x: [usize; 4],
    /// Output features.
    pub k: usize,
}

/// A linear layer with a checked [`Spec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Linear {
    conv: conv2d::Conv2d,
}

impl Linear {
    /// Fails if an extent is 0 or too large.
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

    /// Images, input features and output features, `[N,F,K]`.
    pub fn extents(&self) -> [usize; 3] {
        let conv2d::Spec { n, h, w, c, k, .. } = *self.conv.spec();
        [n, h * w * c, k]
    }

    /// The shape of w, `[K,H,W,C]`.
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
            /// `[N,H,W,C]`.
            x: I [one],
            /// `[K,H,W,C]`.
            w: I [one],
            /// `[K]`.
            bias: Option<I> [maybe],
        }
        writes {
            /// `[N,K]`.
            y: O [one],
        }
    }

    /// The operands of x's gradient.
    pub struct BwdX {
        reads {
            /// `[N,K]`.
            dy: I [one],
            /// `[K,H,W,C]`.
            w: I [one],
        }
        writes {
            /// `[N,H,W,C]`; may be accumulated.
            dx: O [one],
        }
    }

    /// The operands of w's gradient.
    pub struct BwdW {
        reads {
            /// `[N,K]`.
            dy: I [one],
            /// `[N,H,W,C]`.
            x: I [one],
        }
        writes {
            /// `[K,H,W,C]`, f32; may be accumulated.
            dw: O [one],
        }
    }

    /// The operands of the bias's gradient.
    pub struct BwdBias {
        reads {
            /// `[N,K]`.
            dy: I [one],
        }
        writes {
            /// `[K]`; may be accumulated.
            dbias: O [one],
        }
    }
}

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
    /// The pass of `conv` with the operands of this one.
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
        let (conv, [n, _, k]) = (&self.linear.conv, self.linear.extents());
        let (y, bias) = (TensorType::real([n, k]), TensorType::stat([k]));
        let read = |name, ()| match name {
            "x" => conv.x().into(),
            "w" => TensorType::real(conv.w_shape()).into(),
            "bias" => bias.clone().into(),
            _ => y.clone().into(),
        };
        let written = |name, ()| match name {
            "dx" => Written::accumulated(conv.x()),
            "dw" => Written::accumulated(TensorType::stat(conv.w_shape())),
            "dbias" => Written::accumulated(bias.clone()),
            _ => y.clone().into(),
        };
        match self.pass {
            Pass::Fwd(form) => Operands::of(form.map(read, written)),
            Pass::BwdX => Operands::of(BwdX::default().map(read, written)),
            Pass::BwdW => Operands::of(BwdW::default().map(read, written)),
            Pass::BwdBias => Operands::of(BwdBias::default().map(read, written)),
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
