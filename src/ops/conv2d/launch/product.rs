//! A product with its operands bound: parameters, grid and cost.

use super::bind::{int, Factors, Matrix};
use super::choose::{gcd, x_dims, y_dims, Plan, Problem, Product, Shape};
use super::params::{Axis, GatherParams, WeightParams};
use super::params::{ACCUMULATE, RELU, VECTOR_OUT, VECTOR_PARTIAL};
use super::variants::{Access, Variant, STEM_C};
use crate::device::{Cost, Launch, Target, View};
use crate::ops::conv2d::{Conv2d, Spec};
use crate::ops::store::Epilogue;
use crate::ops::{touched, Arg};
use crate::tensor::DType;
use crate::{Error, Result};

/// The axes for `product`.
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

/// A grid; fails if CUDA does not allow it.
pub fn grid(conv: &Conv2d, name: &str, [x, y, z]: [usize; 3]) -> Result<[u32; 3]> {
    if x > i32::MAX as usize || y > 65_535 || z > 65_535 {
        let reason = format!("it needs {x} x {y} x {z} blocks, CUDA allows 2^31 - 1 x 65,535 x 65,535");
        return Err(Error::unsupported(format!("{name} of {:?}", conv.spec), reason));
    }
    Ok([x as u32, y as u32, z as u32])
}

pub fn flag(bit: i32, on: bool) -> i32 {
    bit * i32::from(on)
}

/// The epilogue's operands, and the flag to accumulate.
#[derive(Clone, Copy, Default)]
pub struct Extras<'a> {
    pub scale: Option<Matrix<'a>>,
    pub shift: Option<Matrix<'a>>,
    pub residual: Option<Matrix<'a>>,
    pub relu: bool,
    pub accumulate: bool,
}

impl<'a> Extras<'a> {
    /// Binds the operands of `epilogue`.
    pub fn new(conv: &Conv2d, dtype: DType, epilogue: Epilogue<&'a Arg>) -> Result<Self> {
        let numbers = |what, arg: &'a Arg| Matrix::dense(what, &arg.view, [1, conv.spec.k], 4);
        let residual = |arg| Matrix::pixels("residual", arg, y_dims(conv), dtype.bytes());
        Ok(Self {
            scale: epilogue.scale.map(|arg| numbers("scale", arg)).transpose()?,
            shift: epilogue.shift.map(|arg| numbers("shift", arg)).transpose()?,
            residual: epilogue.residual.map(residual).transpose()?,
            relu: epilogue.relu,
            accumulate: false,
        })
    }

    /// The operands present.
    pub fn matrices(&self) -> impl Iterator<Item = Matrix<'a>> {
        [self.scale, self.shift, self.residual].into_iter().flatten()
    }

    /// Extra bytes read by a kernel that writes `out`.
    pub fn bytes(&self, out: &Matrix<'_>) -> u64 {
        self.matrices().map(|m| m.bytes()).sum::<u64>() + if self.accumulate { out.bytes() } else { 0 }
    }

    /// The bits in a kernel's flags.
    pub fn flags(&self) -> i32 {
        flag(RELU, self.relu) | flag(ACCUMULATE, self.accumulate)
    }
}

/// The address; null if there is no matrix.
pub fn address(m: Option<Matrix<'_>>) -> u64 {
    m.map_or(0, |m| m.address())
}

/// The stride; 0 if there is no matrix.
pub fn stride(m: Option<Matrix<'_>>) -> i32 {
    m.map_or(0, |m| m.stride())
}

/// A product with its plan and its operands.
pub struct Bound<'a> {
    problem: Problem,
    plan: Plan,
    pub factors: Factors<Matrix<'a>>,
    pub extras: Extras<'a>,
    partial: Option<Matrix<'a>>,
    /// True if the epilogue also visits results that no tap reaches.
    pub whole_out: bool,
    /// Further operands, with one column per channel.
    pub beside: Beside<'a>,
}

/// Operands loaded with x, loaded with y or dy, and read by the epilogue.
#[derive(Default)]
pub struct Beside<'a> {
    pub x: Vec<Matrix<'a>>,
    pub y: Vec<Matrix<'a>>,
    pub out: Vec<Matrix<'a>>,
}

/// A kernel and the shape of its products.
pub struct Formed {
    pub variant: &'static Variant,
    pub shape: Shape,
    /// Channels of x and of y in a group as the kernel computes it.
    x_c: usize,
    y_c: usize,
}

impl Formed {
    /// Tiles along the rows (of the largest residue) and the columns of the result.
    pub fn tiles(&self) -> [usize; 2] {
        [self.shape.m.div_ceil(self.variant.tile.m), self.shape.n.div_ceil(self.variant.tile.n)]
    }

