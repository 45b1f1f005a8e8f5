//! How an op stores a result: the transform of each element, and the numbers per channel that it leaves.

use super::operands::{group, Read, Written};
use crate::tensor::{Real, TensorType};
use crate::{Error, Result};

/// The transform of a sum before it is stored: `y = relu(scale[k] sum + shift[k] + residual)`, each part optional.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epilogue<T = ()> {
    /// `[K]`: a folded batch norm.
    pub scale: Option<T>,
    /// `[K]`: a bias or a folded batch norm.
    pub shift: Option<T>,
    /// A tensor of y's shape.
    pub residual: Option<T>,
    /// True if a ReLU follows.
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

    /// The types, for a result of type `y` with `channels` channels.
    pub fn types(self, y: &TensorType, channels: usize) -> Epilogue<Read> {
        self.map(|name, _| match name {
            "residual" => y.clone().into(),
            _ => TensorType::stat([channels]).into(),
        })
    }

    /// True if there is no transform.
    pub fn is_plain(&self) -> bool {
        self.scale.is_none() && self.shift.is_none() && self.residual.is_none() && !self.relu
    }
}

group! {
    /// Mean and biased variance of each channel of the stored result.
    pub struct Moments {
        /// `[C]`.
        mean: T [one],
        /// `[C]`.
        var: T [one],
    }
}

group! {
    /// The input of a batch norm, and its mean.
    pub struct Normalised {
        /// `[N,H,W,C]`.
        y: T [one],
        /// `[C]`.
        mean: T [one],
    }
}

/// What the producer of a gradient dz does before it stores dz: the backward pass of a ReLU, and the sums for the batch
/// norms before the ReLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask<T = ()> {
    /// The value is the output of one batch norm.
    ///
    /// `v = dz`, plus the old content if dz is accumulated and not `scaled`. With a ReLU, v is 0 where
    /// `y scale + shift`, rounded to the storage type, is 0 or less. The sums are those of v. The op stores v, or with
    /// `scaled` it stores or accumulates `scale v`.
    Affine {
        /// The batch norm's input.
        y: T,
        /// `[C]`.
        scale: T,
        /// `[C]`.
        shift: T,
        /// `[C]`.
        mean: T,
        /// True if a ReLU follows the batch norm.
        relu: bool,
        /// True if the stored gradient is multiplied by the scale, after the sums.
        scaled: bool,
    },
    /// The value is the end of a residual block: `max(n_0(y_0) + n_1(y_1), 0)` or `max(n_0(y_0) + shortcut, 0)`, with
    /// batch norms n_i.
    ///
    /// `v = dz`, plus the old content if dz is accumulated, and 0 where the sign bit is 0 (see [`super::sum`]). The op
    /// stores v.
    Signs {
        /// One bit per element: 0 where the block's end is 0 or less.
        bits: T,
        /// y_0 and its mean.
        first: Normalised<T>,
        /// y_1 and its mean, if two batch norms were added.
        second: Option<Normalised<T>>,
        /// `[1]`: the gate of n_0's branch, if stochastic depth may drop it. If it is 0, y_0 and its mean are not read,
        /// and `Sums::first` is 0.
        gate: Option<T>,
    },
}

group! {
    /// The sums of a masked gradient v, each `[C]`. The kernels of conv2d sum v as it is rounded to the storage type,
    /// unless it is `scaled`; those of norm and pool sum v before it is rounded.
    pub struct Sums {
        /// `sum v`.
        dy: T [one],
        /// `sum v (y_0 - mean_0)`.
        first: T [one],
        /// `sum v (y_1 - mean_1)`, if there is a second batch norm.
        second: Option<T> [maybe],
    }
}

impl<T> Sums<T> {
    /// The number of sums.
    pub fn count(&self) -> usize {
        2 + usize::from(self.second.is_some())
    }

    /// The sums, in order.
    pub fn list(self) -> Vec<T> {
        [Some(self.dy), Some(self.first), self.second].into_iter().flatten().collect()
    }
}

/// Bytes of signs per pixel of `channels` channels: bit `c % 8` of byte `c / 8` is 0 where channel c is 0 or less.
pub fn sign_bytes(channels: usize) -> usize {
    channels.div_ceil(8)
}

/// Writes the signs of `z`: one bit per element, 0 where it is 0 or less. The bits past the last channel are 0.
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

    /// The mask without its operands.
    pub fn form(&self) -> Mask
    where
        T: Clone,
    {
        self.clone().map(|_, _| ())
    }

    /// The gate of the first batch norm's branch.
    pub fn gate(&self) -> Option<&T> {
        match self {
            Self::Affine { .. } => None,
            Self::Signs { gate, .. } => gate.as_ref(),
        }
    }

    /// The inputs of the batch norms and their means.
    pub fn normalised(&self) -> Vec<Normalised<&T>> {
        match self {
            Self::Affine { y, mean, .. } => vec![Normalised { y, mean }],
            Self::Signs { first, second, .. } => {
                [first].into_iter().chain(second).map(|Normalised { y, mean }| Normalised { y, mean }).collect()
            }
        }
    }

    /// True if the stored gradient is multiplied by the scale.
    pub fn is_scaled(&self) -> bool {
        matches!(self, Self::Affine { scaled: true, .. })
    }
}

impl Mask {
    /// The types, for a gradient of `shape` `[N,H,W,C]`.
    pub fn types(self, shape: [usize; 4]) -> Mask<Read> {
        let [n, h, w, c] = shape;
        let normalised = |gated: bool| Normalised {
            y: Read::behind(TensorType::real(shape), gated),
            mean: Read::behind(TensorType::stat([c]), gated),
        };
        match self {
            Self::Affine { relu, scaled, .. } => {
                let (Normalised { y, mean }, number) = (normalised(false), || TensorType::stat([c]).into());
                Mask::Affine { y, scale: number(), shift: number(), mean, relu, scaled }
            }
            // The first batch norm is in the branch that may be dropped.
            Self::Signs { second, gate, .. } => Mask::Signs {
                bits: TensorType::byte([n, h, w, sign_bytes(c)]).into(),
                first: normalised(gate.is_some()),
                second: second.map(|_| normalised(false)),
                gate: gate.map(|()| TensorType::stat([1]).into()),
            },
        }
    }

    /// The form of the sums.
    pub fn sums(&self) -> Sums {
        let second = matches!(self, Self::Signs { second: Some(_), .. }).then_some(());
        Sums { second, ..Sums::default() }
    }

    /// Fails unless `sums` is the form of the sums of `mask`.
    pub(super) fn check_sums(op: &str, mask: Option<Self>, sums: Option<Sums>) -> Result<()> {
        Error::check(mask.map(|mask| mask.sums()) == sums, op, || format!("{sums:?} with the mask {mask:?}"))
    }

    /// The types of the sums, for a gradient `[N,H,W,C]`.
    pub fn sum_types(&self, [_, _, _, c]: [usize; 4]) -> Sums<Written> {
        let gated = self.gate().is_some();
        self.sums().map(|name, ()| Written { gated: gated && name == "first", ..TensorType::stat([c]).into() })
    }
}
