//! How an op loads an operand: a value in memory and what is done to each element on its way in.
//!
//! The kernels have the same idea as `Source`: one main loop, several ways to load. An element that lies beside an
//! image (padding) is 0 after the load, whatever the load is.

use std::borrow::Cow;

use super::operands::group;
use super::HostRef;
use crate::tensor::{Real, TensorType};

group! {
    /// A batch norm as a multiply-add: two numbers a channel, f32.
    pub struct Affine {
        /// `scale[c]`.
        scale: T [one],
        /// `shift[c]`.
        shift: T [one],
    }
}

/// What is done to an element as it is loaded. The result is rounded to the storage type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Load<T = ()> {
    /// Nothing.
    #[default]
    AsIs,
    /// `x scale[c] + shift[c]`, and 0 in place of what is negative if `relu`: a batch norm, applied by its reader.
    Affine {
        /// Scale and shift.
        affine: Affine<T>,
        /// Whether a ReLU follows.
        relu: bool,
    },
    /// `a[c] g + b[c] y + c[c]`: the gradient of a batch norm's input, formed by its reader. Without `a` it is 1.
    Corrected {
        /// The batch norm's input, of the shape of g.
        y: T,
        /// A number a channel.
        a: Option<T>,
        /// A number a channel.
        b: T,
        /// A number a channel.
        c: T,
    },
    /// `max(x scale[c] + shift[c] + other other_scale[c] + other_shift[c], 0)`, each scale and shift where there is
    /// one: the end of a residual block, formed by its reader.
    Sum {
        /// Scale and shift of the operand itself.
        own: Option<Affine<T>>,
        /// The second operand, of the same shape.
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

    /// This form with the types of its operands, for a value of type `of` with `channels` channels.
    pub fn types<R: From<TensorType>>(self, of: &TensorType, channels: usize) -> Load<R> {
        self.map(|name, _| match name {
            "y" | "other" => of.clone().into(),
            _ => TensorType::stat([channels]).into(),
        })
    }

    /// Whether nothing is done.
    pub fn is_as_it_is(&self) -> bool {
        matches!(self, Self::AsIs)
    }
}

/// An operand with its load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Operand<T = ()> {
    /// What lies in memory.
    pub value: T,
    /// What is done to it on its way in.
    pub load: Load<T>,
}

impl<T> From<T> for Operand<T> {
    fn from(value: T) -> Self {
        Self { value, load: Load::AsIs }
    }
}

impl<T> Operand<T> {
    /// Calls `each` on the value, whose name is `name`, and on the operands of its load.
    pub fn map<U>(self, name: &'static str, mut each: impl FnMut(&'static str, T) -> U) -> Operand<U> {
        Operand { value: each(name, self.value), load: self.load.map(each) }
    }

    /// This form with types, where the value is of type `of` with `channels` channels.
    pub fn types<R: From<TensorType>>(self, of: TensorType, channels: usize) -> Operand<R> {
        Operand { load: self.load.types(&of, channels), value: of.into() }
    }
}

impl<'a, T: Real> Operand<HostRef<'a, T>> {
    /// The operand of `channels` channels as the op sees it, in plain arithmetic.
    pub fn loaded(self, channels: usize) -> Cow<'a, [T]> {
        let Operand { value: x, load } = self.map("x", |_, v| v.real());
        let affine = |x: T, k: usize, affine: Option<Affine<&[T]>>| {
            affine.map_or(x, |Affine { scale, shift }| x * scale[k] + shift[k])
        };
        let each = |f: &dyn Fn(usize, T) -> T| Cow::Owned(x.iter().enumerate().map(|(i, &x)| f(i, x)).collect());
        match load {
            Load::AsIs => Cow::Borrowed(x),
            Load::Affine { affine: own, relu } => each(&|i, x| {
                let z = affine(x, i % channels, Some(own));
                if relu {
                    z.maximum(T::ZERO)
                } else {
                    z
                }
            }),
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
