//! Which kernels, on what grid.
//!
//! A pass is conv2d's product with more operands. Where its tiles leave something of their columns, the reduction is not
//! split and the tiles are merged after it.

mod params;
mod variants;

use self::params::{DataGradientParams, ForwardParams, WeightGradientParams, ACTIVATE, MASK, SCALED};
use self::variants::{BWD_W, BWD_X, FWD};
use super::{Node, Pass};
use crate::device::{Cost, Kernel, Launch, Target, View};
use crate::ops::conv2d::launch::bind::{int, Matrix};
use crate::ops::conv2d::launch::choose::{self, x_dims, y_dims, Plan, Problem, Product};
use crate::ops::conv2d::launch::product::{address, flag, output, Bound, Extras};
use crate::ops::norm::merge::{self, BandRows, Bands};
use crate::ops::norm::{sign_bytes, Correction, Epilogue, Prologue};
use crate::ops::{Arg, Io, Operator, Write};
use crate::tensor::DType;
use crate::{Error, Result};

/// Every entry point.
pub(crate) static KERNELS: &[&Kernel] = &variants::ALL;

fn problem(node: &Node) -> Problem {
    let (product, table, whole): (_, &[_], _) = match node.pass {
        Pass::Fwd { moments, .. } => (Product::Fwd, &FWD, moments),
        Pass::BwdX { epilogue, .. } => (Product::BwdX, &BWD_X, epilogue.is_some()),
        Pass::BwdW { .. } => (Product::BwdW, &BWD_W, false),
    };
    Problem { conv: node.conv, product, table, whole }
}

/// Every way to compute `node`, for tests and benchmarks.
pub(super) fn plans(node: &Node, target: Target) -> Vec<Plan> {
    choose::plans(&problem(node), target.dtype)
}

fn choose(node: &Node, target: Target) -> Option<Plan> {
    choose::choose(&problem(node), target.dtype)
}

/// Numbers that a tile leaves of a column.
fn left(node: &Node) -> usize {
    match node.pass {
        Pass::Fwd { moments, .. } => 2 * usize::from(moments),
        Pass::BwdX { epilogue: Some(Epilogue::Affine { .. }), .. } => 2,
        Pass::BwdX { epilogue: Some(Epilogue::Signs { norms }), .. } => 1 + norms,
        Pass::BwdX { epilogue: None, .. } | Pass::BwdW { .. } => 0,
    }
}

/// Columns of the result.
fn columns(node: &Node) -> usize {
    match node.pass {
        Pass::BwdX { .. } => node.conv.spec().c,
        _ => node.conv.spec().k,
    }
}

/// Row tiles of all residues where they have `rows` rows: what is merged.
fn bands(node: &Node, rows: usize) -> usize {
    let shape = problem(node).shape();
    shape.m.div_ceil(rows) * shape.residues
}

/// Bytes of scratch memory where `node` runs as `plan` says, or as it chooses.
pub(super) fn scratch_bytes(node: &Node, target: Target, plan: Option<Plan>) -> usize {
    let Some(plan) = plan.or_else(|| choose(node, target)) else { return 0 };
    // Which of the plan's kernels runs depends on the addresses: enough for either.
    let tiles = plan.rows().map(|rows| {
        let (bands, numbers) = (Bands { count: bands(node, rows), channels: columns(node) }, left(node));
        numbers * bands.bytes() + bands.merge_bytes(numbers)
    });
    plan.partial_bytes(&problem(node)) + tiles.into_iter().max().unwrap_or(0)
}

/// The launches of `node` as `plan` says, or as it chooses.
pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>, plan: Option<Plan>) -> Result<Vec<Launch>> {
    let problem = problem(node);
    if plan.is_some_and(|plan| !choose::fits(plan, &problem, target.dtype)) {
        return Err(Error::invalid(node.name(), "the plan is for another pass or dtype"));
    }
    let Some(plan) = plan.or_else(|| choose(node, target)) else {
        let reason = "f64 runs on the cpu device only";
        return Err(Error::unsupported(format!("{} in {}", node.name(), target.dtype), reason));
    };
    let needed = scratch_bytes(node, target, Some(plan));
    let found = io.scratch.map_or(0, View::bytes);
    if found < needed {
        return Err(Error::invalid(node.name(), format!("{found} bytes of scratch memory, {needed} expected")));
    }
    let accumulate = output(io, node.name(), 0)?.write == Write::Accumulate;
    let mut call = Call { node, dtype: target.dtype, io, next: 2, read: Vec::new() };
    match node.pass {
        Pass::Fwd { prologue, epilogue, .. } => call.fwd(problem, plan, prologue, epilogue),
        Pass::BwdX { correction, epilogue } => call.bwd_x(problem, plan, correction, epilogue, accumulate),
        Pass::BwdW { correction, prologue } => call.bwd_w(problem, plan, correction, prologue, accumulate),
    }
}

