//! The passes of a convolution as graph nodes.

use super::{launch, Conv2d, Plan, Spec};
use crate::device::{Launch, Target};
use crate::ops::load::{Load, Operand};
use crate::ops::operands::{call, group};
use crate::ops::store::{sign_bytes, Epilogue, Mask, Moments, Sums};
use crate::ops::{Call, Gradient, Io, Op, Operands, Operator, Read, Source, Written};
use crate::tensor::TensorType;
use crate::{Error, Result};

group! {
    /// The end of a residual block, stored by the convolution that reads it.
    pub struct End {
        /// `[N,H,W,C]`.
        z: T [one],
        /// `[N,H,W,ceil(C / 8)]`, bytes: one bit per element of z, 0 where it is 0 or less.
        signs: T [one],
    }
}

call! {
    /// `y = epilogue(x * w)`.
    pub struct Fwd {
        reads {
            /// `[N,H,W,C]`.
            x: Operand<I> [operand],
            /// `[K,R,S,C/groups]`.
            w: I [one],
            /// The transform of the sum.
            epilogue: Epilogue<I> [group],
        }
        writes {
            /// `[N,P,Q,K]`.
            y: O [one],
            /// The moments of the stored y.
            moments: Option<Moments<O>> [maybe_group],
            /// The end of a residual block, if x is loaded as one; `moments` must then be there too.
            end: Option<End<O>> [maybe_group],
        }
    }

    /// `dx = mask(dy * w)`.
    pub struct BwdX {
        reads {
            /// `[N,P,Q,K]`.
            dy: Operand<I> [operand],
            /// `[K,R,S,C/groups]`.
            w: I [one],
            /// The mask of dx.
            mask: Option<Mask<I>> [maybe_group],
        }
        writes {
            /// `[N,H,W,C]`; may be accumulated.
            dx: O [one],
            /// The sums of the masked dx.
            sums: Option<Sums<O>> [maybe_group],
        }
    }

    /// `dw = dy * x`, in f32.
    pub struct BwdW {
        reads {
            /// `[N,P,Q,K]`.
            dy: Operand<I> [operand],
            /// `[N,H,W,C]`.
            x: Operand<I> [operand],
        }
        writes {
            /// `[K,R,S,C/groups]`, f32; may be accumulated.
            dw: O [one],
        }
    }

    /// Both gradients in one launch, whose blocks read dy and x at about the same time.
    pub struct Bwd {
        reads {
            /// `[N,P,Q,K]`.
            dy: Operand<I> [operand],
            /// `[K,R,S,C/groups]`.
            w: I [one],
            /// `[N,H,W,C]`.
            x: Operand<I> [operand],
            /// The mask of dx.
            mask: Option<Mask<I>> [maybe_group],
        }
        writes {
            /// `[N,H,W,C]`; may be accumulated.
            dx: O [one],
            /// `[K,R,S,C/groups]`, f32; may be accumulated.
            dw: O [one],
            /// The sums of the masked dx.
            sums: Option<Sums<O>> [maybe_group],
        }
    }

    /// `dbias[k] = sum of dy`, in f32.
    pub struct BwdBias {
        reads {
            /// `[N,P,Q,K]`.
            dy: I [one],
        }
        writes {
            /// `[K]`; may be accumulated.
            dbias: O [one],
        }
    }
}

/// One pass of a convolution, with its loads and stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass<I = (), O = I> {
    /// [`Fwd`].
    Fwd(Fwd<I, O>),
    /// [`BwdX`].
    BwdX(BwdX<I, O>),
    /// [`BwdW`].
    BwdW(BwdW<I, O>),
    /// [`Bwd`].
    Bwd(Bwd<I, O>),
    /// [`BwdBias`].
    BwdBias(BwdBias<I, O>),
}

impl<I, O> Call<I, O> for Pass<I, O> {
    type Of<J, P> = Pass<J, P>;

    fn map<J, P>(self, read: impl FnMut(&'static str, I) -> J, write: impl FnMut(&'static str, O) -> P) -> Pass<J, P> {
        match self {
            Self::Fwd(call) => Pass::Fwd(call.map(read, write)),
            Self::BwdX(call) => Pass::BwdX(call.map(read, write)),
            Self::BwdW(call) => Pass::BwdW(call.map(read, write)),
            Self::Bwd(call) => Pass::Bwd(call.map(read, write)),
            Self::BwdBias(call) => Pass::BwdBias(call.map(read, write)),
        }
    }
}

impl<I, O> Pass<I, O> {
    /// True if operands are loaded as they are, and the result has at most an epilogue.
    pub fn is_plain(&self) -> bool {
        match self {
            Self::Fwd(f) => f.x.load.is_as_it_is() && f.moments.is_none() && f.end.is_none(),
            Self::BwdX(f) => f.dy.load.is_as_it_is() && f.mask.is_none(),
            Self::BwdW(f) => f.dy.load.is_as_it_is() && f.x.load.is_as_it_is(),
            Self::Bwd(_) => false,
            Self::BwdBias(_) => true,
        }
    }
}

impl Pass {
    /// The plain forward pass, with or without a bias.
    pub fn fwd(bias: bool) -> Self {
        let epilogue = Epilogue { shift: bias.then_some(()), ..Epilogue::default() };
        Self::Fwd(Fwd { epilogue, ..Fwd::default() })
    }
}

