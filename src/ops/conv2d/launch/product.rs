//! A product with its operands bound: parameters, grid and cost of its launches.

use super::bind::{int, Matrix};
use super::choose::{gcd, x_dims, y_dims, Plan, Problem, Product, Shape};
use super::params::{Axis, GatherParams, ReduceParams, WeightParams};
use super::params::{ACCUMULATE, RELU, VECTOR_OUT, VECTOR_PARTIAL};
use super::variants::{self, Access, Variant, REDUCE_THREADS, STEM_C};
use crate::device::{Cost, Launch, View};
use crate::ops::conv2d::Conv2d;
use crate::ops::{Arg, Io};
use crate::tensor::DType;
use crate::{Error, Result};

/// The axes as fwd and bwd_w see them, or as bwd_x does.
fn axes(conv: &Conv2d, product: Product) -> Result<[Axis; 2]> {
    let s = &conv.spec;
    let axis = |i: usize, x: usize, y: usize| {
        let (stride, dilation) = (s.stride[i], s.dilation[i]);
        if [x + 2 * s.padding[i], stride, y].iter().any(|&v| v >= 1 << 30) {
            return Err(Error::unsupported(format!("{product:?} of {s:?}"), "padded extents must be below 2^30"));
        }
        let common = gcd(stride, dilation);
        let backwards = product == Product::BwdX;
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
    Ok([axis(0, s.h, conv.p)?, axis(1, s.w, conv.q)?])
}

/// A grid, if CUDA allows it.
pub fn grid(conv: &Conv2d, name: &str, [x, y, z]: [usize; 3]) -> Result<[u32; 3]> {
    if x > i32::MAX as usize || y > 65_535 || z > 65_535 {
        let reason = format!("it needs {x} x {y} x {z} blocks, CUDA allows 2^31 - 1 x 65,535 x 65,535");
        return Err(Error::unsupported(format!("{name} of {:?}", conv.spec), reason));
    }
    Ok([x as u32, y as u32, z as u32])
}

pub fn flag(bit: i32, on: bool) -> i32 {
    if on {
        bit
    } else {
        0
    }
}

/// The epilogue's operands, in the units of the output; absent ones are null.
#[derive(Clone, Copy, Default)]
pub struct Extras<'a> {
    pub scale: Option<Matrix<'a>>,
    pub shift: Option<Matrix<'a>>,
    pub residual: Option<Matrix<'a>>,
    pub relu: bool,
    pub accumulate: bool,
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

pub fn address(m: Option<Matrix<'_>>) -> u64 {
    m.map_or(0, |m| m.address())
}

/// Input `i` of `io`.
pub fn input<'a>(io: &Io<'a>, name: &str, i: usize) -> Result<&'a Arg> {
    io.inputs.get(i).ok_or_else(|| Error::invalid(name, format!("input {i} is missing")))
}

/// Output `i` of `io`.
pub fn output<'a>(io: &Io<'a>, name: &str, i: usize) -> Result<&'a Arg> {
    io.outputs.get(i).ok_or_else(|| Error::invalid(name, format!("output {i} is missing")))
}

/// A product, the operands that all of its kind have, and how it is computed.
pub struct Bound<'a> {
    problem: Problem,
    plan: Plan,
    /// The activation or gradient that is gathered, and the weights; in bwd_w dy and x.
    pub operands: [Matrix<'a>; 2],
    /// The result.
    pub out: Matrix<'a>,
    /// Of the epilogue.
    pub extras: Extras<'a>,
    partial: Option<Matrix<'a>>,
    /// Whether what else the kernel loads takes 16-byte accesses.
    pub vectors: bool,
    /// Whether what else the epilogue touches does.
    pub vector_out: bool,
}

impl<'a> Bound<'a> {
    /// Inputs 0 and 1, output 0 and the start of the scratch memory.
    pub fn new(
        problem: Problem,
        plan: Plan,
        dtype: DType,
        io: &Io<'a>,
        extras: Extras<'a>,
        scratch: Option<&'a View>,
    ) -> Result<Self> {
        let (conv, elem, name) = (&problem.conv, dtype.bytes(), "conv2d");
        let [k, r, s, cg] = conv.w_shape();
        let (x, y, w) = (x_dims(conv), y_dims(conv), [k, r * s * cg]);
        let (first, second, out) = (input(io, name, 0)?, input(io, name, 1)?, output(io, name, 0)?);
        let weights = || Matrix::dense("weights", &second.view, w, elem);
        let (operands, out) = match problem.product {
            Product::Fwd => ([Matrix::pixels("x", first, x, elem)?, weights()?], Matrix::pixels("y", out, y, elem)?),
            Product::BwdX => ([Matrix::pixels("dy", first, y, elem)?, weights()?], Matrix::pixels("dx", out, x, elem)?),
            Product::BwdW => (
                [Matrix::pixels("dy", first, y, elem)?, Matrix::pixels("x", second, x, elem)?],
                Matrix::dense("dw", &out.view, w, 4)?,
            ),
        };
        let partial = match scratch.filter(|_| plan.splits > 1) {
            Some(view) => Some(Matrix::dense("scratch", view, [plan.splits * out.rows, out.cols], 4)?),
            None => None,
        };
        Ok(Self { problem, plan, operands, out, extras, partial, vectors: true, vector_out: true })
    }

    /// Channels of x and of y that are one group to the kernel.
    fn channels(&self) -> [usize; 2] {
        let (s, v) = (&self.problem.conv.spec, self.variant());
        let pack = self.pack();
        [if v.access == Access::Stem { STEM_C } else { s.c / s.groups * pack }, s.k / s.groups * pack]
    }