/// The operands of a correction; none where there is none.
#[derive(Default)]
struct Correcting<'a> {
    y: Option<Matrix<'a>>,
    a: Option<Matrix<'a>>,
    b: Option<Matrix<'a>>,
    c: Option<Matrix<'a>>,
}

/// One pass, as its inputs are taken one by one.
struct Call<'a> {
    node: &'a Node,
    dtype: DType,
    io: &'a Io<'a>,
    next: usize,
    /// What has been taken: read besides the operands of the product.
    read: Vec<Matrix<'a>>,
}

impl<'a> Call<'a> {
    fn arg(&mut self) -> Result<&'a Arg> {
        self.next += 1;
        let (i, name) = (self.next - 1, self.node.name());
        self.io.inputs.get(i).ok_or_else(|| Error::invalid(name, format!("input {i} is missing")))
    }

    /// A number a channel, where `on`.
    fn numbers(&mut self, on: bool, what: &str, channels: usize) -> Result<Option<Matrix<'a>>> {
        if !on {
            return Ok(None);
        }
        let matrix = Matrix::dense(what, &self.arg()?.view, [1, channels], 4)?;
        self.read.push(matrix);
        Ok(Some(matrix))
    }

    /// An activation of elements of `elem` bytes.
    fn pixels(&mut self, what: &str, dims: [usize; 2], elem: usize) -> Result<Option<Matrix<'a>>> {
        let matrix = Matrix::pixels(what, self.arg()?, dims, elem)?;
        self.read.push(matrix);
        Ok(Some(matrix))
    }

    fn prologue(&mut self, prologue: Option<Prologue>) -> Result<([Option<Matrix<'a>>; 2], i32)> {
        let (on, c) = (prologue.is_some(), self.node.conv.spec().c);
        let numbers = [self.numbers(on, "x_scale", c)?, self.numbers(on, "x_shift", c)?];
        Ok((numbers, flag(ACTIVATE, prologue.is_some_and(|p| p.relu))))
    }

    fn correction(&mut self, correction: Option<Correction>) -> Result<Correcting<'a>> {
        let Some(Correction { a }) = correction else { return Ok(Correcting::default()) };
        let dims = y_dims(&self.node.conv);
        Ok(Correcting {
            y: self.pixels("y", dims, self.dtype.bytes())?,
            a: self.numbers(a, "a", dims[1])?,
            b: self.numbers(true, "b", dims[1])?,
            c: self.numbers(true, "c", dims[1])?,
        })
    }

    /// Whether all that has been taken takes 16-byte accesses, in groups of `channels`.
    fn vectors(&self, channels: usize) -> bool {
        self.read.iter().all(|m| m.takes_vectors(channels))
    }

    fn bound(&self, problem: Problem, plan: Plan, extras: Extras<'a>) -> Result<Bound<'a>> {
        Bound::new(problem, plan, self.dtype, self.io, extras, self.io.scratch)
    }

    /// What a launch costs that reads `read` besides its operands and leaves `left` bytes.
    fn cost(bound: &Bound<'_>, read: &[Matrix<'_>], left: usize) -> Cost {
        let more = Cost { bytes_read: read.iter().map(Matrix::bytes).sum(), bytes_written: left as u64, flops: 0 };
        bound.cost() + more
    }

    fn views(bound: &Bound<'_>, read: &[Matrix<'_>], left: Option<&View>) -> Vec<View> {
        bound.views().into_iter().chain(read.iter().map(|m| m.view.clone())).chain(left.cloned()).collect()
    }

    fn fwd(
        &mut self,
        problem: Problem,
        plan: Plan,
        prologue: Option<Prologue>,
        epilogue: crate::ops::conv2d::Epilogue,
    ) -> Result<Vec<Launch>> {
        let (spec, e) = (self.node.conv.spec(), epilogue);
        let ([scale, shift], activate) = self.prologue(prologue)?;
        let vectors = self.vectors(spec.c / spec.groups);
        let prologue = std::mem::take(&mut self.read);
        let extras = Extras {
            scale: self.numbers(e.scale, "scale", spec.k)?,
            shift: self.numbers(e.shift, "shift", spec.k)?,
            residual: match e.residual {
                true => self.pixels("residual", y_dims(&self.node.conv), self.dtype.bytes())?,
                false => None,
            },
            relu: e.relu,
            accumulate: false,
        };
        let mut bound = self.bound(problem, plan, extras)?;
        bound.vectors = vectors;
        let (tiles, bytes) = self.tiles(&bound)?;
        let mut gather = bound.gather_params()?;
        gather.flags |= activate;
        let params = ForwardParams {
            gather,
            in_scale: address(scale),
            in_shift: address(shift),
            mean: tiles.first().map_or(0, View::address),
            m2: tiles.get(1).map_or(0, View::address),
        };
        let (cost, views) = (Self::cost(&bound, &prologue, bytes), Self::views(&bound, &prologue, tiles.first()));
        let kernel = &bound.variant().kernel;
        // SAFETY: the variant's row in `variants` names ForwardParams; every matrix was checked to lie in its view, the
        // moments of the tiles in the scratch memory.
        let mut launches = vec![unsafe { Launch::new(kernel, bound.grid()?, &params, cost, views) }];
        launches.extend(bound.reduce(self.dtype)?);
        launches.extend(self.merge(&bound, &tiles)?);
        Ok(launches)
    }

    fn bwd_w(
        &mut self,
        problem: Problem,
        plan: Plan,
        correction: Option<Correction>,
        prologue: Option<Prologue>,
        accumulate: bool,
    ) -> Result<Vec<Launch>> {
        let spec = self.node.conv.spec();
        let correcting = self.correction(correction)?;
        let k_vectors = self.vectors(spec.k / spec.groups);
        let ([scale, shift], activate) = self.prologue(prologue)?;
        let c_vectors = [scale, shift].iter().flatten().all(|m| m.takes_vectors(spec.c / spec.groups));
        let mut bound = self.bound(problem, plan, Extras { accumulate, ..Extras::default() })?;
        bound.vectors = k_vectors && c_vectors;
        let mut weight = bound.weight_params()?;
        weight.flags |= activate;
        let params = WeightGradientParams {
            weight,
            y: address(correcting.y),
            a: address(correcting.a),
            b: address(correcting.b),
            c: address(correcting.c),
            x_scale: address(scale),
            x_shift: address(shift),
            y_stride: correcting.y.map_or(0, |y| y.stride()),
            unused: 0,
        };
        let (cost, views) = (Self::cost(&bound, &self.read, 0), Self::views(&bound, &self.read, None));
        let kernel = &bound.variant().kernel;
        // SAFETY: the variant's row in `variants` names WeightGradientParams; every matrix was checked to lie in its view.
        let first = unsafe { Launch::new(kernel, bound.grid()?, &params, cost, views) };
        Ok(std::iter::once(first).chain(bound.reduce(DType::F32)?).collect())
    }

    fn bwd_x(
        &mut self,
        problem: Problem,
        plan: Plan,
        correction: Option<Correction>,
        epilogue: Option<Epilogue>,
        accumulate: bool,
    ) -> Result<Vec<Launch>> {
        let spec = self.node.conv.spec();
        let correcting = self.correction(correction)?;
        let vectors = self.vectors(spec.k / spec.groups);
        let masking = self.masking(epilogue)?;
        let whole = [masking.y[0], masking.y[1]];
        let mut bound = self.bound(problem, plan, Extras { accumulate, ..Extras::default() })?;
        bound.vectors = vectors;
        bound.vector_out = whole.iter().flatten().all(|m| m.takes_vectors(spec.c / spec.groups));
        let (tiles, bytes) = self.tiles(&bound)?;
        let mut gather = bound.gather_params()?;
        gather.flags |= masking.flags;
        (gather.scale, gather.shift) = (address(masking.scale), address(masking.shift));
        let stride = |m: Option<Matrix<'_>>| m.map_or(0, |m| m.stride());
        let m_tiles = bound.tiles()[0];
        let params = DataGradientParams {
            gather,
            y: address(correcting.y),
            a: address(correcting.a),
            b: address(correcting.b),
            c: address(correcting.c),
            bits: address(masking.bits),
            y0: address(masking.y[0]),
            y1: address(masking.y[1]),
            mean0: address(masking.mean[0]),
            mean1: address(masking.mean[1]),
            sums: tiles.first().map_or(0, View::address),
            y_stride: stride(correcting.y),
            bits_stride: stride(masking.bits),
            y0_stride: stride(masking.y[0]),
            y1_stride: stride(masking.y[1]),
            m_tiles: int(m_tiles)?,
            bands: int(m_tiles * problem.shape().residues)?,
        };
        let (cost, views) = (Self::cost(&bound, &self.read, bytes), Self::views(&bound, &self.read, tiles.first()));
        let kernel = &bound.variant().kernel;
        // SAFETY: the variant's row in `variants` names DataGradientParams; every matrix was checked to lie in its view,
        // the sums of the tiles in the scratch memory.
        let mut launches = vec![unsafe { Launch::new(kernel, bound.grid()?, &params, cost, views) }];
        launches.extend(bound.reduce(self.dtype)?);
        launches.extend(self.merge(&bound, &tiles)?);
        Ok(launches)
    }

    fn masking(&mut self, epilogue: Option<Epilogue>) -> Result<Masking<'a>> {
        let (dims, elem) = (x_dims(&self.node.conv), self.dtype.bytes());
        let [rows, channels] = dims;
        let mut m = Masking::default();
        match epilogue {
            None => {}
            Some(Epilogue::Affine { relu, scaled }) => {
                m.y[0] = self.pixels("y of the epilogue", dims, elem)?;
                m.scale = self.numbers(true, "scale", channels)?;
                m.shift = self.numbers(true, "shift", channels)?;
                m.mean[0] = self.numbers(true, "mean", channels)?;
                m.flags = flag(MASK, relu) | flag(SCALED, scaled);
            }
            Some(Epilogue::Signs { norms }) => {
                m.bits = self.pixels("signs", [rows, sign_bytes(channels)], 1)?;
                for i in 0..norms {
                    m.y[i] = self.pixels("y of the epilogue", dims, elem)?;
                    m.mean[i] = self.numbers(true, "mean", channels)?;
                }
            }
        }
        Ok(m)
    }

    /// A view of what the tiles leave for each of their numbers, and the bytes of all.
    fn tiles(&self, bound: &Bound<'_>) -> Result<(Vec<View>, usize)> {
        let bytes = 4 * bands(self.node, bound.variant().tile.m) * columns(self.node);
        let (Some(scratch), count) = (self.io.scratch, left(self.node)) else { return Ok((Vec::new(), 0)) };
        let views: Result<Vec<View>> = (0..count).map(|i| scratch.part(i * bytes, bytes)).collect();
        Ok((views?, count * bytes))
    }

    /// The launches that merge what the tiles leave into the outputs behind the first.
    fn merge(&self, bound: &Bound<'_>, tiles: &[View]) -> Result<Vec<Launch>> {
        let (rows, channels) = (bound.variant().tile.m, columns(self.node));
        let bands = Bands { count: bands(self.node, rows), channels };
        let used = tiles.len() * bands.bytes();
        let scratch = match self.io.scratch {
            Some(view) => Some(view.part(used, view.bytes() - used)?),
            None => None,
        };
        let from: Vec<&View> = tiles.iter().collect();
        let to = (1..=tiles.len()).map(|i| output(self.io, self.node.name(), i).map(|arg| &arg.view));
        let to = to.collect::<Result<Vec<&View>>>()?;
        match (self.node.pass, &from[..], &to[..]) {
            (_, [], _) => Ok(Vec::new()),
            (Pass::Fwd { .. }, &[mean, m2], &[to_mean, to_var]) => {
                let rows = BandRows { rows: y_dims(&self.node.conv)[0], each: rows };
                merge::moments(bands, rows, [mean, m2], [to_mean, to_var], scratch.as_ref())
            }
            _ => merge::sums(bands, &from, &to, scratch.as_ref()),
        }
    }
}

/// The operands of the epilogue of bwd_x.
#[derive(Default)]
struct Masking<'a> {
    bits: Option<Matrix<'a>>,
    y: [Option<Matrix<'a>>; 2],
    mean: [Option<Matrix<'a>>; 2],
    scale: Option<Matrix<'a>>,
    shift: Option<Matrix<'a>>,
    flags: i32,
}
