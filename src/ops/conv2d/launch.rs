//! Which kernels, on what grid.
//!
//! A pass is one launch of a tiled matrix product, and where its reduction is split a second one that adds the splits.

pub(in crate::ops) mod bind;
pub(in crate::ops) mod choose;
pub(in crate::ops) mod params;
pub(in crate::ops) mod product;
pub(in crate::ops) mod variants;

pub use choose::Plan;

use self::bind::{int, Matrix};
use self::choose::{bias_splits, Problem, Product};
use self::params::{BiasParams, ReduceParams};
use self::product::{address, grid, Bound, Extras};
use self::variants::{BIAS_COLS, BWD_W, BWD_X, FWD, REDUCE_THREADS};
use super::{Conv2d, Node, Pass};
use crate::device::{Cost, Kernel, Launch, Target, View};
use crate::ops::{Arg, Io, Operator, Write};
use crate::tensor::DType;
use crate::{Error, Result};

/// Every entry point.
pub(crate) static KERNELS: &[&Kernel] = &variants::ALL;

/// The product that `node` is; `None` for the bias gradient, which is none.
fn problem(node: &Node) -> Option<Problem> {
    let (product, table): (_, &[_]) = match node.pass {
        Pass::Fwd(_) => (Product::Fwd, &FWD),
        Pass::BwdX => (Product::BwdX, &BWD_X),
        Pass::BwdW => (Product::BwdW, &BWD_W),
        Pass::BwdBias => return None,
    };
    Some(Problem { conv: node.conv, product, table, split_launches: Some(1), raw: true })
}

/// Every way to compute `node`, for tests and benchmarks.
pub(super) fn plans(node: &Node, target: Target) -> Vec<Plan> {
    problem(node).map_or(Vec::new(), |p| choose::plans(&p, target.dtype))
}

fn choose(node: &Node, target: Target) -> Option<Plan> {
    choose::choose(&problem(node)?, target.dtype)
}

/// Bytes of scratch memory where `node` runs as `plan` says, or as it chooses.
pub(super) fn scratch_bytes(node: &Node, target: Target, plan: Option<Plan>) -> usize {
    match (problem(node), plan.or_else(|| choose(node, target))) {
        (Some(problem), Some(plan)) => plan.partial_bytes(&problem),
        (None, _) => bias_splits(y_dims(node)[0]) * node.conv.spec.k * 4,
        _ => 0,
    }
}

/// The launches of `node` as `plan` says, or as it chooses.
pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>, plan: Option<Plan>) -> Result<Vec<Launch>> {
    let Some(bias) = variants::bwd_bias(target.dtype) else {
        let reason = "f64 runs on the cpu device only";
        return Err(Error::unsupported(format!("{} in {}", node.name(), target.dtype), reason));
    };
    let problem = problem(node);
    if plan.is_some_and(|plan| !problem.is_some_and(|p| choose::fits(plan, &p, target.dtype))) {
        return Err(Error::invalid(node.name(), "the plan is for another pass or dtype"));
    }
    let call = Call { node, dtype: target.dtype, io, scratch: scratch(node, target, io, plan)? };
    match (problem, plan.or_else(|| choose(node, target))) {
        (Some(problem), Some(plan)) => call.product(problem, plan),
        (None, _) => call.bwd_bias(bias),
        (Some(_), None) => Err(Error::unsupported(node.name(), format!("no kernel for {}", target.dtype))),
    }
}

/// The scratch memory, if it is large enough.
fn scratch<'a>(node: &Node, target: Target, io: &Io<'a>, plan: Option<Plan>) -> Result<Option<&'a View>> {
    let needed = scratch_bytes(node, target, plan);
    match io.scratch {
        Some(view) if view.bytes() >= needed => Ok(Some(view)),
        _ if needed == 0 => Ok(None),
        given => {
            let found = given.map_or(0, View::bytes);
            Err(Error::invalid(node.name(), format!("{found} bytes of scratch memory, {needed} expected")))
        }
    }
}

/// y or its gradient, [rows, cols].
fn y_dims(node: &Node) -> [usize; 2] {
    choose::y_dims(&node.conv)
}

