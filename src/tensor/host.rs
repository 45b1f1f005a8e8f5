//! Tensors on the host in torch's layout, as files and the public API use them.

use std::collections::BTreeMap;

use super::{memory, Real, Shape};
use crate::{Error, Result};

/// The elements of a [`HostTensor`], which has an example.
#[derive(Clone, Debug, PartialEq)]
pub enum HostData {
    /// Single precision; f16 and bf16 data of files is widened to it exactly.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
    /// Integers: labels and `num_batches_tracked`.
    I64(Vec<i64>),
}

impl HostData {
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

    /// A copy. Fails if there is no memory for it.
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

/// A dense row-major tensor on the host, as torch has it: images NCHW, convolution weights OIHW, linear `[out, in]`.
///
/// ```
/// use residuum::tensor::HostTensor;
///
/// // Two grey images of 1x2 pixels.
/// let images = HostTensor::f32([2, 1, 1, 2], vec![0.0, 0.25, 0.5, f32::NAN]);
/// assert_eq!(images.len(), 4);
/// assert_eq!(images.first_non_finite(), Some(3));
/// assert_eq!(images.to_real::<f64>()[1], 0.25);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// The extents in torch's order: NCHW, OIHW or `[out, in]`.
    pub shape: Shape,
    /// The elements, row-major.
    pub data: HostData,
}

/// Named tensors, torch's state dict. [`weights`](crate::models::weights) has an example.
pub type StateDict = BTreeMap<String, HostTensor>;

impl HostTensor {
    /// A single-precision tensor; an image's `shape` is NCHW. Panics unless `data` holds `shape.len()` elements.
    pub fn f32(shape: impl Into<Shape>, data: Vec<f32>) -> Self {
        Self::new(shape.into(), HostData::F32(data))
    }

    /// A double-precision tensor; an image's `shape` is NCHW. Panics unless `data` holds `shape.len()` elements.
    pub fn f64(shape: impl Into<Shape>, data: Vec<f64>) -> Self {
        Self::new(shape.into(), HostData::F64(data))
    }

    /// An integer tensor in torch's layout. Panics unless `data` holds `shape.len()` elements.
    pub fn i64(shape: impl Into<Shape>, data: Vec<i64>) -> Self {
        Self::new(shape.into(), HostData::I64(data))
    }

    fn new(shape: Shape, data: HostData) -> Self {
        let t = Self { shape, data };
        assert_eq!(t.shape.len(), t.len(), "elements of a host tensor of shape {}", t.shape);
        t
    }

    /// Fails unless there are as many elements as the shape says. `what` names the tensor.
    pub(crate) fn check(&self, what: impl Into<String>) -> Result<()> {
        let elements = self.shape.dims().iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        Error::check(elements == Some(self.len()), what, || format!("{} elements of shape {}", self.len(), self.shape))
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// True if there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements converted to `T`, in torch's order.
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
