//! The parameters of the kernels.

use super::{TREE_PIXELS, WALK};
use crate::ops::norm::gradient::Operands;
use crate::ops::params::{narrow, params};
use crate::ops::pool::{Kind, Pool, Window};
use crate::ops::strips::{Rows, Strips};
use crate::ops::Arg;
use crate::tensor::DType;
use crate::Result;

params! {
    /// `Windows` of kernels/pool/window.cuh.
    pub(super) struct Windows {
        h: u32, w: u32, p: u32, q: u32, kernel: [u32; 2], stride: [u32; 2], padding: [u32; 2], adaptive: u32,
        count_padding: u32,
    }

    /// `MaxFwd` of kernels/pool/forward.cuh.
    pub(super) struct MaxFwd {
        x: u64, y: u64, index: u64,
        x_stride: i64, y_stride: i64, index_stride: i64,
        strips: Strips, windows: Windows,
    }

    /// `AvgFwd` of kernels/pool/forward.cuh.
    pub(super) struct AvgFwd {
        x: u64, y: u64,
        x_stride: i64, y_stride: i64,
        strips: Strips, windows: Windows,
    }

    /// `MaxGradient` of kernels/pool/backward.cuh.
    pub(super) struct MaxGradient { dy: u64, index: u64, dy_stride: i64, index_stride: i64, windows: Windows }

    /// `AvgGradient` of kernels/pool/backward.cuh.
    pub(super) struct AvgGradient { dy: u64, dy_stride: i64, windows: Windows }

    /// `PoolBwd` of kernels/pool/backward.cuh, for a maximum.
    pub(super) struct MaxBwd {
        from: MaxGradient,
        dx: u64,
        dx_stride: i64,
        strips: Strips, accumulate: u32, unused: u32,
    }

    /// `PoolBwd` of kernels/pool/backward.cuh, for an average.
    pub(super) struct AvgBwd {
        from: AvgGradient,
        dx: u64,
        dx_stride: i64,
        strips: Strips, accumulate: u32, unused: u32,
    }

    /// `FusedMaxFwd` of kernels/pool/fused_fwd.cu.
    pub(super) struct FusedMaxFwd { pool: MaxFwd, numbers: Numbers }

    /// `FusedAvgFwd` of kernels/pool/fused_fwd.cu.
    pub(super) struct FusedAvgFwd { pool: AvgFwd, numbers: Numbers }

    /// The end of both.
    pub(super) struct Numbers { scale: u64, shift: u64, relu: u32, unused: u32 }

    /// `OfMax` of kernels/pool/fused_bwd.cu.
    pub(super) struct OfMax { from: MaxGradient, epilogue: Operands, strips: Strips }

    /// `OfAvg` of kernels/pool/fused_bwd.cu.
    pub(super) struct OfAvg { from: AvgGradient, epilogue: Operands, strips: Strips }
}

impl Windows {
    fn new(pool: &Pool) -> Result<Self> {
        let [_, h, w, _] = pool.spec.x;
        let [h, w, p, q] = narrow("pool", [h, w, pool.p, pool.q])?;
        let count_padding = (pool.spec.kind == Kind::Average { count_padding: true }).into();
        let ([kernel, stride, padding], adaptive) = match pool.spec.window {
            Window::Sliding { kernel, stride, padding, .. } => ([kernel, stride, padding], 0),
            Window::Adaptive(_) => ([[0; 2]; 3], 1),
        };
        let (kernel, stride, padding) = (narrow("pool", kernel)?, narrow("pool", stride)?, narrow("pool", padding)?);
        Ok(Self { h, w, p, q, kernel, stride, padding, adaptive, count_padding })
    }
}

impl Pool {
    /// The pixels of the input.
    pub(super) fn x_rows(&self) -> Rows {
        Rows::pixels(self.spec.x)
    }

    /// The pixels of the output.
    fn y_rows(&self) -> Rows {
        Rows::pixels(self.y_shape())
    }

    /// True for the rows (`axis` 0) or columns (`axis` 1) of x that a window covers.
    pub(super) fn covered(&self, axis: usize) -> Vec<bool> {
        let mut covered = vec![false; self.spec.x[1 + axis]];
        (0..[self.p, self.q][axis]).for_each(|i| covered[self.span(axis, i)].fill(true));
        covered
    }
}

impl MaxFwd {
    /// The parameters for tensors bound as `pool` describes them.
    pub fn new(pool: &Pool, dtype: DType, x: &Arg, [y, index]: [&Arg; 2]) -> Result<Self> {
        let rows = pool.y_rows();
        let strips = Strips::new(rows, dtype, WALK, rows.wide(dtype, &[x, y], &[index]))?;
        let [x_stride, y_stride, index_stride] = [x, y, index].map(|arg| rows.stride(arg));
        let ([x, y, index], windows) = ([x, y, index].map(Arg::address), Windows::new(pool)?);
        Ok(Self { x, y, index, x_stride, y_stride, index_stride, strips, windows })
    }
}

impl AvgFwd {
    /// The parameters for tensors bound as `pool` describes them; true if they are for the `_tree` kernels.
    pub fn new(pool: &Pool, dtype: DType, x: &Arg, y: &Arg) -> Result<(Self, bool)> {
        let rows = pool.y_rows();
        let (wide, tree) = (rows.wide(dtype, &[x, y], &[]), pool.most_pixels() >= TREE_PIXELS);
        let strips = if tree { Strips::blocks(rows, dtype, wide)? } else { Strips::new(rows, dtype, WALK, wide)? };
        let (x_stride, y_stride, windows) = (rows.stride(x), rows.stride(y), Windows::new(pool)?);
        Ok((Self { x: x.address(), y: y.address(), x_stride, y_stride, strips, windows }, tree))
    }
}

impl MaxGradient {
    /// dy and index, bound as `pool` describes them.
    pub fn new(pool: &Pool, dy: &Arg, index: &Arg) -> Result<Self> {
        let [dy_stride, index_stride] = [dy, index].map(|arg| pool.y_rows().stride(arg));
        Ok(Self { dy: dy.address(), index: index.address(), dy_stride, index_stride, windows: Windows::new(pool)? })
    }
}

impl AvgGradient {
    /// dy, bound as `pool` describes it.
    pub fn new(pool: &Pool, dy: &Arg) -> Result<Self> {
        let dy_stride = pool.y_rows().stride(dy);
        Ok(Self { dy: dy.address(), dy_stride, windows: Windows::new(pool)? })
    }
}
