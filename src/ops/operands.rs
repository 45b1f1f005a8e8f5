//! Named operands, generic over the representation of a tensor.
//!
//! Each pass of an op has a struct with a field for every tensor: its *call*. `conv2d::BwdW<I, O>` has `dy: I`, `x: I`
//! and `dw: O`. A call holds types, values of a graph, bound views, host slices or, with `()`, only its *form*: which
//! optional operands are there. Lists of operands, as in a graph's nodes, are in the order of the fields.

use crate::tensor::TensorType;

/// The operands of one pass of an op: inputs are `I`s, outputs are `O`s.
pub trait Call<I, O>: Sized {
    /// The call with other representations.
    type Of<J, P>: Call<J, P>;

    /// Calls `read` on each input and `write` on each output, in order, with their names.
    fn map<J, P>(
        self,
        read: impl FnMut(&'static str, I) -> J,
        write: impl FnMut(&'static str, O) -> P,
    ) -> Self::Of<J, P>;

    /// The lists of inputs and outputs.
    fn into_lists(self) -> (Vec<I>, Vec<O>) {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        self.map(|_, v| reads.push(v), |_, v| writes.push(v));
        (reads, writes)
    }

    /// This form with operands from lists. Panics if a list is shorter or longer than the form.
    fn with<J, P>(self, reads: impl IntoIterator<Item = J>, writes: impl IntoIterator<Item = P>) -> Self::Of<J, P> {
        let (mut reads, mut writes) = (reads.into_iter(), writes.into_iter());
        let absent = |name: &str| -> ! { panic!("operand `{name}` is missing") };
        let call = self.map(
            |name, _| reads.next().unwrap_or_else(|| absent(name)),
            |name, _| writes.next().unwrap_or_else(|| absent(name)),
        );
        assert!(reads.next().is_none() && writes.next().is_none(), "more operands than names");
        call
    }

    /// The form.
    fn form(&self) -> Self::Of<(), ()>
    where
        Self: Clone,
    {
        self.clone().map(|_, _| (), |_, _| ())
    }

    /// The index of each operand in its list.
    fn places(self) -> Self::Of<usize, usize> {
        let next = |place: &mut usize| std::mem::replace(place, *place + 1);
        let (mut read, mut written) = (0, 0);
        self.map(|_, _| next(&mut read), |_, _| next(&mut written))
    }
}

/// Declares the calls of passes: structs with a field for each operand, inputs first. They are `Copy`, unless the block
/// begins with `derive();`.
///
/// The word after a field's type is its kind: `one` operand, `maybe` one, `many`, an `operand` with its load, a `group`
/// with a method `map`, or a `maybe_group`.
macro_rules! call {
    (derive $derives:tt; $(
        $(#[$meta:meta])*
        pub struct $name:ident {
            reads { $($(#[$rmeta:meta])* $r:ident: $rty:ty [$rkind:ident],)* }
            writes { $($(#[$wmeta:meta])* $w:ident: $wty:ty [$wkind:ident],)* }
        }
    )+) => {$(
        $(#[$meta])*
        #[derive $derives]
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name<I = (), O = I> {
            $($(#[$rmeta])* pub $r: $rty,)*
            $($(#[$wmeta])* pub $w: $wty,)*
        }

        impl<I, O> $crate::ops::operands::Call<I, O> for $name<I, O> {
            type Of<J, P> = $name<J, P>;

            #[allow(unused_mut, unused_variables)]
            fn map<J, P>(
                self,
                mut read: impl FnMut(&'static str, I) -> J,
                mut write: impl FnMut(&'static str, O) -> P,
            ) -> $name<J, P> {
                $name {
                    $($r: $crate::ops::operands::map_operand!(self.$r, stringify!($r), read, $rkind),)*
                    $($w: $crate::ops::operands::map_operand!(self.$w, stringify!($w), write, $wkind),)*
                }
            }
        }
    )+};
    ($($calls:tt)+) => {
        $crate::ops::operands::call! { derive(Copy); $($calls)+ }
    };
}

/// Declares a group of operands, as scale and shift are.
macro_rules! group {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($(#[$fmeta:meta])* $f:ident: $ty:ty [$kind:ident],)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name<T = ()> {
            $($(#[$fmeta])* pub $f: $ty,)*
        }

        impl<T> $name<T> {
            /// Calls `each` on every operand, in order, with its name.
            pub fn map<U>(self, mut each: impl FnMut(&'static str, T) -> U) -> $name<U> {
                $name { $($f: $crate::ops::operands::map_operand!(self.$f, stringify!($f), each, $kind),)* }
            }
        }
    };
}

macro_rules! map_operand {
    ($v:expr, $name:expr, $f:ident, one) => {
        $f($name, $v)
    };
    ($v:expr, $name:expr, $f:ident, maybe) => {
        $v.map(|v| $f($name, v))
    };
    ($v:expr, $name:expr, $f:ident, many) => {
        $v.into_iter().map(|v| $f($name, v)).collect()
    };
    ($v:expr, $name:expr, $f:ident, operand) => {
        $v.map($name, &mut $f)
    };
    ($v:expr, $name:expr, $f:ident, group) => {
        $v.map(&mut $f)
    };
    ($v:expr, $name:expr, $f:ident, maybe_group) => {
        $v.map(|v| v.map(&mut $f))
    };
}

pub(crate) use {call, group, map_operand};

/// An input of a checked descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Its type.
    pub ty: TensorType,
    /// True if it is read only while the op's own gate, its last input, is open.
    pub gated: bool,
}

/// An output of a checked descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its type.
    pub ty: TensorType,
    /// The use of its old content.
    pub old: Old,
    /// True if it is meaningful only while the op's own gate is open.
    pub gated: bool,
    /// True if an input may be the output, or either a slice of the other's channels: an element is read only by the
    /// thread that writes it.
    pub in_place: bool,
}

/// The use of an output's old content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old {
    /// It is overwritten.
    Lost,
    /// It is overwritten, or added to with [`Write::Accumulate`](super::Write).
    MayBeAddedTo,
    /// It is read and updated.
    Updated,
}

impl From<TensorType> for Read {
    fn from(ty: TensorType) -> Self {
        Self { ty, gated: false }
    }
}

impl From<TensorType> for Written {
    fn from(ty: TensorType) -> Self {
        Self { ty, old: Old::Lost, gated: false, in_place: false }
    }
}

impl Read {
    /// An input that, if `gated`, is read only while the gate is open.
    pub fn behind(ty: TensorType, gated: bool) -> Self {
        Self { ty, gated }
    }
}

impl Written {
    /// An output that may be accumulated.
    pub fn accumulated(ty: TensorType) -> Self {
        Self { old: Old::MayBeAddedTo, ..ty.into() }
    }

    /// An output whose old content is updated.
    pub fn updated(ty: TensorType) -> Self {
        Self { old: Old::Updated, ..ty.into() }
    }

    /// The output, with memory that inputs may share.
    pub fn in_place(self) -> Self {
        Self { in_place: true, ..self }
    }
}

/// All operands of an op, in order, with their names.
#[derive(Clone, Debug, Default)]
pub struct Operands {
    /// The inputs.
    pub reads: Vec<(&'static str, Read)>,
    /// The outputs.
    pub writes: Vec<(&'static str, Written)>,
}

impl Operands {
    /// The operands of `call`.
    pub fn of(call: impl Call<Read, Written>) -> Self {
        let mut operands = Self::default();
        call.map(|name, read| operands.reads.push((name, read)), |name, write| operands.writes.push((name, write)));
        operands
    }

    /// The indices of the outputs for which `is` is true.
    pub(super) fn written(&self, is: impl Fn(&Written) -> bool) -> Vec<usize> {
        self.writes.iter().enumerate().filter(|(_, (_, written))| is(written)).map(|(i, _)| i).collect()
    }
}
