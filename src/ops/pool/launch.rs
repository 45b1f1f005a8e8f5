//! The launches: kernels, grids and parameters.

mod params;

use self::params::{
    AvgBwd, AvgFwd, AvgGradient, FusedAvgFwd, FusedMaxFwd, MaxBwd, MaxFwd, MaxGradient, Numbers, OfAvg, OfMax,
};
use super::{Bwd, Fwd, Node, Pass};
use crate::device::table::{entry, kernels, Entry};
use crate::device::{Cost, Launch, Target};
use crate::ops::load::{Affine, Load};
use crate::ops::norm::gradient::{Bound, FORMS};
use crate::ops::norm::sums_shared;
use crate::ops::store::{Mask, Sums};
use crate::ops::strips::{Strips, THREADS};
use crate::ops::{Arg, Io, Operator};
use crate::{Error, Result};

/// The most rows per thread.
const WALK: usize = 2;
/// The fewest pixels of a window that a block, not a thread, sums.
const TREE_PIXELS: usize = 32;

kernels! {
    MAX_FWD: MaxFwd = "pool_max_fwd_*", 0;
    MAX_BWD: MaxBwd = "pool_max_bwd_*", 0;
    AVG_FWD: AvgFwd = "pool_avg_fwd_*", 0;
    AVG_FWD_TREE: AvgFwd = "pool_avg_fwd_*_tree", THREADS * 8 * 4;
    AVG_BWD: AvgBwd = "pool_avg_bwd_*", 0;
    FUSED_MAX_FWD: FusedMaxFwd = "pool_fused_max_fwd_*", 0;
    FUSED_AVG_FWD: FusedAvgFwd = "pool_fused_avg_fwd_*", 0;
    FUSED_AVG_FWD_TREE: FusedAvgFwd = "pool_fused_avg_fwd_*_tree", THREADS * 8 * 4;
    MAX_BWD_AFFINE: OfMax = "pool_fused_max_bwd_*_affine", sums_shared(2);
    MAX_BWD_SIGNS: OfMax = "pool_fused_max_bwd_*_signs", sums_shared(2);
    MAX_BWD_SIGNS_TWO: OfMax = "pool_fused_max_bwd_*_signs_two", sums_shared(3);
    AVG_BWD_AFFINE: OfAvg = "pool_fused_avg_bwd_*_affine", sums_shared(2);
    AVG_BWD_SIGNS: OfAvg = "pool_fused_avg_bwd_*_signs", sums_shared(2);
    AVG_BWD_SIGNS_TWO: OfAvg = "pool_fused_avg_bwd_*_signs_two", sums_shared(3);
}

static FUSED_MAX_BWD: [&[Entry]; FORMS] = [&MAX_BWD_AFFINE, &MAX_BWD_SIGNS, &MAX_BWD_SIGNS_TWO];
static FUSED_AVG_BWD: [&[Entry]; FORMS] = [&AVG_BWD_AFFINE, &AVG_BWD_SIGNS, &AVG_BWD_SIGNS_TWO];

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let (index, mask, sums) = match node.pass {
        Pass::Fwd(form) => (form.index, None, None),
        Pass::Bwd(form) => (form.index, form.mask, form.sums),
    };
    Mask::check_sums(node.name(), mask, sums)?;
    let problem = || "an index goes with max pooling, and with that alone".into();
    Error::check(index == node.pool.has_index(), node.name(), problem)?;
    io.check(node, target)?;
    match node.pass {
        Pass::Fwd(form) => Ok(vec![forward(node, form, target, io)?]),
        Pass::Bwd(form) => match io.bind(form) {
            Bwd { dy, index, mask: Some(mask), dx, sums: Some(sums) } => {
                masked(node, (dy, index, dx), mask, sums, target, io)
            }
            Bwd { dy, index: Some(index), dx, .. } => Ok(vec![max_bwd(node, [dy, index, dx], target, io)?]),
            Bwd { dy, dx, .. } => Ok(vec![avg_bwd(node, [dy, dx], target, io)?]),
        },
    }
}

/// The scale and shift of x, if it has any.
fn numbers(node: &Node, load: Load<&Arg>) -> Result<Option<Numbers>> {
    match load {
        Load::AsIs => Ok(None),
        Load::Affine { affine: Affine { scale, shift }, relu } => {
            let [scale, shift] = [scale, shift].map(|number| number.address());
            Ok(Some(Numbers { scale, shift, relu: relu.into(), unused: 0 }))
        }
        _ => Err(Error::unsupported(node.name(), "an x that is neither as it is nor a batch norm's input")),
    }
}

/// A `plain` forward pass reads only the pixels that windows cover.
fn fwd_cost(node: &Node, x: &Arg, plain: bool, target: Target, io: &Io<'_>) -> Cost {
    if !plain {
        return node.cost(target.dtype);
    }
    let [rows, columns] = [0, 1].map(|axis| node.pool.covered(axis));
    let bytes_read = x.touched_pixels(node.pool.spec.x, target.dtype.bytes(), [&rows, &columns]);
    Cost { bytes_read, ..io.cost(node, target.dtype) }
}