    /// Blocks per residue and split.
    pub fn blocks(&self) -> usize {
        let [rows, columns] = self.tiles();
        rows.saturating_mul(self.shape.groups).saturating_mul(columns)
    }
}

impl<'a> Bound<'a> {
    /// Binds the operands and the result, and the partial sums at the start of the scratch memory.
    pub fn new(
        problem: Problem,
        plan: Plan,
        dtype: DType,
        Factors { a, b, out }: Factors<&'a Arg>,
        extras: Extras<'a>,
        scratch: Option<&'a View>,
    ) -> Result<Self> {
        let (conv, elem) = (&problem.conv, dtype.bytes());
        let [k, r, s, cg] = conv.w_shape();
        let (x, y, w) = (x_dims(conv), y_dims(conv), [k, r * s * cg]);
        let pixels = |what, arg, dims| Matrix::pixels(what, arg, dims, elem);
        let weights = || Matrix::dense("weights", &b.view, w, elem);
        let factors = match problem.product {
            Product::Fwd => Factors { a: pixels("x", a, x)?, b: weights()?, out: pixels("y", out, y)? },
            Product::BwdX => Factors { a: pixels("dy", a, y)?, b: weights()?, out: pixels("dx", out, x)? },
            Product::BwdW => {
                let out = Matrix::dense("dw", &out.view, w, 4)?;
                Factors { a: pixels("dy", a, y)?, b: pixels("x", b, x)?, out }
            }
        };
        let dims = [plan.splits * factors.out.rows, factors.out.cols];
        let partial = scratch.filter(|_| plan.splits > 1);
        let partial = partial.map(|view| Matrix::dense("scratch", view, dims, 4)).transpose()?;
        Ok(Self { problem, plan, factors, extras, partial, whole_out: false, beside: Beside::default() })
    }

    /// Channels per group of x and of y.
    fn channels(&self) -> [usize; 2] {
        let s = &self.problem.conv.spec;
        [s.c / s.groups, s.k / s.groups]
    }

