//! Which kernels, on what grid.

use super::Node;
use crate::device::{Kernel, Launch, Target};
use crate::ops::strips::{entries, for_dtype, Rows, Strips};
use crate::ops::Io;
use crate::Result;

/// Rows that a thread walks where there are many.
const WALK: usize = 4;

/// `Add` of kernels/add/add.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    a: u64,
    b: u64,
    y: u64,
    a_stride: i64,
    b_stride: i64,
    y_stride: i64,
    strips: Strips,
    relu: u32,
    unused: u32,
}

static FWD: [Kernel; 3] = entries::<Params>(["add_fwd_f32", "add_fwd_f16", "add_fwd_bf16"], 0);

pub(crate) const KERNELS: &[&Kernel] = &[&FWD[0], &FWD[1], &FWD[2]];

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    let (a, b, y) = (&io.inputs[0], &io.inputs[1], &io.outputs[0]);
    let rows = Rows::of(&node.shape, &[a, b, y]);
    let strips = Strips::new(rows, target.dtype, WALK, rows.wide(target.dtype, &[a, b, y], &[]))?;
    let params = Params {
        a: a.view.address(),
        b: b.view.address(),
        y: y.view.address(),
        a_stride: rows.stride(a),
        b_stride: rows.stride(b),
        y_stride: rows.stride(y),
        strips,
        relu: node.relu.into(),
        unused: 0,
    };
    let (kernel, views) = (for_dtype(target.dtype, &FWD)?, vec![a.view.clone(), b.view.clone(), y.view.clone()]);
    // SAFETY: `strips` covers the node's shape, and the views hold tensors of that shape (`Io::check`).
    Ok(vec![unsafe { Launch::new(kernel, strips.grid()?, &params, io.cost(node, target.dtype), views) }])
}
