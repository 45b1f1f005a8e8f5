//! Which kernels, on what grid.

use super::{Node, Pass};
use crate::device::table::{entry, kernels, Entry};
use crate::device::{Launch, Target};
use crate::ops::norm::gradient::{self, BandSums, Bound, Operands, FORMS};
use crate::ops::norm::sums_shared;
use crate::ops::pool::{AvgFwd, AvgGradient, Kind, MaxFwd, MaxGradient};
use crate::ops::store::Mask;
use crate::ops::strips::{Strips, THREADS};
use crate::ops::{Io, Operator};
use crate::Result;

/// `NormMaxFwd` of kernels/norm_pool/fwd.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct NormMaxFwd {
    pool: MaxFwd,
    numbers: Numbers,
}

/// `NormAvgFwd` of kernels/norm_pool/fwd.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct NormAvgFwd {
    pool: AvgFwd,
    numbers: Numbers,
}

/// The end of both.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Numbers {
    scale: u64,
    shift: u64,
    relu: u32,
    unused: u32,
}

/// `OfMax` of kernels/norm_pool/bwd.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct OfMax {
    from: MaxGradient,
    epilogue: Operands,
    strips: Strips,
}

/// `OfAvg` of kernels/norm_pool/bwd.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct OfAvg {
    from: AvgGradient,
    epilogue: Operands,
    strips: Strips,
}

kernels! {
    MAX_FWD: NormMaxFwd = "norm_pool_max_fwd_*", 0;
    AVG_FWD: NormAvgFwd = "norm_pool_avg_fwd_*", 0;
    AVG_FWD_TREE: NormAvgFwd = "norm_pool_avg_fwd_*_tree", THREADS * 8 * 4;
    MAX_BWD_AFFINE: OfMax = "norm_pool_max_bwd_*_affine", sums_shared(2);
    MAX_BWD_SIGNS: OfMax = "norm_pool_max_bwd_*_signs", sums_shared(2);
    MAX_BWD_SIGNS_TWO: OfMax = "norm_pool_max_bwd_*_signs_two", sums_shared(3);
    AVG_BWD_AFFINE: OfAvg = "norm_pool_avg_bwd_*_affine", sums_shared(2);
    AVG_BWD_SIGNS: OfAvg = "norm_pool_avg_bwd_*_signs", sums_shared(2);
    AVG_BWD_SIGNS_TWO: OfAvg = "norm_pool_avg_bwd_*_signs_two", sums_shared(3);
}

static MAX_BWD: [&[Entry]; FORMS] = [&MAX_BWD_AFFINE, &MAX_BWD_SIGNS, &MAX_BWD_SIGNS_TWO];
static AVG_BWD: [&[Entry]; FORMS] = [&AVG_BWD_AFFINE, &AVG_BWD_SIGNS, &AVG_BWD_SIGNS_TWO];

pub(super) fn scratch_bytes(node: &Node, target: Target) -> usize {
    match node.pass {
        Pass::Fwd { .. } => 0,
        Pass::Bwd(mask) => gradient::scratch_bytes(mask, node.pool.spec().x, target.dtype),
    }
}

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    match (node.pool.spec().kind, node.pass) {
        (Kind::Max, Pass::Fwd { relu }) => Ok(vec![max_fwd(node, relu, target, io)?]),
        (Kind::Average { .. }, Pass::Fwd { relu }) => Ok(vec![avg_fwd(node, relu, target, io)?]),
        (kind, Pass::Bwd(mask)) => bwd(node, kind, mask, target, io),
    }
}

impl Numbers {
    fn new(relu: bool, io: &Io<'_>) -> Self {
        let [scale, shift] = [1, 2].map(|i| io.inputs[i].view.address());
        Self { scale, shift, relu: relu.into(), unused: 0 }
    }
}

fn max_fwd(node: &Node, relu: bool, target: Target, io: &Io<'_>) -> Result<Launch> {
    let pool = MaxFwd::new(&node.pool, target.dtype, &io.inputs[0], [&io.outputs[0], &io.outputs[1]])?;
    let params = NormMaxFwd { pool, numbers: Numbers::new(relu, io) };
    let views = io.inputs.iter().chain(io.outputs).map(|a| a.view.clone()).collect();
    let kernel = entry(target, &MAX_FWD)?;
    // SAFETY: `strips` covers y and index, windows lie inside x, and all, the channels' numbers too, are as large as that
    // (`Io::check`).
    Ok(unsafe { Launch::new(kernel, pool.strips.grid()?, &params, node.cost(target.dtype), views) })
}

fn avg_fwd(node: &Node, relu: bool, target: Target, io: &Io<'_>) -> Result<Launch> {
    let (pool, tree) = AvgFwd::new(&node.pool, target.dtype, &io.inputs[0], &io.outputs[0])?;
    let params = NormAvgFwd { pool, numbers: Numbers::new(relu, io) };
    let views = io.inputs.iter().chain(io.outputs).map(|a| a.view.clone()).collect();
    let kernel = entry(target, if tree { &AVG_FWD_TREE } else { &AVG_FWD })?;
    // SAFETY: `strips` covers y, windows lie inside x, and all, the channels' numbers too, are as large as that
    // (`Io::check`).
    Ok(unsafe { Launch::new(kernel, pool.strips.grid()?, &params, node.cost(target.dtype), views) })
}

fn bwd(node: &Node, kind: Kind, mask: Mask, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let results = node.results().len();
    let mut operands = io.inputs[results..].iter();
    let mask = mask.map(|_, ()| operands.next().expect("checked"));
    let mut left = io.outputs[1..].iter();
    let sums = mask.form().sums().map(|_, ()| left.next().expect("checked"));
    let bound = Bound { mask, shape: node.pool.spec().x, g: &io.outputs[0], sums };
    let positions: Vec<_> = io.inputs[1..results].iter().collect();
    let sums = bound.bands(target.dtype, &[&io.inputs[0]], &positions, io.scratch)?;
    let mut launches = vec![first_of_bwd(node, kind, &bound, &sums, target, io)?];
    launches.extend(bound.merge(&sums)?);
    Ok(launches)
}

/// The launch before the merge.
fn first_of_bwd(
    node: &Node,
    kind: Kind,
    bound: &Bound<'_>,
    sums: &BandSums,
    target: Target,
    io: &Io<'_>,
) -> Result<Launch> {
    let (strips, epilogue) = (sums.strips, bound.params(sums));
    let cost = bound.cost(target.dtype, &node.inputs(), node.flops(), sums);
    let views = bound.views(io.inputs, sums);
    match kind {
        Kind::Max => {
            let from = MaxGradient::new(&node.pool, &io.inputs[0], &io.inputs[1])?;
            let kernel = entry(target, MAX_BWD[bound.form()])?;
            let params = OfMax { from, epilogue, strips };
            // SAFETY: `strips` covers dx, y and the bits, only windows of dy and index are read, all, the channels' numbers
            // too, are as large as that (`Io::check`), and every band has a place for its sums; the rest is null.
            Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, cost, views) })
        }
        Kind::Average { .. } => {
            let from = AvgGradient::new(&node.pool, &io.inputs[0])?;
            let kernel = entry(target, AVG_BWD[bound.form()])?;
            let params = OfAvg { from, epilogue, strips };
            // SAFETY: as above, without index.
            Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, cost, views) })
        }
    }
}
