//! Tensors on the host, in torch's shapes: what files hold and the public API exchanges.

use std::collections::BTreeMap;

use super::{memory, Real, Shape};
use crate::Result;

/// The elements of a [`HostTensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum HostData {
    /// Single precision; f16 and bf16 files are widened to it, which loses nothing.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
    /// Integers: labels and `num_batches_tracked`.
    I64(Vec<i64>),
}

impl HostData {
    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::I64(v) => v.len(),
        }
    }

    /// Calls `f` with each element, in order.
    pub(crate) fn each(&self, mut f: impl FnMut(f64)) {
        match self {
            Self::F32(v) => v.iter().for_each(|&a| f(f64::from(a))),
            Self::F64(v) => v.iter().for_each(|&a| f(a)),
            Self::I64(v) => v.iter().for_each(|&a| f(a as f64)),
        }
    }

    /// The same data once more; fails where there is no memory for it.
    pub(crate) fn copy(&self) -> Result<Self> {
        fn copy<T: Copy>(v: &[T]) -> Result<Vec<T>> {
            memory::collect("a copy of a tensor", v.iter().copied())
        }
        Ok(match self {
            Self::F32(v) => Self::F32(copy(v)?),
            Self::F64(v) => Self::F64(copy(v)?),
            Self::I64(v) => Self::I64(copy(v)?),
        })
    }
}

/// A dense tensor on the host in torch's layout (NCHW, OIHW, `[out, in]`), row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// The extents, in torch's order.
    pub shape: Shape,
    /// The elements, row-major.
    pub data: HostData,
}

/// Named tensors: what torch calls a state dict.
pub type StateDict = BTreeMap<String, HostTensor>;

impl HostTensor {
    /// A single-precision tensor. `data` must hold `shape.len()` elements.
    pub fn f32(shape: impl Into<Shape>, data: Vec<f32>) -> Self {
        Self::new(shape.into(), HostData::F32(data))
    }

    /// A double-precision tensor. `data` must hold `shape.len()` elements.
    pub fn f64(shape: impl Into<Shape>, data: Vec<f64>) -> Self {
        Self::new(shape.into(), HostData::F64(data))
    }

    /// An integer tensor. `data` must hold `shape.len()` elements.
    pub fn i64(shape: impl Into<Shape>, data: Vec<i64>) -> Self {
        Self::new(shape.into(), HostData::I64(data))
    }

    fn new(shape: Shape, data: HostData) -> Self {
        let t = Self { shape, data };
        assert_eq!(t.shape.len(), t.len(), "elements of a host tensor of shape {}", t.shape);
        t
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as `T`.
    pub fn to_real<T: Real>(&self) -> Vec<T> {
        match &self.data {
            HostData::F32(v) => v.iter().map(|&a| T::from_f64(f64::from(a))).collect(),
            HostData::F64(v) => v.iter().map(|&a| T::from_f64(a)).collect(),
            HostData::I64(v) => v.iter().map(|&a| T::from_f64(a as f64)).collect(),
        }
    }

    /// The index of the first element that is NaN or infinite.
    pub fn first_non_finite(&self) -> Option<usize> {
        match &self.data {
            HostData::F32(v) => v.iter().position(|a| !a.is_finite()),
            HostData::F64(v) => v.iter().position(|a| !a.is_finite()),
            HostData::I64(_) => None,
        }
    }
}
