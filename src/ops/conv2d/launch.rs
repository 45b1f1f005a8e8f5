//! The launches: kernels, grids and parameters.
//!
//! A pass is one launch of a tiled matrix product. If its reduction is split, a second launch adds the splits. A plain
//! pass has kernels of its own. The fused kernels load and store with more operands, and further launches merge the
//! numbers that their tiles leave per column. With a split no tile has whole sums: moments are then computed from y by
//! a separate pass, and a masked gradient is not split.

mod bind;
mod both;
mod choose;
mod end;
mod fused;
mod loads;
mod params;
mod passes;
mod product;
mod variants;

pub use self::choose::Plan;

use self::bind::{int, Matrix};
use self::choose::{bias_splits, y_dims, Problem, Product};
use self::params::{BiasParams, ReduceParams};
use self::passes::Run;
use self::product::{address, grid, stride, Extras};
use self::variants::{Variant, BIAS_COLS, REDUCE_THREADS};
use super::{Bwd, BwdBias, BwdW, BwdX, Conv2d, Fwd, Node, Pass};
use crate::device::{Cost, Kernel, Launch, Target};
use crate::ops::norm::merge::Bands;
use crate::ops::store::Mask;
use crate::ops::{Io, Operator};
use crate::{Error, Result};

/// Every entry.
pub(crate) fn kernels() -> impl Iterator<Item = &'static Kernel> {
    let entries = variants::KERNELS.iter().copied().flatten().map(|entry| &entry.kernel);
    entries.chain(variants::all()).chain(fused::variants::all())
}

/// Launches after a product that is split: one adds the splits, two more may measure the result.
const ADDED: usize = 1;
const ADDED_AND_MEASURED: usize = 3;

/// The product of `node`; of two products the one that may be split. `None` for the bias gradient.
fn problem(node: &Node) -> Option<Problem> {
    let plain = node.pass.is_plain();
    let of = |product, table: &'static [Variant], split_launches, raw| {
        Some(Problem { conv: node.conv, product, table, split_launches, raw })
    };
    match node.pass {
        Pass::Fwd(_) if plain => of(Product::Fwd, &variants::FWD, Some(ADDED), true),
        Pass::Fwd(_) if node.loads_sum() => of(Product::Fwd, &fused::variants::END, Some(ADDED_AND_MEASURED), false),
        Pass::Fwd(Fwd { x, moments, .. }) => {
            let launches = if moments.is_some() { ADDED_AND_MEASURED } else { ADDED };
            of(Product::Fwd, &fused::variants::FWD, Some(launches), x.load.is_as_it_is())
        }
        Pass::BwdX(_) if plain => of(Product::BwdX, &variants::BWD_X, Some(ADDED), true),
        Pass::BwdX(BwdX { mask, .. }) => {
            of(Product::BwdX, &fused::variants::BWD_X, mask.is_none().then_some(ADDED), true)
        }
        Pass::BwdW(_) if plain => of(Product::BwdW, &variants::BWD_W, Some(ADDED), true),
        Pass::BwdW(BwdW { x, .. }) => of(Product::BwdW, &fused::variants::BWD_W, Some(ADDED), x.load.is_as_it_is()),
        Pass::Bwd(_) => Some(both::problems(node).w),
        Pass::BwdBias(_) => None,
    }
}

/// Every plan for `node`, for tests and benchmarks.
pub(super) fn plans(node: &Node, target: Target) -> Vec<Plan> {
    problem(node).map_or(Vec::new(), |p| choose::plans(&p, target))
}

fn choose(node: &Node, target: Target) -> Option<Plan> {
    match node.pass {
        Pass::Bwd(_) => both::choose(node, target),
        _ => choose::choose(&problem(node)?, target),
    }
}

/// Numbers that a tile leaves per column.
fn numbers_per_column(node: &Node, plan: Plan) -> usize {
    match node.pass {
        Pass::Fwd(Fwd { moments: Some(_), .. }) if plan.splits == 1 => 2,
        Pass::BwdX(BwdX { mask: Some(mask), .. }) | Pass::Bwd(Bwd { mask: Some(mask), .. }) => mask.sums().count(),
        _ => 0,
    }
}

/// True if the moments of y are wanted and the tiles of `plan` do not compute them, but a separate pass.
fn is_measured(node: &Node, plan: Plan) -> bool {
    plan.splits > 1 && matches!(node.pass, Pass::Fwd(Fwd { moments: Some(_), .. }))
}

/// The bands to merge: the row tiles, of `rows` rows each, of all residues.
fn bands(node: &Node, rows: usize) -> Bands {
    let (problem, channels) = match node.pass {
        Pass::Bwd(_) => (Some(both::problems(node).x), node.conv.spec.c),
        Pass::BwdX(_) => (problem(node), node.conv.spec.c),
        _ => (problem(node), node.conv.spec.k),
    };
    let shape = problem.map(|problem| problem.shape());
    Bands { count: shape.map_or(0, |shape| shape.m.div_ceil(rows) * shape.residues), channels }
}

/// Rows of the tiles to merge, for the plan's scalar and vector kernels.
fn rows(node: &Node, plan: Plan) -> [usize; 2] {
    match node.pass {
        Pass::Bwd(_) => both::data_plan(plan).rows(),
        _ => plan.rows(),
    }
}