/// One pass of a convolution in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The convolution.
    pub conv: Conv2d,
    /// The pass.
    pub pass: Pass,
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match self.pass {
            Pass::Fwd(Fwd { end: None, .. }) => "conv2d_fwd",
            Pass::Fwd(_) => "conv2d_fwd_end",
            Pass::BwdX(_) => "conv2d_bwd_x",
            Pass::BwdW(_) => "conv2d_bwd_w",
            Pass::Bwd(_) => "conv2d_bwd",
            Pass::BwdBias(_) => "conv2d_bwd_bias",
        }
    }

    fn summary(&self) -> String {
        self.conv.spec.summary()
    }

    fn operands(&self) -> Operands {
        let conv = &self.conv;
        let Spec { n, h, w, c, k, .. } = conv.spec;
        let x = |form: Operand| form.types::<Read>(conv.x(), c);
        let dy = |form: Operand| form.types::<Read>(conv.y(), k);
        let weights = || Read::from(TensorType::real(conv.w_shape()));
        let [dx, dw] = [conv.x(), TensorType::stat(conv.w_shape())].map(Written::accumulated);
        let masks = |mask: Option<Mask>| mask.map(|mask| mask.types([n, h, w, c]));
        let sums = |mask: Option<Mask>| mask.map(|mask| mask.sum_types([n, h, w, c]));
        let signs = TensorType::byte([n, h, w, sign_bytes(c)]);
        match self.pass {
            Pass::Fwd(form) => Operands::of(Fwd {
                x: x(form.x),
                w: weights(),
                epilogue: form.epilogue.types(&conv.y(), k),
                y: conv.y().into(),
                moments: form.moments.map(|moments| moments.map(|_, ()| TensorType::stat([k]).into())),
                end: form.end.map(|_| End { z: conv.x().into(), signs: signs.into() }),
            }),
            Pass::BwdX(form) => {
                Operands::of(BwdX { dy: dy(form.dy), w: weights(), mask: masks(form.mask), dx, sums: sums(form.mask) })
            }
            Pass::BwdW(form) => Operands::of(BwdW { dy: dy(form.dy), x: x(form.x), dw }),
            Pass::Bwd(form) => Operands::of(Bwd {
                dy: dy(form.dy),
                w: weights(),
                x: x(form.x),
                mask: masks(form.mask),
                dx,
                dw,
                sums: sums(form.mask),
            }),
            Pass::BwdBias(_) => {
                Operands::of(BwdBias { dy: conv.y().into(), dbias: Written::accumulated(TensorType::stat([k])) })
            }
        }
    }

    fn flops(&self) -> u64 {
        match self.pass {
            Pass::BwdBias(_) => self.conv.y().shape.len() as u64,
            Pass::Bwd(_) => 4 * self.conv.macs(),
            Pass::Fwd(Fwd { end: Some(_), .. }) => 2 * self.conv.macs() + 5 * self.conv.x().shape.len() as u64,
            _ => 2 * self.conv.macs(),
        }
    }

    fn gradient(&self, needed: &[bool]) -> Result<Vec<Gradient>> {
        let form = match self.pass {
            Pass::Fwd(form) if self.pass == Pass::fwd(form.epilogue.shift.is_some()) => form,
            _ => {
                let why = "only a forward pass without scale, residual and ReLU has one; differentiate before fusing";
                return Err(Error::unsupported(format!("gradient of {}", self.name()), why));
            }
        };
        let op = |pass: Pass| Op::Conv2d(Self { conv: self.conv, pass });
        let at = form.places();
        let (dy, x) = (Source::Grad(at.y), Source::Input(at.x.value));
        let mut rules = Vec::new();
        if let Some(bias) = at.epilogue.shift.filter(|&bias| needed[bias]) {
            let call = BwdBias { dy, dbias: Some(bias) };
            rules.push(Gradient::node(op(Pass::BwdBias(BwdBias::default())), call));
        }
        if needed[at.w] {
            let call = BwdW { dy: dy.into(), x: x.into(), dw: Some(at.w) };
            rules.push(Gradient::node(op(Pass::BwdW(BwdW::default())), call));
        }
        if needed[at.x.value] {
            let w = Source::Input(at.w);
            let call = BwdX { dy: dy.into(), w, mask: None, dx: Some(at.x.value), sums: None };
            rules.push(Gradient::node(op(Pass::BwdX(BwdX::default())), call));
        }
        Ok(rules)
    }

    fn scratch_bytes(&self, target: Target) -> usize {
        launch::scratch_bytes(self, target, None)
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io, None)
    }
}

impl Node {
    /// Every plan for this pass: each tile, with and without a split of the reduction (masked gradients are not split).
    /// For tests and benchmarks; [`Operator::launches`] chooses a plan. Empty in f64 and for [`Pass::BwdBias`].
    pub fn plans(&self, target: Target) -> Vec<Plan> {
        launch::plans(self, target)
    }

    /// [`Operator::scratch_bytes`] for `plan`.
    pub fn scratch_bytes_with(&self, target: Target, plan: Plan) -> usize {
        launch::scratch_bytes(self, target, Some(plan))
    }

    /// [`Operator::launches`] with a plan from [`Node::plans`]. Fails if it is for another pass or dtype.
    pub fn launches_with(&self, target: Target, io: &Io<'_>, plan: Plan) -> Result<Vec<Launch>> {
        launch::launches(self, target, io, Some(plan))
    }

    /// True if x is loaded as the end of a residual block.
    pub(super) fn loads_sum(&self) -> bool {
        matches!(self.pass, Pass::Fwd(Fwd { x: Operand { load: Load::Sum { .. }, .. }, .. }))
    }
}
