//! The sum of two tensors: an addition, or the end of a residual block in one pass, batch norms included.
//!
//! ```text
//! y = max(load(a) + share load(b), 0)     the ReLU where set
//! y = max(load(a), 0)                     where there is a gate and it is 0: b and its numbers are not read then
//! ```
//!
//! In a block `a` is the shortcut and `b` the branch, which stochastic depth may drop (Huang et al. 2016,
//! arXiv:1603.09382): by the gate in training, and at inference `share` is its survival probability. An operand is
//! loaded as it is or through a batch norm; the terms are added in f32, and only the sum is rounded to the storage
//! type.
//!
//! With `signs` it also leaves one bit an element, 0 where y as stored is 0 or less (a NaN has 1): all that the
//! backward pass needs of y. Bit `c % 8` of byte `c / 8` of a pixel is channel c; the bits beyond the last channel are
//! 0.

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
    #[derive(Copy)]
    pub struct Fwd {
        reads {
            /// The first term.
            a: Operand<I> [operand],
            /// The second term, of the same shape.
            b: Operand<I> [operand],
            /// `[1]`: where it is 0, b does not count.
            gate: Option<I> [maybe],
        }
        writes {
            /// The sum, of the same shape.
            y: O [one],
            /// A bit an element: where y is positive.
            signs: Option<O> [maybe],
        }
    }
}

/// A sum in a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The shape of a, b and y; N, H, W, C where an operand is not loaded as it is or there are signs.
    pub shape: Shape,
    /// How a and b are loaded, and which other operands there are.
    pub form: Fwd,
    /// What b is multiplied by; 1 where an operand is not loaded as it is or there are signs.
    pub share: f64,
    /// Whether negative results become 0. The graph's builder never sets it; fusion does.
    pub relu: bool,
}

/// The kernels, each of which does what those before it do.
enum Kind {
    /// Of tensors as they are.
    Add,
    /// With a gate or a share.
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

    /// The extent along which scales and shifts lie.
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

    /// b has a gradient where the gate is open only, which the graph sees to.
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
