//! How many bytes a device takes for an element.

use crate::tensor::{DType, Elem, TensorType};

/// How a device stores elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage {
    pub dtype: DType,
    /// Bytes of [`Elem::Real`] and of [`Elem::Stat`].
    pub real: usize,
    pub stat: usize,
    /// Whether kernels run on it, beside which inputs can be written.
    pub kernels: bool,
}

impl Storage {
    /// As the kernels store: Real in `dtype`, Stat in f32.
    pub fn kernels(dtype: DType) -> Self {
        Self { dtype, real: dtype.bytes(), stat: 4, kernels: true }
    }

    /// As the host stores: numbers of `bytes` bytes throughout, Real rounded to `dtype`.
    pub fn host(dtype: DType, bytes: usize) -> Self {
        Self { dtype, real: bytes, stat: bytes, kernels: false }
    }

    pub fn bytes(&self, elem: Elem) -> usize {
        match elem {
            Elem::Real => self.real,
            Elem::Stat => self.stat,
            Elem::Index | Elem::Byte => elem.bytes(self.dtype),
        }
    }

    /// Bytes of all elements of `ty`.
    pub fn value_bytes(&self, ty: &TensorType) -> usize {
        ty.shape.len() * self.bytes(ty.elem)
    }

    /// Whether weights have a working copy beside the masters.
    pub fn has_working_copy(&self) -> bool {
        matches!(self.dtype, DType::F16 | DType::BF16)
    }
}
