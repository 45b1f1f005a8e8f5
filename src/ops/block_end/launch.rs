//! Which kernels, on what grid.

use super::Node;
use crate::device::{Kernel, Launch, Target};
use crate::ops::strips::{entries, for_dtype, Rows, Strips};
use crate::ops::{Io, Operator};
use crate::Result;

/// Rows that a thread walks where there are many: enough to make loading the channels' numbers cheap.
const WALK: usize = 16;

/// `BlockEnd` of kernels/block_end/block_end.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    terms: [Term; 2],
    y: u64,
    signs: u64,
    open: u64,
    y_stride: i64,
    signs_stride: i64,
    strips: Strips,
    relu: u32,
    activated: u32,
}

/// `Term` of kernels/block_end/block_end.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Term {
    x: u64,
    scale: u64,
    shift: u64,
    stride: i64,
}

static FWD: [Kernel; 3] = entries::<Params>(["block_end_fwd_f32", "block_end_fwd_f16", "block_end_fwd_bf16"], 0);

pub(crate) const KERNELS: &[&Kernel] = &[&FWD[0], &FWD[1], &FWD[2]];

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    let (a, b, y, signs) = (&io.inputs[0], &io.inputs[1], &io.outputs[0], io.outputs.get(1));
    let [n, h, w, c] = node.shape;
    let rows = Rows::pixels(n * h * w, c);
    let strips = Strips::eights(rows, WALK, rows.wide(target.dtype, &[a, b, y], &[]))?;
    // Only terms that have numbers take a pair of them.
    let mut numbers = io.inputs[2..].chunks_exact(2);
    let terms = [(a, node.affine[0]), (b, node.affine[1])].map(|(x, affine)| {
        let pair = if affine { numbers.next() } else { None };
        let [scale, shift] = pair.map_or([0; 2], |pair| [0, 1].map(|i| pair[i].view.address()));
        Term { x: x.view.address(), scale, shift, stride: rows.stride(x) }
    });
    let params = Params {
        terms,
        y: y.view.address(),
        signs: signs.map_or(0, |s| s.view.address()),
        open: if node.gated { io.inputs[io.inputs.len() - 1].view.address() } else { 0 },
        y_stride: rows.stride(y),
        signs_stride: signs.map_or(0, |s| rows.stride(s)),
        strips,
        relu: node.relu.into(),
        activated: u32::from(node.activated[0]) | u32::from(node.activated[1]) << 1,
    };
    let views = io.inputs.iter().chain(io.outputs).map(|a| a.view.clone()).collect();
    let kernel = for_dtype(target.dtype, &FWD)?;
    // SAFETY: `strips` covers a, b, y and the signs' bytes, which with the channels' numbers are as large as the node
    // says (`Io::check`), as is the gate; scales, shifts, signs and the gate may be null.
    Ok(vec![unsafe { Launch::new(kernel, strips.grid()?, &params, node.cost(target.dtype), views) }])
}
