//! Which kernels, on what grid.

use super::{Kind, Node, Pass, Pool, Window};
use crate::device::table::{entry, kernels};
use crate::device::{Cost, Launch, Target};
use crate::ops::strips::{Rows, Strips, THREADS};
use crate::ops::{Arg, Io, Write};
use crate::tensor::DType;
use crate::{Error, Result};

/// Rows that a thread walks where there are many.
const WALK: usize = 2;
/// From so many pixels on a block sums a window, not a thread.
const TREE_PIXELS: usize = 32;

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
pub(in crate::ops) struct MaxFwd {
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
pub(in crate::ops) struct AvgFwd {
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
pub(in crate::ops) struct MaxGradient {
    dy: u64,
    index: u64,
    dy_stride: i64,
    index_stride: i64,
    windows: Windows,
}

/// `AvgGradient` of kernels/pool/backward.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::ops) struct AvgGradient {
    dy: u64,
    dy_stride: i64,
    windows: Windows,
}

/// `PoolBwd` of kernels/pool/backward.cuh, of a maximum.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct MaxBwd {
    from: MaxGradient,
    dx: u64,
    dx_stride: i64,
    strips: Strips,
    accumulate: u32,
    unused: u32,
}

/// `PoolBwd` of kernels/pool/backward.cuh, of an average.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AvgBwd {
    from: AvgGradient,
    dx: u64,
    dx_stride: i64,
    strips: Strips,
    accumulate: u32,
    unused: u32,
}

kernels! {
    MAX_FWD: MaxFwd = "pool_max_fwd_*", 0;
    MAX_BWD: MaxBwd = "pool_max_bwd_*", 0;
    AVG_FWD: AvgFwd = "pool_avg_fwd_*", 0;
    AVG_FWD_TREE: AvgFwd = "pool_avg_fwd_*_tree", THREADS * 8 * 4;
    AVG_BWD: AvgBwd = "pool_avg_bwd_*", 0;
}

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    let launch = match (node.pool.spec.kind, node.pass) {
        (Kind::Max, Pass::Fwd) => max_fwd(node, target, io),
        (Kind::Max, Pass::Bwd) => max_bwd(node, target, io),
        (Kind::Average { .. }, Pass::Fwd) => avg_fwd(node, target, io),
        (Kind::Average { .. }, Pass::Bwd) => avg_bwd(node, target, io),
    };
    Ok(vec![launch?])
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
    fn x_rows(&self) -> Rows {
        let [n, h, w, c] = self.spec.x;
        Rows::pixels(n * h * w, c)
    }

    /// The pixels of the output.
    fn y_rows(&self) -> Rows {
        let [n, p, q, c] = self.y_shape();
        Rows::pixels(n * p * q, c)
    }

    /// Which rows (`axis` 0) or columns (`axis` 1) of the input a window covers.
    fn covered(&self, axis: usize) -> Vec<bool> {
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

/// Forward reads only what the windows cover.
fn cost(node: &Node, dtype: DType, io: &Io<'_>) -> Cost {
    let mut cost = io.cost(node, dtype);
    if node.pass == Pass::Fwd {
        let covered = [0, 1].map(|axis| node.pool.covered(axis));
        let reached = [&covered[0][..], &covered[1][..]];
        cost.bytes_read = io.inputs[0].touched_pixels(node.pool.spec.x, dtype.bytes(), reached);
    }
    cost
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
    /// The parameters for tensors bound as `pool` describes them, and whether they are for the kernel `_tree`.
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

fn max_fwd(node: &Node, target: Target, io: &Io<'_>) -> Result<Launch> {
    let (x, y, index) = (&io.inputs[0], &io.outputs[0], &io.outputs[1]);
    let params = MaxFwd::new(&node.pool, target.dtype, x, [y, index])?;
    let views = [x, y, index].map(|a| a.view.clone()).to_vec();
    let kernel = entry(target, &MAX_FWD)?;
    // SAFETY: `strips` covers y and index, windows lie inside x, and all are as large as that (`Io::check`).
    Ok(unsafe { Launch::new(kernel, params.strips.grid()?, &params, cost(node, target.dtype, io), views) })
}

fn max_bwd(node: &Node, target: Target, io: &Io<'_>) -> Result<Launch> {
    let (dy, index, dx) = (&io.inputs[0], &io.inputs[1], &io.outputs[0]);
    let rows = node.pool.x_rows();
    let params = MaxBwd {
        from: MaxGradient::new(&node.pool, dy, index)?,
        dx: dx.view.address(),
        dx_stride: rows.stride(dx),
        strips: Strips::new(rows, target.dtype, WALK, rows.wide(target.dtype, &[dy, dx], &[index]))?,
        accumulate: (dx.write == Write::Accumulate).into(),
        unused: 0,
    };
    let views = [dy, index, dx].map(|a| a.view.clone()).to_vec();
    let kernel = entry(target, &MAX_BWD)?;
    // SAFETY: `strips` covers dx, only windows of dy and index are read, and all are as large as that (`Io::check`).
    Ok(unsafe { Launch::new(kernel, params.strips.grid()?, &params, cost(node, target.dtype, io), views) })
}

fn avg_fwd(node: &Node, target: Target, io: &Io<'_>) -> Result<Launch> {
    let (x, y) = (&io.inputs[0], &io.outputs[0]);
    let (params, tree) = AvgFwd::new(&node.pool, target.dtype, x, y)?;
    let views = [x, y].map(|a| a.view.clone()).to_vec();
    let kernel = entry(target, if tree { &AVG_FWD_TREE } else { &AVG_FWD })?;
    // SAFETY: `strips` covers y, windows lie inside x, and both are as large as that (`Io::check`).
    Ok(unsafe { Launch::new(kernel, params.strips.grid()?, &params, cost(node, target.dtype, io), views) })
}

fn avg_bwd(node: &Node, target: Target, io: &Io<'_>) -> Result<Launch> {
    let (dy, dx) = (&io.inputs[0], &io.outputs[0]);
    let rows = node.pool.x_rows();
    let params = AvgBwd {
        from: AvgGradient::new(&node.pool, dy)?,
        dx: dx.view.address(),
        dx_stride: rows.stride(dx),
        strips: Strips::new(rows, target.dtype, WALK, rows.wide(target.dtype, &[dy, dx], &[]))?,
        accumulate: (dx.write == Write::Accumulate).into(),
        unused: 0,
    };
    let views = [dy, dx].map(|a| a.view.clone()).to_vec();
    let kernel = entry(target, &AVG_BWD)?;
    // SAFETY: `strips` covers dx, only windows of dy are read, and both are as large as that (`Io::check`).
    Ok(unsafe { Launch::new(kernel, params.strips.grid()?, &params, cost(node, target.dtype, io), views) })
}
