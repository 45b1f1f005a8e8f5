//! The launches: a copy for each part that is not a slice of the whole.

use super::{Bwd, Fwd, Node, Pass};
use crate::device::table::{entry, kernels};
use crate::device::{Cost, Launch, Target};
use crate::ops::params::params;
use crate::ops::strips::{Rows, Strips, WALK};
use crate::ops::{Arg, Io};
use crate::tensor::TensorType;
use crate::Result;

params! {
    /// `ConcatCopy` of kernels/concat/concat.cu.
    struct ConcatCopy { src: u64, dst: u64, src_stride: i64, dst_stride: i64, strips: Strips }
}

kernels! {
    COPY: ConcatCopy = "concat_copy_*", 0;
}

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    let (whole, parts) = match node.pass {
        Pass::Fwd => {
            let Fwd { x, y } = io.bind(node.concat.joins());
            (y, x)
        }
        Pass::Bwd => {
            let Bwd { dy, dx } = io.bind(node.concat.splits());
            (dy, dx)
        }
    };
    let mut launches = Vec::new();
    for ((part, shape), at) in parts.into_iter().zip(node.concat.parts()).zip(node.concat.offsets()) {
        let slice = slice(whole, shape, at, target)?;
        if slice.address() == part.address() && slice.pixel_stride == part.pixel_stride {
            continue;
        }
        launches.push(match node.pass {
            Pass::Fwd => copy(part, &slice, shape, target)?,
            Pass::Bwd => copy(&slice, part, shape, target)?,
        });
    }
    Ok(launches)
}

/// The slice of `whole` for a part of `shape` at channel `at`.
fn slice(whole: &Arg, [n, h, w, c]: [usize; 4], at: usize, target: Target) -> Result<Arg> {
    let (element, span) = (target.dtype.bytes(), (n * h * w - 1) * whole.pixel_stride + c);
    let view = whole.view.part(at * element, span * element)?;
    Ok(Arg { view, ..whole.clone() })
}

fn copy(src: &Arg, dst: &Arg, shape: [usize; 4], target: Target) -> Result<Launch> {
    let rows = Rows::pixels(shape);
    let strips = Strips::new(rows, target.dtype, WALK, rows.wide(target.dtype, &[src, dst], &[]))?;
    let (src_stride, dst_stride) = (rows.stride(src), rows.stride(dst));
    let params = ConcatCopy { src: src.address(), dst: dst.address(), src_stride, dst_stride, strips };
    let bytes = TensorType::real(shape).bytes(target.dtype) as u64;
    let cost = Cost { flops: 0, bytes_read: bytes, bytes_written: bytes };
    let (kernel, views) = (entry(target, &COPY)?, vec![src.view.clone(), dst.view.clone()]);
    // SAFETY: `strips` covers `shape`, and both views hold tensors of that shape at their strides: `Io::check` for the
    // part, `slice` for its place in the whole.
    Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, cost, views) })
}
