//! Concatenation along the channels: `y[n,h,w,o_i + c] = x_i[n,h,w,c]`, with o_i the sum of the channels before x_i.
//!
//! On devices with kernels the memory plan makes the parts slices of the whole (`graph/fuse/concat.rs`), and nothing is
//! copied. A launch copies only parts that lie elsewhere.
//!
//! ```
//! use residuum::ops::concat::{Concat, Fwd, Spec};
//! use residuum::ops::{HostIo, HostMut, HostOp, HostRef};
//!
//! let op = Concat::new(Spec { pixels: [1, 1, 2], channels: vec![1, 2] })?.fwd();
//! let (a, b, mut y) = ([1.0, 2.0], [3.0, 4.0, 5.0, 6.0], [f64::NAN; 6]);
//! op.reference(&mut HostIo::of(Fwd { x: vec![HostRef::Real(&a), HostRef::Real(&b)], y: HostMut::Real(&mut y) }));
//! assert_eq!(y, [1.0, 3.0, 4.0, 2.0, 5.0, 6.0]);
//! # Ok::<(), residuum::Error>(())
//! ```

mod launch;
mod reference;

pub use super::Pass;
pub(crate) use launch::KERNELS;

use super::operands::{call, Call, Operands, Written};
use super::{Gradient, Io, Op, Operator, Source};
use crate::device::{Launch, Target};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// The parameters of a concatenation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// N, H, W of every tensor.
    pub pixels: [usize; 3],
    /// Channels of each part, in order.
    pub channels: Vec<usize>,
}

/// A concatenation with a checked [`Spec`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Concat {
    spec: Spec,
}

impl Concat {
    /// Fails if there is no part or an extent is 0.
    pub fn new(spec: Spec) -> Result<Self> {
        Error::check(!spec.channels.is_empty(), "concat", || "no tensors, expected at least one".into())?;
        let problem = || format!("{spec:?} has a zero where at least 1 is needed");
        Error::check(!spec.pixels.contains(&0) && !spec.channels.contains(&0), "concat", problem)?;
        Ok(Self { spec })
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The shape of the whole, `[N,H,W,C]`.
    pub fn whole(&self) -> [usize; 4] {
        self.with_channels(self.spec.channels.iter().sum())
    }

    /// The shape of each part, `[N,H,W,channels[i]]`.
    pub fn parts(&self) -> Vec<[usize; 4]> {
        self.spec.channels.iter().map(|&c| self.with_channels(c)).collect()
    }

    /// The first channel of each part in the whole.
    pub fn offsets(&self) -> Vec<usize> {
        let next = |at: &mut usize, &c: &usize| Some(std::mem::replace(at, *at + c));
        self.spec.channels.iter().scan(0, next).collect()
    }

    /// The forward pass.
    pub fn fwd(self) -> Node {
        Node { concat: self, pass: Pass::Fwd }
    }

    /// The form of the forward pass.
    pub(crate) fn joins(&self) -> Fwd {
        Fwd { x: vec![(); self.spec.channels.len()], y: () }
    }

    /// The form of the backward pass.
    pub(crate) fn splits(&self) -> Bwd {
        Bwd { dy: (), dx: vec![(); self.spec.channels.len()] }
    }

    fn with_channels(&self, c: usize) -> [usize; 4] {
        let [n, h, w] = self.spec.pixels;
        [n, h, w, c]
    }
}

call! {
    derive();

    /// The forward pass.
    pub struct Fwd {
        reads {
            /// The parts in order, `[N,H,W,channels[i]]`.
            x: Vec<I> [many],
        }
        writes {
            /// The whole, `[N,H,W,C]`.
            y: O [one],
        }
    }

    /// The backward pass: a split.
    pub struct Bwd {
        reads {
            /// The gradient of y, `[N,H,W,C]`.
            dy: I [one],
        }
        writes {
            /// The gradient of each part, `[N,H,W,channels[i]]`.
            dx: Vec<O> [many],
        }
    }
}

/// A concatenation's pass in a graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The concatenation.
    pub concat: Concat,
    /// The pass.
    pub pass: Pass,
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match self.pass {
            Pass::Fwd => "concat_fwd",
            Pass::Bwd => "concat_bwd",
        }
    }

    fn operands(&self) -> Operands {
        let whole = TensorType::real(self.concat.whole());
        let parts = self.concat.parts().into_iter().map(TensorType::real);
        match self.pass {
            Pass::Fwd => Operands::of(Fwd { x: parts.map(Into::into).collect(), y: Written::from(whole).in_place() }),
            Pass::Bwd => {
                Operands::of(Bwd { dy: whole.into(), dx: parts.map(|part| Written::from(part).in_place()).collect() })
            }
        }
    }

    fn flops(&self) -> u64 {
        0
    }

    fn gradient(&self, _needed: &[bool]) -> Result<Vec<Gradient>> {
        if self.pass == Pass::Bwd {
            return Err(Error::unsupported("gradient of concat_bwd", "only the forward pass has one"));
        }
        let op = Op::Concat(Self { concat: self.concat.clone(), pass: Pass::Bwd });
        let Fwd { x, y } = self.concat.joins().places();
        Ok(vec![Gradient::node(op, Bwd { dy: Source::Grad(y), dx: x.into_iter().map(Some).collect() })])
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
