//! The end of a residual block whose branch may be dropped (Huang et al. 2016, arXiv:1603.09382).
//!
//! ```text
//! gated   y = a + b where the gate is open, y = a where it is closed: b is not read then
//! scaled  y = a + p b                        at test time, p the branch's chance to survive
//! ```
//!
//! Either may be followed by a ReLU, which a closed gate does not skip. `a` is the shortcut, `b` the branch.

mod launch;
mod reference;

pub(crate) use launch::KERNELS;

use super::{Behind, Gradient, Io, Operator};
use crate::device::{Launch, Target};
use crate::tensor::{Shape, TensorType};
use crate::{Error, Result};

/// How much of the branch counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// `a, b, gate -> y`: all of it where the gate is not 0, else nothing.
    Gated,
    /// `a, b -> y`: this share of it.
    Scaled(f64),
}

/// The end of a block in a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The shape of `a`, `b` and `y`.
    pub shape: Shape,
    /// How much of `b` counts.
    pub keep: Keep,
    /// Whether a ReLU follows. The graph's builder never sets it; fusion does.
    pub relu: bool,
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match self.keep {
            Keep::Gated => "join_gated",
            Keep::Scaled(_) => "join_scaled",
        }
    }

    fn inputs(&self) -> Vec<TensorType> {
        let mut types = vec![TensorType::real(self.shape.clone()); 2];
        types.extend((self.keep == Keep::Gated).then(|| TensorType::stat([1])));
        types
    }

    fn outputs(&self) -> Vec<TensorType> {
        vec![TensorType::real(self.shape.clone())]
    }

    fn behind_gate(&self) -> Behind {
        let inputs = if self.keep == Keep::Gated { vec![1] } else { Vec::new() };
        Behind { inputs, outputs: Vec::new() }
    }

    fn flops(&self) -> u64 {
        let each = if self.keep == Keep::Gated { 1 } else { 2 };
        each * self.shape.len() as u64
    }

    /// `b` has a gradient where the gate is open only, which the graph sees to.
    fn gradient(&self, needed: &[bool]) -> Result<Vec<Gradient>> {
        if self.relu || self.keep != Keep::Gated {
            let why = "differentiate before fusing, and in training mode";
            return Err(Error::unsupported(format!("gradient of {} as it is", self.name()), why));
        }
        Ok((0..2).filter(|&i| needed[i]).map(|input| Gradient::Same { output: 0, input }).collect())
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
