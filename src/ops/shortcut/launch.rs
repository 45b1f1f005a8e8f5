//! The launches: kernels, grids and parameters.

use super::{Bwd, Fwd, Node, Pass, Spec};
use crate::device::table::{entry, kernels};
use crate::device::{Cost, Launch, Target};
use crate::ops::params::{narrow, params};
use crate::ops::strips::{Rows, Strips, WALK};
use crate::ops::{touched, Arg, Io};
use crate::tensor::DType;
use crate::Result;

params! {
    /// `Shortcut` of kernels/shortcut/shortcut.cu.
    struct Shortcut {
        src: u64, dst: u64,
        src_stride: i64, dst_stride: i64,
        strips: Strips, h: u32, w: u32, p: u32, q: u32, stride: u32, c: u32, lead: u32, accumulate: u32,
    }
}

kernels! {
    FWD: Shortcut = "shortcut_fwd_*", 0;
    BWD: Shortcut = "shortcut_bwd_*", 0;
}

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    let (src, dst) = ends(node, io);
    let Spec { x: [_, h, w, c], stride, lead, .. } = node.shortcut.spec;
    let [_, p, q, _] = node.shortcut.y_shape();
    let (entries, rows) = match node.pass {
        Pass::Fwd => (&FWD, Rows::pixels(node.shortcut.y_shape())),
        Pass::Bwd => (&BWD, Rows::pixels(node.shortcut.spec.x)),
    };
    let width = Strips::width(target.dtype);
    let wide = rows.wide(target.dtype, &[src, dst], &[]) && lead % width == 0 && c % width == 0;
    let strips = Strips::new(rows, target.dtype, WALK, wide)?;
    let [h, w, p, q, stride, c, lead] = narrow("shortcut", [h, w, p, q, stride, c, lead])?;
    let (src_stride, dst_stride, accumulate) = (rows.stride(src), rows.stride(dst), dst.adds().into());
    let [src, dst] = [src, dst].map(Arg::address);
    let params = Shortcut { src, dst, src_stride, dst_stride, strips, h, w, p, q, stride, c, lead, accumulate };
    let kernel = entry(target, entries)?;
    // SAFETY: `strips` covers the output, the pixels read lie inside the input, and the views hold both (`Io::check`).
    Ok(vec![unsafe { Launch::new(kernel, strips.grid()?, &params, cost(node, target.dtype, io), io.views()) }])
}

/// The input and the output.
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

/// fwd reads only the kept pixels of x, bwd only the channels of dy from x. An overwritten dx is written in full.
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
            let first = src.address() + (node.shortcut.spec.lead * element) as u64;
            cost.bytes_read = touched::rows(first, n * p * q, c * element, src.pixel_stride * element);
            if dst.adds() {
                cost.bytes_written = pixels(dst);
                cost.bytes_read += cost.bytes_written;
            }
        }
    }
    cost
}
