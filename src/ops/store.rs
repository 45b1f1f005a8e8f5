//! How an op stores a result: what is done to each element on its way out, and which numbers of each channel are left.

use super::operands::{group, Read, Written};
use crate::tensor::{Real, TensorType};
use crate::{Error, Result};

/// What is done to a sum before it is stored: `y = relu(scale[k] sum + shift[k] + residual)`, each part where it is
/// set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epilogue<T = ()> {
    /// Multiply by a number per output channel: a folded batch norm.
    pub scale: Option<T>,
    /// Add a number per output channel: a bias or a folded batch norm.
    pub shift: Option<T>,
    /// Add a tensor of the output's shape.
    pub residual: Option<T>,
    /// Replace negative results by 0.
    pub relu: bool,
}

impl<T> Default for Epilogue<T> {
    fn default() -> Self {
        Self { scale: None, shift: None, residual: None, relu: false }
    }
}

impl<T> Epilogue<T> {
    /// Calls `each` on every operand, in order, with its name.
    pub fn map<U>(self, mut each: impl FnMut(&'static str, T) -> U) -> Epilogue<U> {
        Epilogue {
            scale: self.scale.map(|v| each("scale", v)),
            shift: self.shift.map(|v| each("shift", v)),
            residual: self.residual.map(|v| each("residual", v)),
            relu: self.relu,
        }
    }

    /// This form with types, for a result of type `y` with `channels` channels.
    pub fn types(self, y: &TensorType, channels: usize) -> Epilogue<Read> {
        self.map(|name, _| match name {
            "residual" => y.clone().into(),
            _ => TensorType::stat([channels]).into(),
        })
    }

    /// Whether nothing is done.
    pub fn is_plain(&self) -> bool {
        self.scale.is_none() && self.shift.is_none() && self.residual.is_none() && !self.relu
    }
}

group! {
    /// Mean and biased variance of each channel of what is stored, f32.
    pub struct Moments {
        /// `mean[k]`.
        mean: T [one],
        /// `var[k]`.
        var: T [one],
    }
}

group! {
    /// The input of a batch norm, and its mean.
    pub struct Normalised {
        /// The input.
        y: T [one],
        /// Its mean, a number a channel.
        mean: T [one],
    }
}

/// What the producer of a gradient dz does to it before it is stored: the backward pass of a ReLU, and the sums of the
/// batch norms in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask<T = ()> {
    /// The value went through one batch norm.
    ///
    /// `v = dz (+ what is there, where dz is accumulated and not scaled)`, then, with a ReLU, 0 where
    /// `y scale + shift`, rounded to the storage type, is 0 or less. The sums are of v. Stored is v, or with
    /// `scaled` what is there plus `scale v` (accumulated), or `scale v` (overwritten).
    Affine {
        /// The batch norm's input.
        y: T,
        /// A number a channel.
        scale: T,
        /// A number a channel.
        shift: T,
        /// A number a channel.
        mean: T,
        /// Whether a ReLU followed the batch norm.
        relu: bool,
        /// Whether what is stored is multiplied by the scale, after the sums.
        scaled: bool,
    },
    /// The value is the end of a residual block: `max(n_0(y_0) + n_1(y_1), 0)` or `max(n_0(y_0) + shortcut, 0)`, n_i a
    /// batch norm.
    ///
    /// `v = dz (+ what is there)`, then 0 where the bit is not set (see [`super::sum`]). Stored is v.
    Signs {
        /// A bit an element: 0 where the block's end is 0 or less.
        bits: T,
        /// y_0 and its mean.
        first: Normalised<T>,
        /// y_1 and its mean, where two batch norms' outputs were added.
        second: Option<Normalised<T>>,
        /// The gate of the branch that n_0 is in, if that may be dropped: where it is 0, y_0 and its mean are not read,
        /// and the sum of the first is 0.
        gate: Option<T>,
    },
}

group! {
    /// The sums of a masked gradient v, a number a channel each, f32.
    pub struct Sums {
        /// `sum v`.
        dy: T [one],
        /// `sum v (y_0 - mean_0)`.
        first: T [one],
        /// `sum v (y_1 - mean_1)`, where there is a second batch norm.
        second: Option<T> [maybe],
    }
}

impl<T> Sums<T> {
    /// How many there are.
    pub fn count(&self) -> usize {
        2 + usize::from(self.second.is_some())
    }

    /// All, in order.
    pub fn list(self) -> Vec<T> {
        [Some(self.dy), Some(self.first), self.second].into_iter().flatten().collect()
    }
}

/// Bytes of a pixel of the signs of `channels` channels: bit `c % 8` of byte `c / 8` is 0 where channel c is 0 or less.
pub fn sign_bytes(channels: usize) -> usize {
    channels.div_ceil(8)
}