    /// True if the operands fit kernels of `access` that compute `pack` groups as one.
    fn operands_fit(&self, access: Access, pack: usize) -> bool {
        let ([cg, kg], Factors { a, b, .. }) = (self.channels(), self.factors);
        let takes = |m: &Matrix<'_>, beside: &[Matrix<'_>], channels: usize| {
            m.takes_vectors(channels) && beside.iter().all(|m| m.takes_vectors(channels))
        };
        let x = |m: &Matrix<'_>| match access {
            Access::Stem => m.is_stem(),
            _ => takes(m, &self.beside.x, pack * cg),
        };
        let y = |m: &Matrix<'_>| takes(m, &self.beside.y, pack * kg);
        let weights = access != Access::Vector || b.takes_vectors(cg);
        match self.problem.product {
            _ if access == Access::Scalar => true,
            Product::Fwd => x(&a) && weights,
            Product::BwdX => y(&a) && weights,
            Product::BwdW => y(&a) && x(&b),
        }
    }

    /// True if the plan's vector kernel runs.
    pub fn is_fast(&self) -> bool {
        self.plan.vector.is_some_and(|v| self.operands_fit(v.access, self.plan.pack))
    }

    /// Selects the kernel for any operands.
    pub fn slow(&mut self) {
        self.plan.vector = None;
    }

    /// The plan's vector kernel if the operands fit it, else the scalar one, and its products.
    pub fn formed(&self) -> Formed {
        let (variant, pack) = match self.plan.vector {
            Some(v) if self.is_fast() => (v, self.plan.pack),
            _ => (self.plan.scalar, 1),
        };
        let [cg, kg] = self.channels();
        let x_c = if variant.access == Access::Stem { STEM_C } else { cg * pack };
        Formed { variant, shape: self.problem.formed(variant.access, pack), x_c, y_c: kg * pack }
    }

    /// The grid of the launch.
    pub fn grid(&self) -> Result<[u32; 3]> {
        let formed = self.formed();
        let blocks = [formed.blocks(), formed.shape.residues, self.plan.splits];
        grid(&self.problem.conv, formed.variant.kernel.name, blocks)
    }

    fn flags(&self, columns: usize) -> i32 {
        let whole = columns.is_multiple_of(8);
        let mut out = std::iter::once(&self.factors.out).chain(&self.extras.residual).chain(&self.beside.out);
        let vector_out = whole && out.all(|m| m.takes_vectors(columns));
        let vector_partial = whole && self.partial.is_some_and(|m| m.takes_vectors(columns));
        self.extras.flags() | flag(VECTOR_OUT, vector_out) | flag(VECTOR_PARTIAL, vector_partial)
    }

    /// The parameters of fwd and bwd_x.
    pub fn gather_params(&self) -> Result<GatherParams> {
        let (spec, formed) = (&self.problem.conv.spec, self.formed());
        let Formed { x_c, y_c, .. } = formed;
        let (in_c, out_c) = if self.problem.product == Product::BwdX { (y_c, x_c) } else { (x_c, y_c) };
        let (e, Factors { a: input, b: w, out }) = (&self.extras, self.factors);
        let [axis_h, axis_w] = axes(&self.problem.conv, self.problem.product)?;
        Ok(GatherParams {
            input: input.address(),
            w: w.address(),
            out: out.address(),
            scale: address(e.scale),
            shift: address(e.shift),
            residual: address(e.residual),
            partial: address(self.partial),
            axis_h,
            axis_w,
            images: int(spec.n)?,
            in_c: int(in_c)?,
            out_c: int(out_c)?,
            in_stride: input.stride(),
            out_stride: out.stride(),
            residual_stride: stride(e.residual),
            groups: int(formed.shape.groups)?,
            n_tiles: int(formed.tiles()[1])?,
            splits: int(self.plan.splits)?,
            flags: self.flags(out_c),
            w_c: int(self.channels()[0])?,
            unused: 0,
        })
    }

    /// The parameters of bwd_w.
    pub fn weight_params(&self) -> Result<WeightParams> {
        let (spec, formed) = (&self.problem.conv.spec, self.formed());
        let Factors { a: dy, b: x, out: dw } = self.factors;
        let [axis_h, axis_w] = axes(&self.problem.conv, self.problem.product)?;
        Ok(WeightParams {
            dy: dy.address(),
            x: x.address(),
            dw: dw.address(),
            partial: address(self.partial),
            axis_h,
            axis_w,
            images: int(spec.n)?,
            x_c: int(formed.x_c)?,
            dy_c: int(formed.y_c)?,
            x_stride: x.stride(),
            dy_stride: dy.stride(),
            groups: int(formed.shape.groups)?,
            n_tiles: int(formed.tiles()[1])?,
            splits: int(self.plan.splits)?,
            flags: self.flags(dw.cols),
            w_c: int(self.channels()[0])?,
        })
    }

    /// The cost: the operands are read once, except pixels that no tap reaches, and the result or its partial sums are
    /// written once.
    pub fn cost(&self) -> Cost {
        let read = self.reads().map(|(_, bytes)| bytes).iter().sum();
        self.result_cost() + Cost { bytes_read: read, ..Cost::default() }
    }

    /// The operands, each with the bytes read.
    pub fn reads(&self) -> [(Matrix<'a>, u64); 2] {
        let Factors { a, b, .. } = self.factors;
        let whole = |m: Matrix<'a>| (m, m.bytes());
        let x = |m: Matrix<'a>| (m, m.bytes() - self.unreached(&m)); // pixels that no tap reaches are not read
        match self.problem.product {
            Product::Fwd => [x(a), whole(b)],
            Product::BwdX => [whole(a), whole(b)],
            Product::BwdW => [whole(a), x(b)],
        }
    }

    /// The cost without the operands.
    pub fn result_cost(&self) -> Cost {
        let out = &self.factors.out;
        let (epilogue, written) = match self.partial {
            Some(partial) => (0, partial.bytes()),
            None => (self.extras.bytes(out), out.bytes()),
        };
        // An accumulated dx keeps the pixels that no tap reaches.
        let is_added = self.problem.product == Product::BwdX && self.partial.is_none() && self.extras.accumulate;
        let unreached = if is_added && !self.whole_out { self.unreached(out) } else { 0 };
        Cost {
            flops: 2 * self.problem.conv.macs(),
            bytes_read: epilogue - unreached,
            bytes_written: written - unreached,
        }
    }

    /// Bytes of the pixels of x or dx that no tap of the kernel reaches.
    fn unreached(&self, x: &Matrix<'_>) -> u64 {
        let Spec { n, h, w, c, .. } = self.problem.conv.spec;
        let [rows, columns] = [0, 1].map(|axis| self.problem.conv.reached(axis));
        let pitch = x.stride * x.elem;
        let touched = touched::pixels(x.address(), [n, h, w, c], [pitch, x.elem], [&rows, &columns]);
        x.bytes().saturating_sub(touched)
    }

    /// The views that the launch keeps alive.
    pub fn views(&self) -> Vec<View> {
        let Factors { a, b, out } = self.factors;
        let all = [a, b, out].into_iter().chain(self.partial).chain(self.extras.matrices());
        all.map(|m| m.view.clone()).collect()
    }

    /// The launch that adds the splits, if any, into the result in `target.dtype`.
    pub fn reduce(&self, target: Target) -> Result<Option<Launch>> {
        let Some(partial) = self.partial else { return Ok(None) };
        let matrices = [partial, self.factors.out];
        super::add_splits(&self.problem.conv, target, matrices, &self.extras, self.plan.splits).map(Some)
    }
}
