//! Which kernels, on what grid.

use super::{Keep, Node};
use crate::device::{Kernel, Launch, Target};
use crate::ops::strips::{entries, for_dtype, Rows, Strips};
use crate::ops::{Io, Operator};
use crate::Result;

/// Rows that a thread walks where there are many.
const WALK: usize = 4;

/// `Join` of kernels/join/join.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    a: u64,
    b: u64,
    y: u64,
    open: u64,
    a_stride: i64,
    b_stride: i64,
    y_stride: i64,
    strips: Strips,
    share: f32,
    relu: u32,
}

static FWD: [Kernel; 3] = entries::<Params>(["join_fwd_f32", "join_fwd_f16", "join_fwd_bf16"], 0);

pub(crate) const KERNELS: &[&Kernel] = &[&FWD[0], &FWD[1], &FWD[2]];

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    let (a, b, y) = (&io.inputs[0], &io.inputs[1], &io.outputs[0]);
    let rows = Rows::of(&node.shape, &[a, b, y]);
    let strips = Strips::new(rows, target.dtype, WALK, rows.wide(target.dtype, &[a, b, y], &[]))?;
    let (open, share) = match node.keep {
        Keep::Gated => (io.inputs[2].view.address(), 1.0),
        Keep::Scaled(share) => (0, share as f32),
    };
    let params = Params {
        a: a.view.address(),
        b: b.view.address(),
        y: y.view.address(),
        open,
        a_stride: rows.stride(a),
        b_stride: rows.stride(b),
        y_stride: rows.stride(y),
        strips,
        share,
        relu: node.relu.into(),
    };
    let kernel = for_dtype(target.dtype, &FWD)?;
    let views = io.inputs.iter().chain(io.outputs).map(|arg| arg.view.clone()).collect();
    // SAFETY: `strips` covers the node's shape, and the views hold tensors of that shape and the gate (`Io::check`);
    // without a gate `open` is null.
    Ok(vec![unsafe { Launch::new(kernel, strips.grid()?, &params, node.cost(target.dtype), views) }])
}
