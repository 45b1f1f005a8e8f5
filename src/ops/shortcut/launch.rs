//! Which kernels, on what grid.

use super::{Bwd, Fwd, Node, Pass, Spec};
use crate::device::table::{entry, kernels};
use crate::device::{Cost, Launch, Target};
use crate::ops::strips::{Rows, Strips};
use crate::ops::{touched, Arg, Io, Write};
use crate::tensor::DType;
use crate::{Error, Result};

/// Rows that a thread walks where there are many.
const WALK: usize = 4;

/// `Shortcut` of kernels/shortcut/shortcut.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Shortcut {
    src: u64,
    dst: u64,
    src_stride: i64,
    dst_stride: i64,
    strips: Strips,
    h: u32,
    w: u32,
    p: u32,
    q: u32,
    stride: u32,
    c: u32,
    lead: u32,
    accumulate: u32,
}

kernels! {
    FWD: Shortcut = "shortcut_fwd_*", 0;
    BWD: Shortcut = "shortcut_bwd_*", 0;
}

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    let (src, dst) = ends(node, io);
    let Spec { x: [n, h, w, c], stride, lead, .. } = node.shortcut.spec;
    let [_, p, q, k] = node.shortcut.y_shape();
    let (entries, rows) = match node.pass {
        Pass::Fwd => (&FWD, Rows::pixels(n * p * q, k)),
        Pass::Bwd => (&BWD, Rows::pixels(n * h * w, c)),
    };
    let width = Strips::width(target.dtype);
    let wide = rows.wide(target.dtype, &[src, dst], &[]) && lead % width == 0 && c % width == 0;
    let strips = Strips::new(rows, target.dtype, WALK, wide)?;
    let narrow = |v: usize| match i32::try_from(v) {
        Ok(v) => Ok(v as u32),
        Err(_) => Err(Error::unsupported("shortcut", format!("an extent of {v}, the most is 2^31 - 1"))),
    };
    let params = Shortcut {
        src: src.view.address(),
        dst: dst.view.address(),
        src_stride: rows.stride(src),
        dst_stride: rows.stride(dst),
        strips,
        h: narrow(h)?,
        w: narrow(w)?,
        p: narrow(p)?,
        q: narrow(q)?,
        stride: narrow(stride)?,
        c: narrow(c)?,
        lead: narrow(lead)?,
        accumulate: (dst.write == Write::Accumulate).into(),
    };
    let (kernel, views) = (entry(target, entries)?, vec![src.view.clone(), dst.view.clone()]);
    // SAFETY: `strips` covers the output, the pixels that are read lie inside the input, and both are as large as that
    // (`Io::check`).
    Ok(vec![unsafe { Launch::new(kernel, strips.grid()?, &params, cost(node, target.dtype, io), views) }])
}

/// What is read and what is written.
fn ends<'a>(node: &Node, io: &Io<'a>) -> (&'a Arg, &'a Arg) {
    match node.pass {
        Pass::Fwd => {
            let Fwd { x, y } = io.bind(Fwd::default());
            (x, y)
        }
        Pass::Bwd => {
            let Bwd { dy, dx } = io.bind(Bwd::default());
            (dy, dx)
        }
    }
}

/// Of x only the pixels that are kept count, of dy only the channels; a dx that is overwritten is so everywhere.
fn cost(node: &Node, dtype: DType, io: &Io<'_>) -> Cost {
    let Spec { x: [n, h, w, c], stride, .. } = node.shortcut.spec;
    let mut cost = io.cost(node, dtype);
    let ((src, dst), element) = (ends(node, io), dtype.bytes());
    let kept = |extent: usize| (0..extent).map(|i| i % stride == 0).collect::<Vec<_>>();
    let (lines, columns) = (kept(h), kept(w));
    let pixels = |x: &Arg| x.touched_pixels([n, h, w, c], element, [&lines, &columns]);
    match node.pass {
        Pass::Fwd => cost.bytes_read = pixels(src),
        Pass::Bwd => {
            let [_, p, q, _] = node.shortcut.y_shape();
            let first = src.view.address() + (node.shortcut.spec.lead * element) as u64;
            cost.bytes_read = touched::rows(first, n * p * q, c * element, src.pixel_stride * element);
            if dst.write == Write::Accumulate {
                cost.bytes_written = pixels(dst);
                cost.bytes_read += cost.bytes_written;
            }
        }
    }
    cost
}
