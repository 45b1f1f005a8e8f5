//! The operands of a launch, checked once.

use super::variants::STEM_C;
use crate::device::View;
use crate::ops::{params, touched, Arg};
use crate::{Error, Result};

/// `v` as a kernel's parameter.
pub fn int(v: usize) -> Result<i32> {
    params::narrow("conv2d", [v]).map(|[v]| v as i32)
}

/// The tensors of a product.
#[derive(Clone, Copy, Debug)]
pub struct Factors<T> {
    /// Operand A: x in fwd, dy in bwd_x and bwd_w.
    pub a: T,
    /// Operand B: the weights in fwd and bwd_x, x in bwd_w.
    pub b: T,
    /// The result: y, dx or dw.
    pub out: T,
}

/// A matrix in device memory whose rows are `stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub view: &'a View,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
    /// Bytes of an element.
    pub elem: usize,
}

impl<'a> Matrix<'a> {
    /// A dense tensor: weights, statistics, partial sums.
    pub fn dense(what: &str, view: &'a View, [rows, cols]: [usize; 2], elem: usize) -> Result<Self> {
        Self::new(what, view, rows, cols, cols, elem)
    }

    /// An activation: a row is a pixel.
    pub fn pixels(what: &str, arg: &'a Arg, [rows, cols]: [usize; 2], elem: usize) -> Result<Self> {
        Self::new(what, &arg.view, rows, cols, arg.pixel_stride, elem)
    }

    fn new(what: &str, view: &'a View, rows: usize, cols: usize, stride: usize, elem: usize) -> Result<Self> {
        let (found, address) = (view.bytes(), view.address());
        let check = |holds, problem: &dyn Fn() -> String| Error::check(holds, format!("conv2d {what}"), problem);
        check(stride >= cols, &|| format!("{stride} elements from pixel to pixel, but {cols} channels"))?;
        let bytes = (stride.saturating_mul(rows - 1).saturating_add(cols)).saturating_mul(elem);
        check(found >= bytes, &|| format!("a view of {found} bytes, {bytes} expected"))?;
        let aligned = address.is_multiple_of(elem as u64);
        check(aligned, &|| format!("address {address:#x} is not a multiple of {elem}"))?;
        check(stride < 1 << 29, &|| format!("{stride} elements from row to row, below 2^29 expected"))?;
        Ok(Self { view, rows, cols, stride, elem })
    }

    pub fn address(&self) -> u64 {
        self.view.address()
    }

    /// Elements from row to row; checked to fit.
    pub fn stride(&self) -> i32 {
        self.stride as i32
    }

    /// True if 16-byte accesses are possible to groups of `channels` columns.
    pub fn takes_vectors(&self, channels: usize) -> bool {
        self.address().is_multiple_of(16)
            && (self.stride * self.elem).is_multiple_of(16)
            && (channels * self.elem).is_multiple_of(16)
    }

    /// True if the stem's kernels can read it.
    pub fn is_stem(&self) -> bool {
        self.stride == STEM_C && self.address().is_multiple_of((STEM_C * self.elem) as u64)
    }

    /// Bytes touched by reading or writing all elements.
    pub fn bytes(&self) -> u64 {
        touched::rows(self.address(), self.rows, self.cols * self.elem, self.stride * self.elem)
    }
}
