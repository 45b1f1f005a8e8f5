//! How an op loads an operand: a value in memory and a transform of each element. In the kernels this is `Source`: one
//! main loop, several ways to load. Padding is 0 after the transform, whichever it is.

use std::borrow::Cow;

use super::operands::group;
use super::HostRef;
use crate::tensor::{Real, TensorType};

group! {
    /// A batch norm as a multiply-add: two f32 numbers per channel.
    pub struct Affine {
        /// `[C]`.
        scale: T [one],
        /// `[C]`.
        shift: T [one],
    }
}

/// The transform of an element as it is loaded. Kernels round the result to the storage type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Load<T = ()> {
    /// Nothing.
    #[default]
    AsIs,
    /// `x scale[c] + shift[c]`, with `relu` then `max(., 0)`: a batch norm, applied by its reader.
    Affine {
        /// Scale and shift.
        affine: Affine<T>,
        /// True if a ReLU follows.
        relu: bool,
    },
    /// `a[c] g + b[c] y + c[c]`: the gradient of a batch norm's input, formed by its reader. Without `a`, a is 1.
    Corrected {
        /// The batch norm's input, with g's shape.
        y: T,
        /// `[C]`.
        a: Option<T>,
        /// `[C]`.
        b: T,
        /// `[C]`.
        c: T,
    },
    /// `max(x scale[c] + shift[c] + other other_scale[c] + other_shift[c], 0)`, scales and shifts optional: the end of
    /// a residual block, formed by its reader.
    Sum {
        /// Scale and shift of the operand itself.
        own: Option<Affine<T>>,
        /// The second operand, with x's shape.
        other: T,
        /// Its scale and shift.
        others: Option<Affine<T>>,
    },
}

impl<T> Load<T> {
    /// Calls `each` on every operand, in order, with its name.
    pub fn map<U>(self, mut each: impl FnMut(&'static str, T) -> U) -> Load<U> {
        match self {
            Self::AsIs => Load::AsIs,
            Self::Affine { affine, relu } => Load::Affine { affine: affine.map(each), relu },
            Self::Corrected { y, a, b, c } => {
                Load::Corrected { y: each("y", y), a: a.map(|a| each("a", a)), b: each("b", b), c: each("c", c) }
            }
            Self::Sum { own, other, others } => Load::Sum {
                own: own.map(|own| own.map(&mut each)),
                other: each("other", other),
                others: others.map(|others| others.map(&mut each)),
            },
        }
    }

    /// The types of the operands, for a value of type `of` with `channels` channels.
    pub fn types<R: From<TensorType>>(self, of: &TensorType, channels: usize) -> Load<R> {
        self.map(|name, _| match name {
            "y" | "other" => of.clone().into(),
            _ => TensorType::stat([channels]).into(),
        })
    }

    /// True if there is no transform.
    pub fn is_as_it_is(&self) -> bool {
        matches!(self, Self::AsIs)
    }
}

/// An operand with its load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Operand<T = ()> {
    /// The value in memory.
    pub value: T,
    /// Its transform.
    pub load: Load<T>,
}

impl<T> From<T> for Operand<T> {
    fn from(value: T) -> Self {
        Self { value, load: Load::AsIs }
    }
}

impl<T> Operand<T> {
    /// Calls `each` on the value, named `name`, and on the operands of its load.
    pub fn map<U>(self, name: &'static str, mut each: impl FnMut(&'static str, T) -> U) -> Operand<U> {
        Operand { value: each(name, self.value), load: self.load.map(each) }
    }

    /// The types, for a value of type `of` with `channels` channels.
    pub fn types<R: From<TensorType>>(self, of: TensorType, channels: usize) -> Operand<R> {
        Operand { load: self.load.types(&of, channels), value: of.into() }
    }
}

impl<'a, T: Real> Operand<HostRef<'a, T>> {
    /// The transformed operand, in `T`; it has `channels` channels.
    pub fn loaded(self, channels: usize) -> Cow<'a, [T]> {
        let Operand { value: x, load } = self.map("x", |_, v| v.real());
        let affine = |x: T, k: usize, affine: Option<Affine<&[T]>>| {
            affine.map_or(x, |Affine { scale, shift }| x * scale[k] + shift[k])
        };
        let each = |f: &dyn Fn(usize, T) -> T| Cow::Owned(x.iter().enumerate().map(|(i, &x)| f(i, x)).collect());
        match load {
            Load::AsIs => Cow::Borrowed(x),
            Load::Affine { affine: own, relu } => each(&|i, x| rectified(relu, affine(x, i % channels, Some(own)))),
            Load::Corrected { y, a, b, c } => each(&|i, g| {
                let k = i % channels;
                a.map_or(T::ONE, |a| a[k]) * g + b[k] * y[i] + c[k]
            }),
            Load::Sum { own, other, others } => each(&|i, x| {
                let k = i % channels;
                (affine(x, k, own) + affine(other[i], k, others)).maximum(T::ZERO)
            }),
        }
    }
}

/// `v`, with `relu` 0 if it is negative.
#[inline(always)]
pub(super) fn rectified<T: Real>(relu: bool, v: T) -> T {
    if relu {
        v.maximum(T::ZERO)
    } else {
        v
    }
}
