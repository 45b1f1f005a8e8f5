//! Which kernels, on what grid.
//!
//! A pass is one launch of a tiled matrix product, and where its reduction is split a second one that adds the splits.

mod bind;
mod choose;
mod params;
mod variants;

pub use choose::Plan;

use self::bind::{int, Matrix};
use self::choose::{bias_splits, gcd, result_len, Shape};
use self::params::{Axis, BiasParams, GatherParams, ReduceParams, WeightParams};
use self::params::{ACCUMULATE, RELU, VECTOR_OUT, VECTOR_PARTIAL};
use self::variants::{Access, Variant, BIAS_COLS, REDUCE_THREADS, STEM_C};
use super::{Node, Pass, Spec};
use crate::device::{Cost, Kernel, Launch, Target, View};
use crate::ops::{Arg, Io, Operator, Write};
use crate::tensor::DType;
use crate::{Error, Result};

/// Every entry point.
pub(crate) static KERNELS: &[&Kernel] = &variants::ALL;

/// Every way to compute `node`, for tests and benchmarks.
pub(super) fn plans(node: &Node, target: Target) -> Vec<Plan> {
    choose::plans(node, target)
}

/// Bytes of scratch memory where `node` runs as `plan` says, or as it chooses.
pub(super) fn scratch_bytes(node: &Node, target: Target, plan: Option<Plan>) -> usize {
    let splits = match plan.or_else(|| choose::choose(node, target)) {
        Some(plan) if plan.splits > 1 => plan.splits,
        None if node.pass == Pass::BwdBias => bias_splits(pixels(node)[1]),
        _ => 0,
    };
    splits * result_len(node) * 4
}

/// The launches of `node` as `plan` says, or as it chooses.
pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>, plan: Option<Plan>) -> Result<Vec<Launch>> {
    let (Some(reduce), Some(bias)) = (variants::reduce(target.dtype), variants::bwd_bias(target.dtype)) else {
        let reason = "f64 runs on the cpu device only";
        return Err(Error::unsupported(format!("{} in {}", node.name(), target.dtype), reason));
    };
    if plan.is_some_and(|plan| !choose::fits(plan, node, target.dtype)) {
        return Err(Error::invalid(node.name(), "the plan is for another pass or dtype"));
    }
    let call = Call { node, dtype: target.dtype, io, scratch: scratch(node, target, io, plan)?, reduce };
    match (node.pass, plan.or_else(|| choose::choose(node, target))) {
        (Pass::BwdBias, _) => call.bwd_bias(bias),
        (Pass::BwdW, Some(plan)) => call.bwd_w(plan),
        (_, Some(plan)) => call.gather(plan),
        (_, None) => Err(Error::unsupported(node.name(), format!("no kernel for {}", target.dtype))),
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

/// Pixels of x and of y.
fn pixels(node: &Node) -> [usize; 2] {
    let Spec { n, h, w, .. } = node.conv.spec;
    [n * h * w, n * node.conv.p * node.conv.q]
}

/// The axes as fwd and bwd_w see them, or as bwd_x does.
fn axes(node: &Node) -> Result<[Axis; 2]> {
    let s = &node.conv.spec;
    let axis = |i: usize, x: usize, y: usize| {
        let (stride, dilation) = (s.stride[i], s.dilation[i]);
        if [x + 2 * s.padding[i], stride, y].iter().any(|&v| v >= 1 << 30) {
            return Err(Error::unsupported(format!("{} of {s:?}", node.name()), "padded extents must be below 2^30"));
        }
        let common = gcd(stride, dilation);
        let backwards = node.pass == Pass::BwdX;
        let (input, output) = if backwards { (y, x) } else { (x, y) };
        let (tap_step, tap_shift) =
            if backwards { (int(stride / common)?, -int(dilation / common)?) } else { (1, int(dilation)?) };
        Ok(Axis {
            input: int(input)?,
            output: int(output)?,
            taps: int(s.kernel[i])?,
            stride: int(stride)?,
            pad: int(s.padding[i])?,
            dilation: int(dilation)?,
            tap_step,
            tap_shift,
        })
    };
    Ok([axis(0, s.h, node.conv.p)?, axis(1, s.w, node.conv.q)?])
}

/// A grid, if CUDA allows it.
fn grid(node: &Node, x: usize, y: usize, z: usize) -> Result<[u32; 3]> {
    if x > i32::MAX as usize || y > 65_535 || z > 65_535 {
        let reason = format!("it needs {x} x {y} x {z} blocks, CUDA allows 2^31 - 1 x 65,535 x 65,535");
        return Err(Error::unsupported(format!("{} of {:?}", node.name(), node.conv.spec), reason));
    }
    Ok([x as u32, y as u32, z as u32])
}

fn flag(bit: i32, on: bool) -> i32 {
    if on {
        bit
    } else {
        0
    }
}

/// The epilogue's operands, in the units of the output; absent ones are null.
#[derive(Clone, Copy, Default)]
struct Extras<'a> {
    scale: Option<Matrix<'a>>,
    shift: Option<Matrix<'a>>,
    residual: Option<Matrix<'a>>,
    relu: bool,
    accumulate: bool,
}

impl<'a> Extras<'a> {
    fn matrices(&self) -> impl Iterator<Item = Matrix<'a>> {
        [self.scale, self.shift, self.residual].into_iter().flatten()
    }

    fn bytes(&self, out: &Matrix<'_>) -> u64 {
        self.matrices().map(|m| m.bytes()).sum::<u64>() + if self.accumulate { out.bytes() } else { 0 }
    }

    fn flags(&self) -> i32 {
        flag(RELU, self.relu) | flag(ACCUMULATE, self.accumulate)
    }
}

