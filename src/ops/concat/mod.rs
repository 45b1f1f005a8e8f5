//! Concatenation along the channels: `y[n,h,w,o_i + c] = x_i[n,h,w,c]`, o_i being the channels of the tensors before x_i.
//!
//! Where memory is planned for kernels, the parts are slices of the whole from the start and nothing is copied: see
//! `graph/fuse/concat.rs`. What is copied is a part that lies elsewhere.

mod launch;
mod reference;

pub(crate) use launch::KERNELS;

use super::{Gradient, Io, Op, Operator, Source};
use crate::device::{Launch, Target};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// What a concatenation is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// N, H, W of every tensor of it.
    pub pixels: [usize; 3],
    /// Channels of each part, in order.
    pub channels: Vec<usize>,
}

/// A concatenation whose shapes have been checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Concat {
    spec: Spec,
}

impl Concat {
    /// Checks `spec`: at least one part, and no extent 0.
    pub fn new(spec: Spec) -> Result<Self> {
        if spec.channels.is_empty() {
            return Err(Error::invalid("concat", "no tensors, expected at least one"));
        }
        if spec.pixels.contains(&0) || spec.channels.contains(&0) {
            return Err(Error::invalid("concat", format!("{spec:?} has a zero where at least 1 is needed")));
        }
        Ok(Self { spec })
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The extents of the whole, N, H, W, C.
    pub fn whole(&self) -> [usize; 4] {
        self.with_channels(self.spec.channels.iter().sum())
    }

    /// The extents of each part.
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

    fn with_channels(&self, c: usize) -> [usize; 4] {
        let [n, h, w] = self.spec.pixels;
        [n, h, w, c]
    }
}

/// One pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// `x_0, x_1, .. -> y`.
    Fwd,
    /// `dy -> dx_0, dx_1, ..`: a split.
    Bwd,
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

    fn inputs(&self) -> Vec<TensorType> {
        match self.pass {
            Pass::Fwd => self.concat.parts().into_iter().map(TensorType::real).collect(),
            Pass::Bwd => vec![TensorType::real(self.concat.whole())],
        }
    }

    fn outputs(&self) -> Vec<TensorType> {
        match self.pass {
            Pass::Fwd => vec![TensorType::real(self.concat.whole())],
            Pass::Bwd => self.concat.parts().into_iter().map(TensorType::real).collect(),
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
        let targets = (0..self.concat.spec.channels.len()).map(Some).collect();
        Ok(vec![Gradient::Node { op, sources: vec![Source::Grad(0)], targets }])
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
