//! The launches: kernels, grids and parameters.

use super::{Bwd, Fwd, Node, Pass};
use crate::device::table::{entry, kernels};
use crate::device::{Launch, Target};
use crate::ops::params::params;
use crate::ops::strips::{elementwise, Strips};
use crate::ops::{Arg, Io};
use crate::Result;

params! {
    /// `ReluFwd` of kernels/relu/relu.cu.
    struct ReluFwd { x: u64, y: u64, x_stride: i64, y_stride: i64, strips: Strips }

    /// `ReluBwd` of kernels/relu/relu.cu.
    struct ReluBwd {
        dy: u64, y: u64, dx: u64,
        dy_stride: i64, y_stride: i64, dx_stride: i64,
        strips: Strips, accumulate: u32, unused: u32,
    }
}

kernels! {
    FWD: ReluFwd = "relu_fwd_*", 0;
    BWD: ReluBwd = "relu_bwd_*", 0;
}

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    let launch = match node.pass {
        Pass::Fwd => fwd(node, target, io),
        Pass::Bwd => bwd(node, target, io),
    };
    Ok(vec![launch?])
}

fn fwd(node: &Node, target: Target, io: &Io<'_>) -> Result<Launch> {
    let Fwd { x, y } = io.bind(Fwd::default());
    let (strips, [x_stride, y_stride]) = elementwise(&node.shape, target.dtype, [x, y])?;
    let params = ReluFwd { x: x.address(), y: y.address(), x_stride, y_stride, strips };
    let kernel = entry(target, &FWD)?;
    // SAFETY: `strips` covers the node's shape, and the views hold tensors of that shape (`Io::check`).
    Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, io.cost(node, target.dtype), io.views()) })
}

fn bwd(node: &Node, target: Target, io: &Io<'_>) -> Result<Launch> {
    let Bwd { dy, y, dx } = io.bind(Bwd::default());
    let (strips, [dy_stride, y_stride, dx_stride]) = elementwise(&node.shape, target.dtype, [dy, y, dx])?;
    let accumulate = dx.adds().into();
    let [dy, y, dx] = [dy, y, dx].map(Arg::address);
    let params = ReluBwd { dy, y, dx, dy_stride, y_stride, dx_stride, strips, accumulate, unused: 0 };
    let kernel = entry(target, &BWD)?;
    // SAFETY: `strips` covers the node's shape, and the views hold tensors of that shape (`Io::check`).
    Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, io.cost(node, target.dtype), io.views()) })
}
