//! The rectifier: `y = max(x, 0)`; backward `dx = 0` where `y <= 0`, else `dy`. A NaN stays a NaN, and dy passes where
//! y is NaN, as in torch. The op is elementwise: tensors have any shape.
//!
//! ```
//! use residuum::ops::relu::{Fwd, Node, Pass};
//! use residuum::ops::{HostIo, HostMut, HostOp, HostRef};
//!
//! let (x, mut y) = ([-1.0, 0.0, 2.0], [f64::NAN; 3]);
//! let op = Node { shape: [3].into(), pass: Pass::Fwd };
//! op.reference(&mut HostIo::of(Fwd { x: HostRef::Real(&x), y: HostMut::Real(&mut y) }));
//! assert_eq!(y, [0.0, 0.0, 2.0]);
//! ```

mod launch;
mod reference;

pub use super::Pass;
pub(crate) use launch::KERNELS;

use super::operands::{call, Call, Operands, Written};
use super::{Gradient, Io, Op, Operator, Source};
use crate::device::{Launch, Target};
use crate::tensor::{Shape, TensorType};
use crate::Result;

call! {
    /// The forward pass.
    pub struct Fwd {
        reads {
            /// The input; all operands have the node's shape.
            x: I [one],
        }
        writes {
            /// `max(x, 0)`.
            y: O [one],
        }
    }

    /// The backward pass.
    pub struct Bwd {
        reads {
            /// The gradient of y.
            dy: I [one],
            /// The output of the forward pass.
            y: I [one],
        }
        writes {
            /// The gradient of x; may be accumulated.
            dx: O [one],
        }
    }
}

/// A rectifier's pass in a graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The shape of every operand.
    pub shape: Shape,
    /// The pass.
    pub pass: Pass,
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match self.pass {
            Pass::Fwd => "relu_fwd",
            Pass::Bwd => "relu_bwd",
        }
    }

    fn operands(&self) -> Operands {
        let ty = || TensorType::real(self.shape.clone());
        match self.pass {
            Pass::Fwd => Operands::of(Fwd { x: ty().into(), y: Written::from(ty()).in_place() }),
            Pass::Bwd => {
                Operands::of(Bwd { dy: ty().into(), y: ty().into(), dx: Written::accumulated(ty()).in_place() })
            }
        }
    }

    fn flops(&self) -> u64 {
        self.shape.len() as u64
    }

    fn gradient(&self, _needed: &[bool]) -> Result<Vec<Gradient>> {
        let op = Op::Relu(Self { shape: self.shape.clone(), pass: Pass::Bwd });
        let Fwd { x, y } = <Fwd>::default().places();
        Ok(vec![Gradient::node(op, Bwd { dy: Source::Grad(y), y: Source::Output(y), dx: Some(x) })])
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
