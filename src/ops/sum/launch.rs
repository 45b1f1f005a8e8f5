//! The launches: kernels, grids and parameters.

use super::{Fwd, Kind, Node};
use crate::device::table::{entry, kernels};
use crate::device::{Launch, Target};
use crate::ops::load::{Affine, Load, Operand};
use crate::ops::params::params;
use crate::ops::strips::{elementwise, Rows, Strips};
use crate::ops::{Arg, Io, Operator};
use crate::{Error, Result};

/// The most rows per thread if it first loads scales and shifts: enough to make that cheap.
const WALK_END: usize = 16;

params! {
    /// `Add` of kernels/sum/add.cu.
    struct Add {
        a: u64, b: u64, y: u64,
        a_stride: i64, b_stride: i64, y_stride: i64,
        strips: Strips, relu: u32, unused: u32,
    }

    /// `Join` of kernels/sum/join.cu.
    struct Join {
        a: u64, b: u64, y: u64, gate: u64,
        a_stride: i64, b_stride: i64, y_stride: i64,
        strips: Strips, survival: f32, relu: u32,
    }

    /// `BlockEnd` of kernels/sum/block_end.cu.
    struct BlockEnd {
        terms: [Term; 2],
        y: u64, signs: u64, gate: u64,
        y_stride: i64, signs_stride: i64,
        strips: Strips, relu: u32, activated: u32,
    }

    /// `Term` of kernels/sum/block_end.cu.
    struct Term { x: u64, scale: u64, shift: u64, stride: i64 }
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
    let Fwd { a, b, y, .. } = io.bind(node.form);
    let args = [a.value, b.value, y];
    let (strips, [a_stride, b_stride, y_stride]) = elementwise(&node.shape, target.dtype, args)?;
    let ([a, b, y], relu) = (args.map(Arg::address), node.relu.into());
    let params = Add { a, b, y, a_stride, b_stride, y_stride, strips, relu, unused: 0 };
    let kernel = entry(target, &ADD)?;
    // SAFETY: `strips` covers the node's shape, and the views hold tensors of that shape (`Io::check`).
    Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, io.cost(node, target.dtype), io.views()) })
}

fn join(node: &Node, target: Target, io: &Io<'_>) -> Result<Launch> {
    let Fwd { a, b, gate, y, .. } = io.bind(node.form);
    let (args, gate) = ([a.value, b.value, y], gate.map_or(0, Arg::address));
    let (strips, [a_stride, b_stride, y_stride]) = elementwise(&node.shape, target.dtype, args)?;
    let ([a, b, y], survival, relu) = (args.map(Arg::address), node.share as f32, node.relu.into());
    let params = Join { a, b, y, gate, a_stride, b_stride, y_stride, strips, survival, relu };
    let kernel = entry(target, &JOIN)?;
    // SAFETY: `strips` covers the node's shape, and the views hold tensors of that shape and the gate (`Io::check`);
    // a missing gate is null.
    Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, node.cost(target.dtype), io.views()) })
}

fn end(node: &Node, target: Target, io: &Io<'_>) -> Result<Launch> {
    let &[n, h, w, c] = node.shape.dims() else {
        return Err(Error::unsupported(node.name(), format!("a tensor of shape {}, expected images", node.shape)));
    };
    if node.share != 1.0 {
        return Err(Error::unsupported(node.name(), format!("a share of {}, expected 1", node.share)));
    }
    let Fwd { a, b, gate, y, signs } = io.bind(node.form);
    let rows = Rows::pixels([n, h, w, c]);
    let strips = Strips::eights(rows, WALK_END, rows.wide(target.dtype, &[a.value, b.value, y], &[]))?;
    let ((first, first_relu), (second, second_relu)) = (term(node, &rows, a)?, term(node, &rows, b)?);
    let (terms, gate) = ([first, second], gate.map_or(0, Arg::address));
    let (y_stride, signs_stride) = (rows.stride(y), signs.map_or(0, |signs| rows.stride(signs)));
    let (y, signs) = (y.address(), signs.map_or(0, Arg::address));
    let (relu, activated) = (node.relu.into(), u32::from(first_relu) | u32::from(second_relu) << 1);
    let params = BlockEnd { terms, y, signs, gate, y_stride, signs_stride, strips, relu, activated };
    let kernel = entry(target, &END)?;
    // SAFETY: `strips` covers a, b, y and the signs, and the views hold these and the other operands (`Io::check`);
    // scales, shifts, signs and the gate may be null.
    Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, node.cost(target.dtype), io.views()) })
}

/// A term, and true if it ends in a ReLU.
fn term(node: &Node, rows: &Rows, Operand { value: x, load }: Operand<&Arg>) -> Result<(Term, bool)> {
    let (scale, shift, relu) = match load {
        Load::AsIs => (0, 0, false),
        Load::Affine { affine: Affine { scale, shift }, relu } => (scale.address(), shift.address(), relu),
        _ => return Err(Error::unsupported(node.name(), "a term that is neither as it is nor a batch norm's")),
    };
    Ok((Term { x: x.address(), scale, shift, stride: rows.stride(x) }, relu))
}
