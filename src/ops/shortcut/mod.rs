//! The parameter-free shortcut, option A of He et al. (2015): subsample and pad with zero channels.
//!
//! `y[n,p,q,k] = x[n, p*stride, q*stride, k - lead]` where `0 <= k - lead < C`, else 0. P = ceil(H / stride) and
//! Q = ceil(W / stride).
//!
//! ```
//! use residuum::ops::shortcut::{Fwd, Shortcut, Spec};
//! use residuum::ops::{HostIo, HostMut, HostOp, HostRef};
//!
//! let op = Shortcut::new(Spec { x: [1, 2, 2, 1], k: 3, stride: 2, lead: 0 })?.fwd();
//! let (x, mut y) = ([5.0, 6.0, 7.0, 8.0], [f64::NAN; 3]);
//! op.reference(&mut HostIo::of(Fwd { x: HostRef::Real(&x), y: HostMut::Real(&mut y) }));
//! assert_eq!(y, [5.0, 0.0, 0.0]);
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

/// The parameters of a shortcut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// N, H, W, C of the input.
    pub x: [usize; 4],
    /// Output channels, at least C.
    pub k: usize,
    /// The distance between kept rows, and between kept columns.
    pub stride: usize,
    /// Zero channels before the input's: 0 in the authors' code, (K - C) / 2 in some others'.
    pub lead: usize,
}

/// A shortcut with a checked [`Spec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shortcut {
    spec: Spec,
}

impl Shortcut {
    /// Fails if an extent or the stride is 0, or if `lead + C > k`.
    pub fn new(spec: Spec) -> Result<Self> {
        let Spec { x: [_, _, _, c], k, stride, lead } = spec;
        let problem = || format!("{spec:?} has a zero where at least 1 is needed");
        Error::check(!spec.x.contains(&0) && stride > 0, "shortcut", problem)?;
        Error::check(lead + c <= k, "shortcut", || format!("{c} channels after {lead} zeros do not fit {k}"))?;
        Ok(Self { spec })
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The shape of y, `[N,P,Q,K]`.
    pub fn y_shape(&self) -> [usize; 4] {
        let Spec { x: [n, h, w, _], k, stride, .. } = self.spec;
        [n, h.div_ceil(stride), w.div_ceil(stride), k]
    }

    /// The forward pass.
    pub fn fwd(self) -> Node {
        Node { shortcut: self, pass: Pass::Fwd }
    }
}

call! {
    /// The forward pass.
    pub struct Fwd {
        reads {
            /// `[N,H,W,C]`.
            x: I [one],
        }
        writes {
            /// `[N,P,Q,K]`.
            y: O [one],
        }
    }

    /// The backward pass.
    pub struct Bwd {
        reads {
            /// The gradient of y, `[N,P,Q,K]`.
            dy: I [one],
        }
        writes {
            /// The gradient of x, `[N,H,W,C]`; may be accumulated.
            dx: O [one],
        }
    }
}

/// A shortcut's pass in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The shortcut.
    pub shortcut: Shortcut,
    /// The pass.
    pub pass: Pass,
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match self.pass {
            Pass::Fwd => "shortcut_fwd",
            Pass::Bwd => "shortcut_bwd",
        }
    }

    fn operands(&self) -> Operands {
        let (x, y) = (TensorType::real(self.shortcut.spec.x), TensorType::real(self.shortcut.y_shape()));
        match self.pass {
            Pass::Fwd => Operands::of(Fwd { x: x.into(), y: y.into() }),
            Pass::Bwd => Operands::of(Bwd { dy: y.into(), dx: Written::accumulated(x) }),
        }
    }

    fn flops(&self) -> u64 {
        0
    }

    fn gradient(&self, _needed: &[bool]) -> Result<Vec<Gradient>> {
        let op = Op::Shortcut(Self { shortcut: self.shortcut, pass: Pass::Bwd });
        let Fwd { x, y } = <Fwd>::default().places();
        Ok(vec![Gradient::node(op, Bwd { dy: Source::Grad(y), dx: Some(x) })])
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