/// Writes the signs of `z`: a bit an element, 0 where it is 0 or less. The bits beyond the last channel are 0.
pub(super) fn write_signs<T: Real>(z: &[T], channels: usize, signs: &mut [u8]) {
    let pixels = signs.chunks_exact_mut(sign_bytes(channels)).zip(z.chunks_exact(channels));
    for (byte, values) in pixels.flat_map(|(bytes, z)| bytes.iter_mut().zip(z.chunks(8))) {
        *byte = values.iter().enumerate().map(|(j, &v)| u8::from(v.is_open()) << j).sum();
    }
}

impl<T: Default> Default for Mask<T> {
    fn default() -> Self {
        let [y, scale, shift, mean] = std::array::from_fn(|_| T::default());
        Self::Affine { y, scale, shift, mean, relu: false, scaled: false }
    }
}

impl<T> Mask<T> {
    /// Calls `each` on every operand, in order, with its name.
    pub fn map<U>(self, mut each: impl FnMut(&'static str, T) -> U) -> Mask<U> {
        match self {
            Self::Affine { y, scale, shift, mean, relu, scaled } => Mask::Affine {
                y: each("y", y),
                scale: each("scale", scale),
                shift: each("shift", shift),
                mean: each("mean", mean),
                relu,
                scaled,
            },
            Self::Signs { bits, first, second, gate } => Mask::Signs {
                bits: each("bits", bits),
                first: first.map(&mut each),
                second: second.map(|second| second.map(&mut each)),
                gate: gate.map(|gate| each("gate", gate)),
            },
        }
    }

    /// The same operands, none of which holds anything.
    pub fn form(&self) -> Mask {
        match self {
            Self::Affine { relu, scaled, .. } => {
                Mask::Affine { y: (), scale: (), shift: (), mean: (), relu: *relu, scaled: *scaled }
            }
            Self::Signs { second, gate, .. } => Mask::Signs {
                bits: (),
                first: Normalised::default(),
                second: second.as_ref().map(|_| Normalised::default()),
                gate: gate.as_ref().map(|_| ()),
            },
        }
    }

    /// The gate of the first batch norm's branch.
    pub fn gate(&self) -> Option<&T> {
        match self {
            Self::Affine { .. } => None,
            Self::Signs { gate, .. } => gate.as_ref(),
        }
    }

    /// The inputs of the batch norms, with their means.
    pub fn normalised(&self) -> Vec<Normalised<&T>> {
        match self {
            Self::Affine { y, mean, .. } => vec![Normalised { y, mean }],
            Self::Signs { first, second, .. } => [Some(first), second.as_ref()]
                .into_iter()
                .flatten()
                .map(|Normalised { y, mean }| Normalised { y, mean })
                .collect(),
        }
    }

    /// Whether what is stored is multiplied by the scale.
    pub fn is_scaled(&self) -> bool {
        matches!(self, Self::Affine { scaled: true, .. })
    }
}

impl Mask {
    /// This form with types, for a gradient of shape `[N,H,W,C]`.
    pub fn types(self, shape: [usize; 4]) -> Mask<Read> {
        let [n, h, w, c] = shape;
        let gated = self.gate().is_some();
        let mut branch = 2;
        self.map(|name, ()| {
            let ty = match name {
                "y" => TensorType::real(shape),
                "bits" => TensorType::byte([n, h, w, sign_bytes(c)]),
                "gate" => TensorType::stat([1]),
                _ => TensorType::stat([c]),
            };
            // The first batch norm's operands are those of the branch that may be dropped.
            let behind = gated && branch > 0 && matches!(name, "y" | "mean");
            branch -= i32::from(behind);
            Read::behind(ty, behind)
        })
    }

    /// The form of its sums.
    pub fn sums(&self) -> Sums {
        let second = matches!(self, Self::Signs { second: Some(_), .. }).then_some(());
        Sums { second, ..Sums::default() }
    }

    /// Fails unless `sums` are those that go with `mask`.
    pub(super) fn check_sums(op: &str, mask: Option<Self>, sums: Option<Sums>) -> Result<()> {
        if mask.map(|mask| mask.sums()) != sums {
            return Err(Error::invalid(op, format!("{sums:?} with the mask {mask:?}")));
        }
        Ok(())
    }

    /// The types of its sums, for a gradient of shape `[N,H,W,C]`.
    pub fn sum_types(&self, [_, _, _, c]: [usize; 4]) -> Sums<Written> {
        let gated = self.gate().is_some();
        self.sums().map(|name, ()| Written { gated: gated && name == "first", ..TensorType::stat([c]).into() })
    }
}
