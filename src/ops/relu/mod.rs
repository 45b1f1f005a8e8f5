//! The rectifier: `y = max(x, 0)`; backward `dx = 0` where `y <= 0`, else `dy`. A NaN stays a NaN, and where y is one
//! dy passes, as in torch.

mod launch;
mod reference;

pub(crate) use launch::KERNELS;

use super::{Gradient, Io, Op, Operator, Source};
use crate::device::{Launch, Target};
use crate::tensor::{Shape, TensorType};
use crate::Result;

/// One pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// `x -> y`.
    Fwd,
    /// `dy, y -> dx`.
    Bwd,
}

/// A rectifier's pass in a graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The shape of every tensor of it.
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

    fn inputs(&self) -> Vec<TensorType> {
        let t = TensorType::real(self.shape.clone());
        match self.pass {
            Pass::Fwd => vec![t],
            Pass::Bwd => vec![t.clone(), t],
        }
    }

    fn outputs(&self) -> Vec<TensorType> {
        vec![TensorType::real(self.shape.clone())]
    }

    fn accumulates(&self) -> &'static [usize] {
        match self.pass {
            Pass::Fwd => &[],
            Pass::Bwd => &[0],
        }
    }

    fn flops(&self) -> u64 {
        self.shape.len() as u64
    }

    fn gradient(&self, _needed: &[bool]) -> Result<Vec<Gradient>> {
        let op = Op::Relu(Self { shape: self.shape.clone(), pass: Pass::Bwd });
        Ok(vec![Gradient::Node { op, sources: vec![Source::Grad(0), Source::Output(0)], targets: vec![Some(0)] }])
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