fn forward(node: &Node, form: Fwd, target: Target, io: &Io<'_>) -> Result<Launch> {
    let Fwd { x, y, index } = io.bind(form);
    let numbers = numbers(node, x.load)?;
    let (cost, views) = (fwd_cost(node, x.value, numbers.is_none(), target, io), io.views());
    if let Some(index) = index {
        let pool = MaxFwd::new(&node.pool, target.dtype, x.value, [y, index])?;
        let grid = pool.strips.grid()?;
        let Some(numbers) = numbers else {
            let kernel = entry(target, &MAX_FWD)?;
            // SAFETY: `strips` covers y and index, windows lie inside x, and the views hold these (`Io::check`).
            return Ok(unsafe { Launch::new(kernel, grid, &pool, cost, views) });
        };
        let kernel = entry(target, &FUSED_MAX_FWD)?;
        // SAFETY: as above, and the views hold scale and shift.
        return Ok(unsafe { Launch::new(kernel, grid, &FusedMaxFwd { pool, numbers }, cost, views) });
    }
    let (pool, tree) = AvgFwd::new(&node.pool, target.dtype, x.value, y)?;
    let grid = pool.strips.grid()?;
    let Some(numbers) = numbers else {
        let kernel = if tree { entry(target, &AVG_FWD_TREE)? } else { entry(target, &AVG_FWD)? };
        // SAFETY: `strips` covers y, windows lie inside x, and the views hold these (`Io::check`).
        return Ok(unsafe { Launch::new(kernel, grid, &pool, cost, views) });
    };
    let kernel = if tree { entry(target, &FUSED_AVG_FWD_TREE)? } else { entry(target, &FUSED_AVG_FWD)? };
    // SAFETY: as above, and the views hold scale and shift.
    Ok(unsafe { Launch::new(kernel, grid, &FusedAvgFwd { pool, numbers }, cost, views) })
}

fn max_bwd(node: &Node, [dy, index, dx]: [&Arg; 3], target: Target, io: &Io<'_>) -> Result<Launch> {
    let rows = node.pool.x_rows();
    let strips = Strips::new(rows, target.dtype, WALK, rows.wide(target.dtype, &[dy, dx], &[index]))?;
    let (from, dx_stride, accumulate) = (MaxGradient::new(&node.pool, dy, index)?, rows.stride(dx), dx.adds().into());
    let params = MaxBwd { from, dx: dx.address(), dx_stride, strips, accumulate, unused: 0 };
    let kernel = entry(target, &MAX_BWD)?;
    // SAFETY: `strips` covers dx, only windows of dy and index are read, and the views hold these (`Io::check`).
    Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, io.cost(node, target.dtype), io.views()) })
}

fn avg_bwd(node: &Node, [dy, dx]: [&Arg; 2], target: Target, io: &Io<'_>) -> Result<Launch> {
    let rows = node.pool.x_rows();
    let strips = Strips::new(rows, target.dtype, WALK, rows.wide(target.dtype, &[dy, dx], &[]))?;
    let (from, dx_stride, accumulate) = (AvgGradient::new(&node.pool, dy)?, rows.stride(dx), dx.adds().into());
    let params = AvgBwd { from, dx: dx.address(), dx_stride, strips, accumulate, unused: 0 };
    let kernel = entry(target, &AVG_BWD)?;
    // SAFETY: `strips` covers dx, only windows of dy are read, and the views hold both (`Io::check`).
    Ok(unsafe { Launch::new(kernel, strips.grid()?, &params, io.cost(node, target.dtype), io.views()) })
}

/// A backward pass that masks dx and leaves sums, and the launches that merge the sums.
fn masked(
    node: &Node,
    (dy, index, dx): (&Arg, Option<&Arg>, &Arg),
    mask: Mask<&Arg>,
    sums: Sums<&Arg>,
    target: Target,
    io: &Io<'_>,
) -> Result<Vec<Launch>> {
    let bound = Bound { mask, shape: node.pool.spec.x, g: dx, sums };
    let bands = bound.bands(target.dtype, &[dy], &Vec::from_iter(index), io.scratch)?;
    let (strips, epilogue, form) = (bands.strips, bound.params(&bands), bound.form());
    let cost = bound.cost(target.dtype, &node.inputs(), node.flops(), &bands);
    let (grid, views) = (strips.grid()?, bound.views(io.inputs, &bands));
    let first = match index {
        Some(index) => {
            let params = OfMax { from: MaxGradient::new(&node.pool, dy, index)?, epilogue, strips };
            // SAFETY: `strips` covers dx, y and the bits, only windows of dy and index are read, the views hold these
            // and the mask's other operands (`Io::check`) and the sums of every band; the rest is null.
            unsafe { Launch::new(entry(target, FUSED_MAX_BWD[form])?, grid, &params, cost, views) }
        }
        None => {
            let params = OfAvg { from: AvgGradient::new(&node.pool, dy)?, epilogue, strips };
            // SAFETY: as above, without index.
            unsafe { Launch::new(entry(target, FUSED_AVG_BWD[form])?, grid, &params, cost, views) }
        }
    };
    Ok(std::iter::once(first).chain(bound.merge(&bands)?).collect())
}
