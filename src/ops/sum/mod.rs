//! The sum of two tensors: a plain addition, or the end of a residual block with its batch norms in one pass.
//!
//! ```text
//! y = max(load(a) + share load(b), 0)     the ReLU only if `relu` is set
//! y = max(load(a), 0)                     if the gate is 0; b and the operands of its load are not read
//! ```
//!
//! In a block `a` is the shortcut and `b` the branch, which stochastic depth may drop (Huang et al. 2016,
//! arXiv:1603.09382): in training by the gate; at inference `share` is its survival probability. Operands are loaded as
//! they are or through a batch norm. Kernels add in f32 and round only the sum to the storage type.
//!
//! `signs` is one bit per element, 0 where the stored y is 0 or less (1 for a NaN): the backward pass needs no more.
//! Bit `c % 8` of byte `c / 8` of a pixel is channel c; the bits past the last channel are 0.
//!
//! ```
//! use residuum::ops::sum::{Fwd, Node};
//! use residuum::ops::{HostIo, HostMut, HostOp, HostRef};
//!
//! let op = Node { relu: true, ..Node::of([2]) };
//! let (a, b, mut y) = ([1.0, 2.0], [3.0, -5.0], [f64::NAN; 2]);
//! let (a, b) = (HostRef::Real(&a).into(), HostRef::Real(&b).into()); // loaded as they are
//! op.reference(&mut HostIo::of(Fwd { a, b, gate: None, y: HostMut::Real(&mut y), signs: None }));
//! assert_eq!(y, [4.0, 0.0]);
//! ```

mod launch;
mod reference;

pub(crate) use launch::KERNELS;

use super::load::Operand;
use super::operands::{call, Call, Operands, Read, Written};
use super::store::sign_bytes;
use super::{Gradient, Io, Operator};
use crate::device::{Launch, Target};
use crate::tensor::{Shape, TensorType};
use crate::{Error, Result};

call! {
    /// A sum.
    pub struct Fwd {
        reads {
            /// The first term, of the node's shape.
            a: Operand<I> [operand],
            /// The second term, of the node's shape.
            b: Operand<I> [operand],
            /// `[1]`, f32: 1 adds b, 0 does not.
            gate: Option<I> [maybe],
        }
        writes {
            /// The sum, of the node's shape.
            y: O [one],
            /// `[N,H,W,ceil(C / 8)]`, bytes: the signs of y.
            signs: Option<O> [maybe],
        }
    }
}

/// A sum in a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The shape of a, b and y. Kernels with batch norms or signs need `[N,H,W,C]`.
    pub shape: Shape,
    /// The loads of a and b, and the optional operands.
    pub form: Fwd,
    /// The factor of b. Kernels with batch norms or signs need 1.
    pub share: f64,
    /// True if a ReLU follows; set by fusion, never by the graph's builder.
    pub relu: bool,
}

/// The kernels: the simplest one that the form allows. `End` takes only images and a factor of 1.
enum Kind {
    /// A plain addition.
    Add,
    /// With a gate or a factor.
    Join,
    /// With batch norms and signs.
    End,
}

impl Node {
    /// `y = a + b`.
    pub fn of(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into(), form: Fwd::default(), share: 1.0, relu: false }
    }

    fn kind(&self) -> Kind {
        let Fwd { a, b, gate, signs, .. } = &self.form;
        match () {
            _ if signs.is_some() || !a.load.is_as_it_is() || !b.load.is_as_it_is() => Kind::End,
            _ if gate.is_some() || self.share != 1.0 => Kind::Join,
            _ => Kind::Add,
        }
    }

    /// The extent of scales and shifts.
    fn channels(&self) -> usize {
        self.shape.dims().last().copied().unwrap_or(1)
    }
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match self.kind() {
            Kind::Add => "sum_fwd",
            Kind::Join if self.form.gate.is_some() => "sum_gated",
            Kind::Join => "sum_scaled",
            Kind::End => "sum_end",
        }
    }

    fn operands(&self) -> Operands {
        let (y, c) = (TensorType::real(self.shape.clone()), self.channels());
        let Fwd { a, b, gate, signs, .. } = self.form;
        let mut bits = self.shape.dims().to_vec();
        bits.splice(bits.len().saturating_sub(1).., [sign_bytes(c)]);
        Operands::of(Fwd {
            a: a.types(y.clone(), c),
            b: b.types(y.clone(), c).map("b", |_, read: Read| Read { gated: gate.is_some(), ..read }),
            gate: gate.map(|()| TensorType::stat([1]).into()),
            y: Written::from(y).in_place(),
            signs: signs.map(|()| TensorType::byte(bits).into()),
        })
    }

    fn flops(&self) -> u64 {
        let each = match self.kind() {
            Kind::Add => 1,
            Kind::Join if self.form.gate.is_some() => 1,
            Kind::Join => 2,
            Kind::End => 5,
        };
        each * self.shape.len() as u64
    }

    /// The graph drops b's gradient where the gate is closed.
    fn gradient(&self, needed: &[bool]) -> Result<Vec<Gradient>> {
        if self.relu || self.share != 1.0 || matches!(self.kind(), Kind::End) {
            let why = "differentiate before fusing, and in training mode";
            return Err(Error::unsupported(format!("gradient of {} as it is", self.name()), why));
        }
        let Fwd { a, b, y, .. } = self.form.places();
        let inputs = [a.value, b.value].into_iter().filter(|&input| needed[input]);
        Ok(inputs.map(|input| Gradient::Same { output: y, input }).collect())
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