/// Whether 16-byte accesses to the partial sums of rows of `columns` fit.
fn vector_partial(partial: Option<Matrix<'_>>, columns: usize) -> bool {
    columns.is_multiple_of(8) && partial.is_some_and(|p| p.takes_vectors(columns))
}

fn address(m: Option<Matrix<'_>>) -> u64 {
    m.map_or(0, |m| m.address())
}

/// A kernel and the products that it forms.
struct Formed {
    variant: &'static Variant,
    shape: Shape,
    n_tiles: usize,
    /// Tiles of all groups.
    blocks: usize,
    /// Channels of x and of y that are one group to the kernel.
    x_c: usize,
    y_c: usize,
}

/// One pass with its operands.
struct Call<'a> {
    node: &'a Node,
    dtype: DType,
    io: &'a Io<'a>,
    scratch: Option<&'a View>,
    reduce: &'static Kernel,
}

impl<'a> Call<'a> {
    fn input(&self, i: usize) -> Result<&'a Arg> {
        let missing = || Error::invalid(self.node.name(), format!("input {i} is missing"));
        self.io.inputs.get(i).ok_or_else(missing)
    }

    fn output(&self) -> Result<&'a Arg> {
        self.io.outputs.first().ok_or_else(|| Error::invalid(self.node.name(), "the output is missing"))
    }

    /// x and y or their gradients, [rows, cols].
    fn x_dims(&self) -> [usize; 2] {
        [pixels(self.node)[0], self.node.conv.spec.c]
    }

    fn y_dims(&self) -> [usize; 2] {
        [pixels(self.node)[1], self.node.conv.spec.k]
    }

    fn w_dims(&self) -> [usize; 2] {
        let [k, r, s, cg] = self.node.conv.w_shape();
        [k, r * s * cg]
    }

    /// The kernel of `plan` if the operands lie as it needs them, or the one for any, and how it forms the products.
    fn variant(&self, plan: Plan, lie: impl Fn(Access) -> bool) -> Result<Formed> {
        let (variant, pack) = match plan.vector {
            Some(v) if lie(v.access) => (v, plan.pack),
            _ => (plan.scalar, 1),
        };
        let shape = choose::formed(self.node, variant.access, pack)
            .ok_or_else(|| Error::unsupported(self.node.name(), "it is no matrix product"))?;
        let n_tiles = shape.n.div_ceil(variant.tile.n);
        let blocks = shape.m.div_ceil(variant.tile.m).saturating_mul(shape.groups).saturating_mul(n_tiles);
        let spec = &self.node.conv.spec;
        let x_c = if variant.access == Access::Stem { STEM_C } else { spec.c / spec.groups * pack };
        Ok(Formed { variant, shape, n_tiles, blocks, x_c, y_c: spec.k / spec.groups * pack })
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
                false => Matrix::pixels(what, arg, self.y_dims(), self.dtype.bytes())?,
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

    /// The partial sums of a result of `dims`.
    fn partial(&self, splits: usize, dims: [usize; 2]) -> Result<Option<Matrix<'a>>> {
        let Some(view) = self.scratch.filter(|_| splits > 1) else { return Ok(None) };
        Ok(Some(Matrix::dense("scratch", view, [splits * dims[0], dims[1]], 4)?))
    }

    /// fwd and bwd_x.
    fn gather(&self, plan: Plan) -> Result<Vec<Launch>> {
        let (node, spec, elem) = (self.node, &self.node.conv.spec, self.dtype.bytes());
        let (cg, kg) = (spec.c / spec.groups, spec.k / spec.groups);
        let backwards = node.pass == Pass::BwdX;
        let sides = |x_c: usize, y_c: usize| if backwards { (y_c, x_c) } else { (x_c, y_c) };
        let (in_dims, out_dims) =
            if backwards { (self.y_dims(), self.x_dims()) } else { (self.x_dims(), self.y_dims()) };
        let input = Matrix::pixels("input", self.input(0)?, in_dims, elem)?;
        let w = Matrix::dense("weights", &self.input(1)?.view, self.w_dims(), elem)?;
        let out = Matrix::pixels("output", self.output()?, out_dims, elem)?;
        let extras = self.extras()?;
        let partial = self.partial(plan.splits, out_dims)?;

        let formed = self.variant(plan, |access| match access {
            Access::Vector => input.takes_vectors(sides(cg, kg).0) && w.takes_vectors(cg),
            Access::Packed => input.takes_vectors(plan.pack * sides(cg, kg).0),
            Access::Stem => input.is_stem(),
            Access::Scalar => true,
        })?;
        let (in_c, out_c) = sides(formed.x_c, formed.y_c);
        let whole = out_c.is_multiple_of(8);
        let vector_out = whole && [Some(out), extras.residual].iter().flatten().all(|m| m.takes_vectors(out_c));
        let params = GatherParams {
            input: input.address(),
            w: w.address(),
            out: out.address(),
            scale: address(extras.scale),
            shift: address(extras.shift),
            residual: address(extras.residual),
            partial: address(partial),
            axes: axes(node)?,
            images: int(spec.n)?,
            in_c: int(in_c)?,
            out_c: int(out_c)?,
            in_stride: input.stride(),
            out_stride: out.stride(),
            residual_stride: extras.residual.map_or(0, |m| m.stride()),
            groups: int(formed.shape.groups)?,
            n_tiles: int(formed.n_tiles)?,
            splits: int(plan.splits)?,
            flags: extras.flags() | flag(VECTOR_OUT, vector_out) | flag(VECTOR_PARTIAL, vector_partial(partial, out_c)),
            w_c: int(cg)?,
            unused: 0,
        };
        let grid = grid(node, formed.blocks, formed.shape.residues, plan.splits)?;
        let cost = self.product_cost([input, w], out, partial, &extras);
        let views = views([Some(input), Some(w), Some(out), partial], &extras);
        // SAFETY: the variant's row in `variants` names GatherParams; every matrix was checked to lie in its view, and
        // the kernel stays inside the tensors that these extents and strides describe.
        let mut launches = vec![unsafe { Launch::new(&formed.variant.kernel, grid, &params, cost, views) }];
        if let Some(partial) = partial {
            launches.push(self.reduce(self.reduce, partial, out, &extras, plan.splits)?);
        }
        Ok(launches)
    }

    fn bwd_w(&self, plan: Plan) -> Result<Vec<Launch>> {
        let (node, spec, elem) = (self.node, &self.node.conv.spec, self.dtype.bytes());
        let (cg, kg) = (spec.c / spec.groups, spec.k / spec.groups);
        let dy = Matrix::pixels("dy", self.input(0)?, self.y_dims(), elem)?;
        let x = Matrix::pixels("x", self.input(1)?, self.x_dims(), elem)?;
        let dims = self.w_dims();
        let dw = Matrix::dense("dw", &self.output()?.view, dims, 4)?;
        let extras = self.extras()?;
        let partial = self.partial(plan.splits, dims)?;

        let formed = self.variant(plan, |access| match access {
            Access::Vector | Access::Packed => dy.takes_vectors(plan.pack * kg) && x.takes_vectors(plan.pack * cg),
            Access::Stem => dy.takes_vectors(kg) && x.is_stem(),
            Access::Scalar => true,
        })?;
        let whole = dims[1].is_multiple_of(8);
        let params = WeightParams {
            dy: dy.address(),
            x: x.address(),
            dw: dw.address(),
            partial: address(partial),
            axes: axes(node)?,
            images: int(spec.n)?,
            x_c: int(formed.x_c)?,
            dy_c: int(formed.y_c)?,
            x_stride: x.stride(),
            dy_stride: dy.stride(),
            groups: int(formed.shape.groups)?,
            n_tiles: int(formed.n_tiles)?,
            splits: int(plan.splits)?,
            flags: extras.flags()
                | flag(VECTOR_OUT, whole && dw.takes_vectors(dims[1]))
                | flag(VECTOR_PARTIAL, vector_partial(partial, dims[1])),
            w_c: int(cg)?,
        };
        let grid = grid(node, formed.blocks, 1, plan.splits)?;
        let cost = self.product_cost([dy, x], dw, partial, &extras);
        let views = views([Some(dy), Some(x), Some(dw), partial], &extras);
        // SAFETY: the variant's row in `variants` names WeightParams; every matrix was checked to lie in its view, and
        // the kernel stays inside the tensors that these extents and strides describe.
        let mut launches = vec![unsafe { Launch::new(&formed.variant.kernel, grid, &params, cost, views) }];
        if let (Some(partial), Some(kernel)) = (partial, variants::reduce(DType::F32)) {
            launches.push(self.reduce(kernel, partial, dw, &extras, plan.splits)?);
        }
        Ok(launches)
    }

    /// The launch that adds `splits` partial results of `out`'s shape.
    fn reduce(
        &self,
        kernel: &'static Kernel,
        partial: Matrix<'a>,
        out: Matrix<'a>,
        extras: &Extras<'a>,
        splits: usize,
    ) -> Result<Launch> {
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
        let views = views([Some(partial), Some(out), None, None], extras);
        let grid = grid(self.node, len.div_ceil(REDUCE_THREADS), 1, 1)?;
        // SAFETY: the entry takes ReduceParams; `partial` holds `splits` times the elements of `out`, and both and the
        // epilogue's operands were checked to lie in their views.
        Ok(unsafe { Launch::new(kernel, grid, &params, cost, views) })
    }

    fn bwd_bias(&self, kernel: &'static Kernel) -> Result<Vec<Launch>> {
        let [rows, cols] = self.y_dims();
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
        let grid = grid(self.node, cols.div_ceil(BIAS_COLS), splits, 1)?;
        let extras = self.extras()?;
        let views = views([Some(dy), Some(partial), None, None], &extras);
        // SAFETY: the entry takes BiasParams; dy and the partial sums were checked to lie in their views.
        let sums = unsafe { Launch::new(kernel, grid, &params, cost, views) };
        let reduce = variants::reduce(DType::F32).ok_or_else(|| Error::unsupported(self.node.name(), "no kernel"))?;
        Ok(vec![sums, self.reduce(reduce, partial, dbias, &extras, splits)?])
    }

    /// What the product needs: its operands once, and the result or its partial sums once.
    fn product_cost(
        &self,
        operands: [Matrix<'_>; 2],
        out: Matrix<'_>,
        partial: Option<Matrix<'_>>,
        extras: &Extras<'_>,
    ) -> Cost {
        let read: u64 = operands.iter().map(Matrix::bytes).sum();
        let (epilogue, written) = match partial {
            Some(partial) => (0, partial.bytes()),
            None => (extras.bytes(&out), out.bytes()),
        };
        Cost { flops: 2 * self.node.conv.macs(), bytes_read: read + epilogue, bytes_written: written }
    }
}

/// The memory of a launch, kept alive by it.
fn views(matrices: [Option<Matrix<'_>>; 4], extras: &Extras<'_>) -> Vec<View> {
    matrices.into_iter().flatten().chain(extras.matrices()).map(|m| m.view.clone()).collect()
}
