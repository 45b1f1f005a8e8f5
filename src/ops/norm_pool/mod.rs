//! Pooling fused with the batch norm and ReLU before it: [`pool`](super::pool) with what [`norm`] defines
//! done while x is loaded and dx is stored.

mod launch;
mod reference;

pub(crate) use launch::KERNELS;

use super::pool::{Kind, Pool};
use super::store::Mask;
use super::{Behind, Io, Operator};
use crate::device::{Launch, Target};
use crate::tensor::TensorType;
use crate::Result;

/// One pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// `x, x_scale, x_shift: prologue -> y`, and for a maximum also `index`, as in pool.
    Fwd {
        /// Whether a ReLU follows the batch norm.
        relu: bool,
    },
    /// `dy [, index], operands of the epilogue -> dx, sums of the epilogue`.
    Bwd(Mask),
}

/// A fused pooling's pass in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The pooling.
    pub pool: Pool,
    /// The pass.
    pub pass: Pass,
}

impl Node {
    /// `y`, and for a maximum `index`.
    fn results(&self) -> Vec<TensorType> {
        let mut types = vec![TensorType::real(self.pool.y_shape())];
        types.extend((self.pool.spec().kind == Kind::Max).then(|| TensorType::byte(self.pool.y_shape())));
        types
    }
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match (self.pool.spec().kind, self.pass) {
            (Kind::Max, Pass::Fwd { .. }) => "norm_pool_max_fwd",
            (Kind::Max, Pass::Bwd(_)) => "norm_pool_max_bwd",
            (Kind::Average { .. }, Pass::Fwd { .. }) => "norm_pool_avg_fwd",
            (Kind::Average { .. }, Pass::Bwd(_)) => "norm_pool_avg_bwd",
        }
    }

    fn inputs(&self) -> Vec<TensorType> {
        match self.pass {
            Pass::Fwd { .. } => {
                let number = TensorType::stat([self.pool.spec().x[3]]);
                vec![self.pool.x(), number.clone(), number]
            }
            Pass::Bwd(mask) => {
                let mut types = self.results();
                mask.types(self.pool.spec().x).map(|_, read| types.push(read.ty));
                types
            }
        }
    }

    fn outputs(&self) -> Vec<TensorType> {
        match self.pass {
            Pass::Fwd { .. } => self.results(),
            Pass::Bwd(mask) => {
                let mut types = vec![self.pool.x()];
                types.extend(mask.sum_types(self.pool.spec().x).list().into_iter().map(|sum| sum.ty));
                types
            }
        }
    }

    fn accumulates(&self) -> Vec<usize> {
        match self.pass {
            Pass::Fwd { .. } => vec![],
            Pass::Bwd(_) => vec![0],
        }
    }

    fn behind_gate(&self) -> Behind {
        match self.pass {
            Pass::Fwd { .. } => Behind::default(),
            Pass::Bwd(mask) => {
                let mut at = self.results().len()..;
                let mut behind = Behind::default();
                mask.types(self.pool.spec().x).map(|_, read| {
                    let i = at.next().unwrap_or(0);
                    behind.inputs.extend(read.gated.then_some(i));
                });
                let sums = mask.sum_types(self.pool.spec().x).list().into_iter().enumerate();
                behind.outputs.extend(sums.filter(|(_, sum)| sum.gated).map(|(i, _)| 1 + i));
                behind
            }
        }
    }

    fn flops(&self) -> u64 {
        let [n, _, _, c] = self.pool.spec().x;
        let [p, q] = self.pool.output();
        let along = |axis: usize, count: usize| (0..count).map(|i| self.pool.span(axis, i).len()).sum::<usize>();
        let taken = (n * c * along(0, p) * along(1, q)) as u64;
        match self.pass {
            Pass::Fwd { .. } => 3 * taken,
            Pass::Bwd(_) => taken + 6 * self.pool.x().shape.len() as u64,
        }
    }

    fn scratch_bytes(&self, target: Target) -> usize {
        launch::scratch_bytes(self, target)
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
    fn updates(&self) -> Vec<usize> {
        Vec::new()
    }
}