/// Bytes of scratch memory for `plan`, or the chosen plan.
pub(super) fn scratch_bytes(node: &Node, target: Target, plan: Option<Plan>) -> usize {
    let Some(problem) = problem(node) else { return bias_splits(y_dims(&node.conv)[0]) * node.conv.spec.k * 4 };
    let Some(plan) = plan.or_else(|| choose(node, target)) else { return 0 };
    let numbers = numbers_per_column(node, plan);
    // Addresses decide which of the plan's kernels runs: enough for either.
    let tiles = rows(node, plan).map(|rows| match numbers {
        0 => 0,
        _ => bands(node, rows).scratch_bytes(numbers),
    });
    let y = Bands::of(node.conv.y_shape(), target.dtype);
    let after = if is_measured(node, plan) { y.scratch_bytes(2) } else { 0 };
    // The partial sums and the pass for the moments of y share memory, one after the other.
    plan.partial_bytes(&problem).max(after) + tiles.into_iter().max().unwrap_or(0)
}

/// The launches of `plan`, or the chosen plan.
pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>, plan: Option<Plan>) -> Result<Vec<Launch>> {
    let Ok(bias) = variants::bwd_bias(target) else {
        let reason = "f64 runs on the cpu device only";
        return Err(Error::unsupported(format!("{} in {}", node.name(), target.dtype), reason));
    };
    if let Pass::BwdX(BwdX { mask, sums, .. }) | Pass::Bwd(Bwd { mask, sums, .. }) = node.pass {
        Mask::check_sums(node.name(), mask, sums)?;
    }
    io.check_counts(node)?;
    io.check_aliases(node, target)?;
    let problem = problem(node);
    let fits = plan.is_none_or(|plan| problem.is_some_and(|p| choose::fits(plan, &p, target)));
    Error::check(fits, node.name(), || "the plan is for another pass or dtype".into())?;
    io.check_scratch(node.name(), scratch_bytes(node, target, plan))?;
    let Some(problem) = problem else { return bwd_bias(node, bias, target, io) };
    let plan = plan.or_else(|| choose(node, target));
    let plan = plan.ok_or_else(|| Error::unsupported(node.name(), format!("no kernel for {}", target.dtype)))?;
    Run::new(node, target, problem, plan, io)?.launches(io)
}

/// The launch that adds `splits` partial results of `out`'s shape.
fn add_splits<'a>(
    conv: &Conv2d,
    target: Target,
    [partial, out]: [Matrix<'a>; 2],
    extras: &Extras<'a>,
    splits: usize,
) -> Result<Launch> {
    let kernel = variants::reduce(target)?;
    let params = ReduceParams {
        partial: partial.address(),
        out: out.address(),
        scale: address(extras.scale),
        shift: address(extras.shift),
        residual: address(extras.residual),
        rows: out.rows as i64,
        cols: int(out.cols)?,
        splits: int(splits)?,
        out_stride: out.stride(),
        residual_stride: stride(extras.residual),
        flags: extras.flags(),
        unused: 0,
    };
    let len = out.rows * out.cols;
    let cost = Cost {
        flops: ((splits - 1) * len) as u64,
        bytes_read: partial.bytes() + extras.bytes(&out),
        bytes_written: out.bytes(),
    };
    let views = [partial, out].into_iter().chain(extras.matrices()).map(|m| m.view.clone()).collect();
    let grid = grid(conv, kernel.name, [len.div_ceil(REDUCE_THREADS), 1, 1])?;
    // SAFETY: the entry takes ReduceParams; `partial` holds `splits` times the elements of `out`, and every matrix was
    // checked to lie in its view.
    Ok(unsafe { Launch::new(kernel, grid, &params, cost, views) })
}

fn bwd_bias(node: &Node, kernel: &'static Kernel, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let BwdBias { dy, dbias } = io.bind(BwdBias::default());
    let accumulate = dbias.adds();
    let [rows, cols] = y_dims(&node.conv);
    let dy = Matrix::pixels("dy", dy, [rows, cols], target.dtype.bytes())?;
    let dbias = Matrix::dense("dbias", &dbias.view, [1, cols], 4)?;
    let splits = bias_splits(rows);
    let scratch = io.scratch.ok_or_else(|| Error::invalid(node.name(), "no scratch memory"))?;
    let partial = Matrix::dense("scratch", scratch, [splits, cols], 4)?;
    let params = BiasParams {
        dy: dy.address(),
        partial: partial.address(),
        rows: rows as i64,
        rows_per_split: rows.div_ceil(splits) as i64,
        cols: int(cols)?,
        dy_stride: dy.stride(),
    };
    let cost = Cost { flops: (rows * cols) as u64, bytes_read: dy.bytes(), bytes_written: partial.bytes() };
    let grid = grid(&node.conv, node.name(), [cols.div_ceil(BIAS_COLS), splits, 1])?;
    let views = vec![dy.view.clone(), partial.view.clone()];
    // SAFETY: the entry takes BiasParams; dy and the partial sums were checked to lie in their views.
    let sums = unsafe { Launch::new(kernel, grid, &params, cost, views) };
    let second =
        add_splits(&node.conv, target.in_f32(), [partial, dbias], &Extras { accumulate, ..Extras::default() }, splits)?;
    Ok(vec![sums, second])
}
