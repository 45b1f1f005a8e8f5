//! Shapes, element types, layouts and host tensors, independent of any device.
//!
//! Inside the library and in a graph's shapes, activations are NHWC (`x[N,H,W,C]`) and weights KRSC (`w[K,R,S,C]`).
//! Files and host tensors ([`HostTensor`], [`StateDict`]) have torch's NCHW and OIHW; [`layout`] converts.
//!
//! ```
//! use residuum::tensor::{DType, Elem, Shape, TensorType};
//!
//! // A batch of 8 images of 32x32 pixels and 3 channels, as a graph has it: NHWC.
//! let images = TensorType::real([8, 32, 32, 3]);
//! assert_eq!(images.bytes(DType::BF16), 8 * 32 * 32 * 3 * 2);
//! assert_eq!(images.shape.summary(), "n8 32x32 c3");
//! assert_eq!(Shape::from([8, 10]).nhwc(), Some([8, 1, 1, 10]));
//! // Statistics are f32 in every 16-bit program.
//! assert_eq!(Elem::Stat.bytes(DType::F16), 4);
//! assert_eq!("bf16".parse::<DType>()?.round(1.0 + 1.0 / 512.0), 1.0);
//! # Ok::<(), residuum::Error>(())
//! ```

mod host;
pub mod layout;
pub(crate) mod memory;
pub mod philox;
mod real;

pub use host::{HostData, HostTensor, StateDict};
pub use real::Real;

use std::fmt;

/// True if sizes in bytes of a tensor of these extents, and of its scratch memory, do not overflow.
pub(crate) fn is_addressable(extents: &[usize]) -> bool {
    let elements = extents.iter().try_fold(1usize, |elements, &extent| elements.checked_mul(extent));
    elements.is_some_and(|elements| elements <= usize::MAX >> 7)
}

/// The storage type of activations, their gradients and the weights' working copy. The [module](self) has an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// IEEE double precision; on the `cpu` device only.
    F64,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F64 => 8,
        }
    }

    /// The name as options and files spell it: `f32`, `f16`, `bf16`, `f64`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F64 => "f64",
        }
    }

    /// Rounds `v` to this type, to nearest even, as a store and a load do.
    pub fn round<T: Real>(self, v: T) -> T {
        match self {
            Self::F32 => T::from_f64(f64::from(v.to_f64() as f32)),
            Self::F16 => T::from_f64(half::f16::from_f64(v.to_f64()).to_f64()),
            Self::BF16 => T::from_f64(half::bf16::from_f64(v.to_f64()).to_f64()),
            Self::F64 => v,
        }
    }

    /// The distance from 1 to the next larger number (machine epsilon).
    pub const fn epsilon(self) -> f64 {
        match self {
            Self::F32 => f32::EPSILON as f64,
            Self::F16 => 1.0 / 1024.0,
            Self::BF16 => 1.0 / 128.0,
            Self::F64 => f64::EPSILON,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = crate::Error;

    fn from_str(s: &str) -> crate::Result<Self> {
        let found = [Self::F32, Self::F16, Self::BF16, Self::F64].into_iter().find(|dtype| dtype.name() == s);
        found.ok_or_else(|| crate::Error::invalid("dtype", format!("`{s}`, expected f32, f64, f16 or bf16")))
    }
}

/// The kind of a value's elements; [`DType`] says how [`Elem::Real`] is stored. See the [module](self) for an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// Activations, their gradients, and the weights that matrix products read: stored in the program's dtype.
    Real,
    /// Statistics, reductions, batch-norm parameters, biases, parameter gradients, losses: f32 (f64 in an f64 program).
    Stat,
    /// Class labels: i32.
    Index,
    /// Positions inside a pooling window: u8.
    Byte,
}

impl Elem {
    /// Bytes of one element in a program of type `dtype`.
    pub const fn bytes(self, dtype: DType) -> usize {
        match (self, dtype) {
            (Self::Real, _) => dtype.bytes(),
            (Self::Stat, DType::F64) => 8,
            (Self::Stat | Self::Index, _) => 4,
            (Self::Byte, _) => 1,
        }
    }
}

/// The extents of a tensor, slowest first: NHWC and KRSC in graphs, NCHW and OIHW in a [`HostTensor`]. See the
/// [module](self) for an example.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.0.iter().product()
    }

    /// True if there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The extents.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// The extents of a graph value as N, H, W, C; a rank-2 `[N, C]` reads as `[N, 1, 1, C]`, other ranks as `None`.
    pub fn nhwc(&self) -> Option<[usize; 4]> {
        match *self.0 {
            [n, h, w, c] => Some([n, h, w, c]),
            [n, c] => Some([n, 1, 1, c]),
            _ => None,
        }
    }

    /// The extents of a graph value in short: `n256 56x56 c64` for images (NHWC), else `64x10`.
    pub fn summary(&self) -> String {
        match *self.0 {
            [n, h, w, c] => format!("n{n} {h}x{w} c{c}"),
            _ => self.0.iter().map(usize::to_string).collect::<Vec<_>>().join("x"),
        }
    }
}

impl<T: Into<Vec<usize>>> From<T> for Shape {
    fn from(dims: T) -> Self {
        Self(dims.into())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// The shape and the kind of element of a graph value. See the [module](self) for an example.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// The extents, in the library's layout: NHWC or KRSC.
    pub shape: Shape,
    /// The kind of element.
    pub elem: Elem,
}

impl TensorType {
    /// Activations (`shape` is NHWC) or weights (KRSC).
    pub fn real(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into(), elem: Elem::Real }
    }

    /// Statistics, per-channel parameters (`[C]`) and other f32 values.
    pub fn stat(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into(), elem: Elem::Stat }
    }

    /// Labels, `[N]`.
    pub fn index(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into(), elem: Elem::Index }
    }

    /// Positions inside a pooling window, NHWC.
    pub fn byte(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into(), elem: Elem::Byte }
    }

    /// Bytes of the whole tensor in a program of type `dtype`.
    pub fn bytes(&self, dtype: DType) -> usize {
        self.shape.len() * self.elem.bytes(dtype)
    }
}
