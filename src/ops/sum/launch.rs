//! Which kernels, on what grid.

use super::{Fwd, Kind, Node};
use crate::device::table::{entry, kernels};
use crate::device::{Launch, Target, View};
use crate::ops::load::{Affine, Load, Operand};
use crate::ops::strips::{Rows, Strips};
use crate::ops::{Arg, Io, Operator};
use crate::{Error, Result};

/// Rows that a thread walks where there are many.
const WALK: usize = 4;
/// Where the channels' numbers are loaded first: enough rows to make that cheap.
const WALK_END: usize = 16;

/// `Add` of kernels/sum/add.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Add {
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

/// `Join` of kernels/sum/join.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Join {
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

/// `BlockEnd` of kernels/sum/block_end.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct BlockEnd {
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

/// `Term` of kernels/sum/block_end.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Term {
    x: u64,
    scale: u64,
    shift: u64,
    stride: i64,
}

kernels! {
    ADD: Add = "sum_fwd_*", 0;
    JOIN: Join = "sum_join_*", 0;
    END: BlockEnd = "sum_end_*", 0;
}

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    let launch = match node.kind() {
        Kind::Add => add(node, target, io),
        Kind::Join => join(node, target, io),
        Kind::End => end(node, target, io),
    };
    Ok(vec![launch?])
}

fn add(node: &Node, target: Target, io: &Io<'_>) -> Result<Launch> {
    let Fwd { a: Operand { value: a, .. }, b: Operand { value: b, .. }, y, .. } = io.bind(node.form);
    let rows = Rows::of(&node.shape, &[a, b, y]);
    let strips = Strips::new(rows, target.dtype, WALK, rows.wide(target.dtype, &[a, b, y], &[]))?;
    let params = Add {
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
    let kernel = entry(target, &ADD)?;
    // SAFETY: `strips` covers the node's shape, and the views hold tensors of that shape (`Io::check`).
    Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, io.cost(node, target.dtype), views(io)) })
}

fn join(node: &Node, target: Target, io: &Io<'_>) -> Result<Launch> {
    let Fwd { a: Operand { value: a, .. }, b: Operand { value: b, .. }, gate, y, .. } = io.bind(node.form);
    let rows = Rows::of(&node.shape, &[a, b, y]);
    let strips = Strips::new(rows, target.dtype, WALK, rows.wide(target.dtype, &[a, b, y], &[]))?;
    let params = Join {
        a: a.view.address(),
        b: b.view.address(),
        y: y.view.address(),
        open: gate.map_or(0, |gate| gate.view.address()),
        a_stride: rows.stride(a),
        b_stride: rows.stride(b),
        y_stride: rows.stride(y),
        strips,
        share: node.share as f32,
        relu: node.relu.into(),
    };
    let kernel = entry(target, &JOIN)?;
    // SAFETY: `strips` covers the node's shape, and the views hold tensors of that shape and the gate (`Io::check`);
    // without a gate `open` is null.
    Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, node.cost(target.dtype), views(io)) })
}

fn end(node: &Node, target: Target, io: &Io<'_>) -> Result<Launch> {
    let &[n, h, w, c] = node.shape.dims() else {
        return Err(Error::unsupported(node.name(), format!("a tensor of shape {}, expected images", node.shape)));
    };
    if node.share != 1.0 {
        return Err(Error::unsupported(node.name(), format!("a share of {}, expected 1", node.share)));
    }
    let Fwd { a, b, gate, y, signs } = io.bind(node.form);
    let rows = Rows::pixels(n * h * w, c);
    let strips = Strips::eights(rows, WALK_END, rows.wide(target.dtype, &[a.value, b.value, y], &[]))?;
    let (first, second) = (term(node, &rows, a)?, term(node, &rows, b)?);
    let params = BlockEnd {
        terms: [first.0, second.0],
        y: y.view.address(),
        signs: signs.map_or(0, |s| s.view.address()),
        open: gate.map_or(0, |gate| gate.view.address()),
        y_stride: rows.stride(y),
        signs_stride: signs.map_or(0, |s| rows.stride(s)),
        strips,
        relu: node.relu.into(),
        activated: u32::from(first.1) | u32::from(second.1) << 1,
    };
    let kernel = entry(target, &END)?;
    // SAFETY: `strips` covers a, b, y and the signs' bytes, which with the channels' numbers are as large as the node
    // says (`Io::check`), as is the gate; scales, shifts, signs and the gate may be null.
    Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, node.cost(target.dtype), views(io)) })
}

/// A term, and whether it ends in a ReLU.
fn term(node: &Node, rows: &Rows, Operand { value: x, load }: Operand<&Arg>) -> Result<(Term, bool)> {
    let (scale, shift, relu) = match load {
        Load::AsIs => (0, 0, false),
        Load::Affine { affine: Affine { scale, shift }, relu } => (scale.view.address(), shift.view.address(), relu),
        _ => return Err(Error::unsupported(node.name(), "a term that is neither as it is nor a batch norm's")),
    };
    Ok((Term { x: x.view.address(), scale, shift, stride: rows.stride(x) }, relu))
}

fn views(io: &Io<'_>) -> Vec<View> {
    io.inputs.iter().chain(io.outputs).map(|arg| arg.view.clone()).collect()
}
