//! The parameters of the kernels.

use super::{TREE_PIXELS, WALK};
use crate::ops::norm::gradient::Operands;
use crate::ops::pool::{Kind, Pool, Window};
use crate::ops::strips::{Rows, Strips};
use crate::ops::Arg;
use crate::tensor::DType;
use crate::{Error, Result};

/// `Windows` of kernels/pool/window.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Windows {
    h: u32,
    w: u32,
    p: u32,
    q: u32,
    kernel: [u32; 2],
    stride: [u32; 2],
    padding: [u32; 2],
    adaptive: u32,
    count_padding: u32,
}

/// `MaxFwd` of kernels/pool/forward.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct MaxFwd {
    x: u64,
    y: u64,
    index: u64,
    x_stride: i64,
    y_stride: i64,
    index_stride: i64,
    pub strips: Strips,
    windows: Windows,
}

/// `AvgFwd` of kernels/pool/forward.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct AvgFwd {
    x: u64,
    y: u64,
    x_stride: i64,
    y_stride: i64,
    pub strips: Strips,
    windows: Windows,
}

/// `MaxGradient` of kernels/pool/backward.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct MaxGradient {
    dy: u64,
    index: u64,
    dy_stride: i64,
    index_stride: i64,
    windows: Windows,
}

/// `AvgGradient` of kernels/pool/backward.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct AvgGradient {
    dy: u64,
    dy_stride: i64,
    windows: Windows,
}

/// `PoolBwd` of kernels/pool/backward.cuh, of a maximum.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct MaxBwd {
    pub from: MaxGradient,
    pub dx: u64,
    pub dx_stride: i64,
    pub strips: Strips,
    pub accumulate: u32,
    pub unused: u32,
}

/// `PoolBwd` of kernels/pool/backward.cuh, of an average.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct AvgBwd {
    pub from: AvgGradient,
    pub dx: u64,
    pub dx_stride: i64,
    pub strips: Strips,
    pub accumulate: u32,
    pub unused: u32,
}

/// `NormMaxFwd` of kernels/pool/fused_fwd.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct NormMaxFwd {
    pub pool: MaxFwd,
    pub numbers: Numbers,
}

/// `NormAvgFwd` of kernels/pool/fused_fwd.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct NormAvgFwd {
    pub pool: AvgFwd,
    pub numbers: Numbers,
}

/// The end of both.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Numbers {
    pub scale: u64,
    pub shift: u64,
    pub relu: u32,
    pub unused: u32,
}

/// `OfMax` of kernels/pool/fused_bwd.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct OfMax {
    pub from: MaxGradient,
    pub epilogue: Operands,
    pub strips: Strips,
}

/// `OfAvg` of kernels/pool/fused_bwd.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct OfAvg {
    pub from: AvgGradient,
    pub epilogue: Operands,
    pub strips: Strips,
}

impl Windows {
    fn new(pool: &Pool) -> Result<Self> {
        let [_, h, w, _] = pool.spec.x;
        let narrow = |v: usize| match i32::try_from(v) {
            Ok(v) => Ok(v as u32),
            Err(_) => Err(Error::unsupported("pool", format!("an extent of {v}, the most is 2^31 - 1"))),
        };
        let pair = |v: [usize; 2]| Ok::<_, Error>([narrow(v[0])?, narrow(v[1])?]);
        let mut windows = Self {
            h: narrow(h)?,
            w: narrow(w)?,
            p: narrow(pool.p)?,
            q: narrow(pool.q)?,
            kernel: [0; 2],
            stride: [0; 2],
            padding: [0; 2],
            adaptive: 1,
            count_padding: (pool.spec.kind == Kind::Average { count_padding: true }).into(),
        };
        if let Window::Sliding { kernel, stride, padding, .. } = pool.spec.window {
            windows.kernel = pair(kernel)?;
            windows.stride = pair(stride)?;
            windows.padding = pair(padding)?;
            windows.adaptive = 0;
        }
        Ok(windows)
    }
}

impl Pool {
    /// The pixels of the input.
    pub(super) fn x_rows(&self) -> Rows {
        let [n, h, w, c] = self.spec.x;
        Rows::pixels(n * h * w, c)
    }

    /// The pixels of the output.
    fn y_rows(&self) -> Rows {
        let [n, p, q, c] = self.y_shape();
        Rows::pixels(n * p * q, c)
    }

    /// Which rows (`axis` 0) or columns (`axis` 1) of the input a window covers.
    pub(super) fn covered(&self, axis: usize) -> Vec<bool> {
        let mut covered = vec![false; self.spec.x[1 + axis]];
        (0..[self.p, self.q][axis]).for_each(|i| covered[self.span(axis, i)].fill(true));
        covered
    }

    /// The most pixels of a window.
    fn most_pixels(&self) -> usize {
        let most = |axis: usize, count: usize| (0..count).map(|i| self.span(axis, i).len()).max().unwrap_or(0);
        most(0, self.p) * most(1, self.q)
    }
}

impl MaxFwd {
    /// The parameters for tensors bound as `pool` describes them.
    pub fn new(pool: &Pool, dtype: DType, x: &Arg, [y, index]: [&Arg; 2]) -> Result<Self> {
        let rows = pool.y_rows();
        Ok(Self {
            x: x.view.address(),
            y: y.view.address(),
            index: index.view.address(),
            x_stride: rows.stride(x),
            y_stride: rows.stride(y),
            index_stride: rows.stride(index),
            strips: Strips::new(rows, dtype, WALK, rows.wide(dtype, &[x, y], &[index]))?,
            windows: Windows::new(pool)?,
        })
    }
}

impl AvgFwd {
    /// The parameters for tensors bound as `pool` describes them, and whether they are for the kernels `_tree`.
    pub fn new(pool: &Pool, dtype: DType, x: &Arg, y: &Arg) -> Result<(Self, bool)> {
        let rows = pool.y_rows();
        let (wide, tree) = (rows.wide(dtype, &[x, y], &[]), pool.most_pixels() >= TREE_PIXELS);
        let params = Self {
            x: x.view.address(),
            y: y.view.address(),
            x_stride: rows.stride(x),
            y_stride: rows.stride(y),
            strips: if tree { Strips::blocks(rows, dtype, wide)? } else { Strips::new(rows, dtype, WALK, wide)? },
            windows: Windows::new(pool)?,
        };
        Ok((params, tree))
    }
}

impl MaxGradient {
    /// dy and index, bound as `pool` describes them.
    pub fn new(pool: &Pool, dy: &Arg, index: &Arg) -> Result<Self> {
        let rows = pool.y_rows();
        Ok(Self {
            dy: dy.view.address(),
            index: index.view.address(),
            dy_stride: rows.stride(dy),
            index_stride: rows.stride(index),
            windows: Windows::new(pool)?,
        })
    }
}

impl AvgGradient {
    /// dy, bound as `pool` describes it.
    pub fn new(pool: &Pool, dy: &Arg) -> Result<Self> {
        let dy_stride = pool.y_rows().stride(dy);
        Ok(Self { dy: dy.view.address(), dy_stride, windows: Windows::new(pool)? })
    }
}