    /// Groups that the kernel computes as one.
    fn pack(&self) -> usize {
        if self.variant().access == Access::Packed {
            self.plan.pack
        } else {
            1
        }
    }

    /// The kernel of the plan if the operands lie as it needs them, or the one for any.
    pub fn variant(&self) -> &'static Variant {
        let (s, pack, [a, b]) = (&self.problem.conv.spec, self.plan.pack, self.operands);
        let (cg, kg) = (s.c / s.groups * pack, s.k / s.groups * pack);
        let fit = |access: Access| match (access, self.problem.product) {
            (Access::Scalar, _) => true,
            (Access::Stem, Product::BwdW) => a.takes_vectors(kg) && b.is_stem(),
            (Access::Stem, _) => a.is_stem(),
            (Access::Packed, Product::Fwd) => a.takes_vectors(cg),
            (Access::Packed, Product::BwdX) => a.takes_vectors(kg),
            (Access::Vector, Product::Fwd) => a.takes_vectors(cg) && b.takes_vectors(cg),
            (Access::Vector, Product::BwdX) | (_, Product::BwdW) => a.takes_vectors(kg) && b.takes_vectors(cg),
        };
        self.plan.vector.filter(|v| fit(v.access) && self.vectors).unwrap_or(self.plan.scalar)
    }

    fn shape(&self) -> Shape {
        self.problem.formed(self.variant().access, self.pack())
    }

    /// Tiles of the result: rows (of the largest residue), columns.
    pub fn tiles(&self) -> [usize; 2] {
        let (shape, tile) = (self.shape(), self.variant().tile);
        [shape.m.div_ceil(tile.m), shape.n.div_ceil(tile.n)]
    }

    /// Blocks of the launch.
    pub fn grid(&self) -> Result<[u32; 3]> {
        let ([rows, columns], shape) = (self.tiles(), self.shape());
        let blocks = rows.saturating_mul(shape.groups).saturating_mul(columns);
        grid(&self.problem.conv, self.variant().kernel.name, [blocks, shape.residues, self.plan.splits])
    }

    fn flags(&self, columns: usize) -> i32 {
        let matrices = [Some(self.out), self.extras.residual];
        let vector_out = self.vector_out && matrices.iter().flatten().all(|m| m.takes_vectors(columns));
        let whole = columns.is_multiple_of(8);
        self.extras.flags()
            | flag(VECTOR_OUT, whole && vector_out)
            | flag(VECTOR_PARTIAL, vector_partial(self.partial, columns))
    }

    /// Of fwd and bwd_x.
    pub fn gather_params(&self) -> Result<GatherParams> {
        let (spec, [x_c, y_c]) = (&self.problem.conv.spec, self.channels());
        let (in_c, out_c) = if self.problem.product == Product::BwdX { (y_c, x_c) } else { (x_c, y_c) };
        let (e, [input, w]) = (&self.extras, self.operands);
        Ok(GatherParams {
            input: input.address(),
            w: w.address(),
            out: self.out.address(),
            scale: address(e.scale),
            shift: address(e.shift),
            residual: address(e.residual),
            partial: address(self.partial),
            axes: axes(&self.problem.conv, self.problem.product)?,
            images: int(spec.n)?,
            in_c: int(in_c)?,
            out_c: int(out_c)?,
            in_stride: input.stride(),
            out_stride: self.out.stride(),
            residual_stride: e.residual.map_or(0, |m| m.stride()),
            groups: int(self.shape().groups)?,
            n_tiles: int(self.tiles()[1])?,
            splits: int(self.plan.splits)?,
            flags: self.flags(out_c),
            w_c: int(spec.c / spec.groups)?,
            unused: 0,
        })
    }

    /// Of bwd_w.
    pub fn weight_params(&self) -> Result<WeightParams> {
        let (spec, [x_c, dy_c], [dy, x]) = (&self.problem.conv.spec, self.channels(), self.operands);
        Ok(WeightParams {
            dy: dy.address(),
            x: x.address(),
            dw: self.out.address(),
            partial: address(self.partial),
            axes: axes(&self.problem.conv, self.problem.product)?,
            images: int(spec.n)?,
            x_c: int(x_c)?,
            dy_c: int(dy_c)?,
            x_stride: x.stride(),
            dy_stride: dy.stride(),
            groups: int(self.shape().groups)?,
            n_tiles: int(self.tiles()[1])?,
            splits: int(self.plan.splits)?,
            flags: self.flags(self.out.cols),
            w_c: int(spec.c / spec.groups)?,
        })
    }

    /// What the product needs: its operands once, and the result or its partial sums once.
    pub fn cost(&self) -> Cost {
        let read: u64 = self.operands.iter().map(Matrix::bytes).sum();
        let (epilogue, written) = match self.partial {
            Some(partial) => (0, partial.bytes()),
            None => (self.extras.bytes(&self.out), self.out.bytes()),
        };
        Cost { flops: 2 * self.problem.conv.macs(), bytes_read: read + epilogue, bytes_written: written }
    }

    /// The memory of the launch, kept alive by it.
    pub fn views(&self) -> Vec<View> {
        let all = self.operands.into_iter().chain([self.out]).chain(self.partial).chain(self.extras.matrices());
        all.map(|m| m.view.clone()).collect()
    }

    /// The launch that adds the splits into the result in `dtype`, where there are some.
    pub fn reduce(&self, dtype: DType) -> Result<Option<Launch>> {
        let Some(partial) = self.partial else { return Ok(None) };
        add_splits(&self.problem.conv, dtype, [partial, self.out], &self.extras, self.plan.splits).map(Some)
    }
}

/// The launch that adds `splits` partial results of `out`'s shape.
pub fn add_splits<'a>(
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