/// The launch that adds `splits` partial results of `out`'s shape.
pub(in crate::ops) fn add_splits<'a>(
    conv: &Conv2d,
    dtype: DType,
    [partial, out]: [Matrix<'a>; 2],
    extras: &Extras<'a>,
    splits: usize,
) -> Result<Launch> {
    let kernel =
        variants::reduce(dtype).ok_or_else(|| Error::unsupported("conv2d", format!("no kernel for {dtype}")))?;
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
        residual_stride: extras.residual.map_or(0, |m| m.stride()),
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
    // SAFETY: the entry takes ReduceParams; `partial` holds `splits` times the elements of `out`, and both and the
    // epilogue's operands were checked to lie in their views.
    Ok(unsafe { Launch::new(kernel, grid, &params, cost, views) })
}

/// One pass with its operands.
struct Call<'a> {
    node: &'a Node,
    dtype: DType,
    io: &'a Io<'a>,
    scratch: Option<&'a View>,
}

impl<'a> Call<'a> {
    fn input(&self, i: usize) -> Result<&'a Arg> {
        product::input(self.io, self.node.name(), i)
    }

    fn output(&self) -> Result<&'a Arg> {
        product::output(self.io, self.node.name(), 0)
    }

    fn extras(&self) -> Result<Extras<'a>> {
        let accumulate = self.output()?.write == Write::Accumulate;
        let Pass::Fwd(e) = self.node.pass else { return Ok(Extras { accumulate, ..Extras::default() }) };
        let mut next = 2;
        let mut take = |on: bool, what: &str, stat: bool| -> Result<Option<Matrix<'a>>> {
            if !on {
                return Ok(None);
            }
            next += 1;
            let arg = self.input(next - 1)?;
            Ok(Some(match stat {
                true => Matrix::dense(what, &arg.view, [1, self.node.conv.spec.k], 4)?,
                false => Matrix::pixels(what, arg, y_dims(self.node), self.dtype.bytes())?,
            }))
        };
        Ok(Extras {
            scale: take(e.scale, "scale", true)?,
            shift: take(e.shift, "shift", true)?,
            residual: take(e.residual, "residual", false)?,
            relu: e.relu,
            accumulate,
        })
    }

    fn product(&self, problem: Problem, plan: Plan) -> Result<Vec<Launch>> {
        let operands = [self.input(0)?, self.input(1)?, self.output()?];
        let bound = Bound::new(problem, plan, self.dtype, operands, self.extras()?, self.scratch)?;
        let (kernel, grid) = (&bound.formed().variant.kernel, bound.grid()?);
        // SAFETY: the variant's row in `variants` names the parameters of its product; every matrix was checked to lie in
        // its view, and the kernel stays inside the tensors that these extents and strides describe.
        let first = unsafe {
            match problem.product {
                Product::BwdW => Launch::new(kernel, grid, &bound.weight_params()?, bound.cost(), bound.views()),
                _ => Launch::new(kernel, grid, &bound.gather_params()?, bound.cost(), bound.views()),
            }
        };
        let second = bound.reduce(if problem.product == Product::BwdW { DType::F32 } else { self.dtype })?;
        Ok(std::iter::once(first).chain(second).collect())
    }

    fn bwd_bias(&self, kernel: &'static Kernel) -> Result<Vec<Launch>> {
        let [rows, cols] = y_dims(self.node);
        let dy = Matrix::pixels("dy", self.input(0)?, [rows, cols], self.dtype.bytes())?;
        let dbias = Matrix::dense("dbias", &self.output()?.view, [1, cols], 4)?;
        let splits = bias_splits(rows);
        let scratch = self.scratch.ok_or_else(|| Error::invalid(self.node.name(), "no scratch memory"))?;
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
        let grid = grid(&self.node.conv, self.node.name(), [cols.div_ceil(BIAS_COLS), splits, 1])?;
        let views = vec![dy.view.clone(), partial.view.clone()];
        // SAFETY: the entry takes BiasParams; dy and the partial sums were checked to lie in their views.
        let sums = unsafe { Launch::new(kernel, grid, &params, cost, views) };
        let second = add_splits(&self.node.conv, DType::F32, [partial, dbias], &self.extras()?, splits)?;
        Ok(vec![sums, second])
    }
}
