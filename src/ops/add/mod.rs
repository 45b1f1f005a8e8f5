//! Addition of two tensors of one shape: `y = a + b`, or `y = max(a + b, 0)`: the end of a residual block.

mod launch;
mod reference;

pub(crate) use launch::KERNELS;

use super::{Gradient, Io, Operator};
use crate::device::{Launch, Target};
use crate::tensor::{Shape, TensorType};
use crate::{Error, Result};

/// An addition in a graph: `a, b -> y`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The shape of every tensor of it.
    pub shape: Shape,
    /// Whether a ReLU follows. The graph's builder never sets it; fusion does.
    pub relu: bool,
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        "add_fwd"
    }

    fn inputs(&self) -> Vec<TensorType> {
        vec![TensorType::real(self.shape.clone()); 2]
    }

    fn outputs(&self) -> Vec<TensorType> {
        vec![TensorType::real(self.shape.clone())]
    }

    fn flops(&self) -> u64 {
        self.shape.len() as u64
    }

    fn gradient(&self, needed: &[bool]) -> Result<Vec<Gradient>> {
        if self.relu {
            return Err(Error::unsupported("gradient of add_fwd with a ReLU", "differentiate before fusing"));
        }
        Ok((0..2).filter(|&i| needed[i]).map(|input| Gradient::Same { output: 0, input }).collect())
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
