//! The end of a residual block in one pass, batch norms included:
//! `y = max(a * a_scale[c] + a_shift[c] + b * b_scale[c] + b_shift[c], 0)`, each scale and shift and the ReLU where set; a
//! term may have a ReLU of its own.
//!
//! With a gate, b is a branch that may be dropped: where the gate is 0, y is made of a alone, and neither b nor its numbers
//! are read.
//!
//! With `signs` it also leaves one bit an element, 0 where y as stored is 0 or less (a NaN has 1): all that the
//! backward pass needs of y. Bit `c % 8` of byte `c / 8` of a pixel is channel c; the bits beyond the last channel are
//! 0.

mod launch;
mod reference;

pub(crate) use launch::KERNELS;

use super::norm::sign_bytes;
use super::{Behind, Io, Operator};
use crate::device::{Launch, Target};
use crate::tensor::TensorType;
use crate::Result;

/// A block's end in a graph: `a, b [, a_scale, a_shift] [, b_scale, b_shift] [, gate] -> y [, signs]`.
///
/// An operand with a scale is transformed and added in f32; only the sum is rounded to the storage type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// N, H, W, C of a, b and y.
    pub shape: [usize; 4],
    /// Whether a has a scale and a shift, and whether b has.
    pub affine: [bool; 2],
    /// Whether negative results of a become 0 before the addition, and those of b.
    pub activated: [bool; 2],
    /// Whether b counts only where a gate is open.
    pub gated: bool,
    /// Whether negative results become 0.
    pub relu: bool,
    /// Whether the signs are left too.
    pub signs: bool,
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        "block_end_fwd"
    }

    fn inputs(&self) -> Vec<TensorType> {
        let mut types = vec![TensorType::real(self.shape); 2];
        let affine = self.affine.iter().filter(|&&on| on).count();
        types.extend(vec![TensorType::stat([self.shape[3]]); 2 * affine]);
        types.extend(self.gated.then(|| TensorType::stat([1])));
        types
    }

    fn outputs(&self) -> Vec<TensorType> {
        let [n, h, w, c] = self.shape;
        let mut types = vec![TensorType::real(self.shape)];
        types.extend(self.signs.then(|| TensorType::byte([n, h, w, sign_bytes(c)])));
        types
    }

    fn behind_gate(&self) -> Behind {
        // The branch is the last of the two, and its numbers come last.
        let numbers = if self.affine[1] { 2 } else { 0 };
        let gate = self.inputs().len() - 1;
        let inputs = if self.gated { std::iter::once(1).chain(gate - numbers..gate).collect() } else { Vec::new() };
        Behind { inputs, outputs: Vec::new() }
    }

    fn flops(&self) -> u64 {
        5 * self.shape.iter().product::<usize>() as u64
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
