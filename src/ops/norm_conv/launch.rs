//! Which kernels, on what grid.
//!
//! A pass is conv2d's product with more operands. What its tiles leave of their columns is merged after it. Where the
//! reduction is split no tile has whole sums: then moments are taken from y afterwards, and bwd_x is not split.

mod both;
mod end;
mod params;
mod variants;

use self::params::{
    DataGradientParams, EndParams, ForwardParams, GradientsParams, WeightGradientParams, ACTIVATE, MASK, SCALED,
};
use self::variants::{BWD_W, BWD_X, END, FWD};
use super::{Node, Pass};
use crate::device::{Cost, Kernel, Launch, Target, View};
use crate::ops::batch_norm::{self, BatchNorm};
use crate::ops::conv2d::launch::bind::{int, Matrix};
use crate::ops::conv2d::launch::choose::{self, x_dims, y_dims, Plan, Problem, Product};
use crate::ops::conv2d::launch::product::{address, flag, input, output, Bound, Extras};
use crate::ops::norm::merge::{self, BandRows, Bands};
use crate::ops::norm::{self, sign_bytes, Correction, Epilogue, Prologue};
use crate::ops::{Arg, Io, Operator, Write};
use crate::tensor::DType;
use crate::{Error, Result};

/// Every entry point.
pub(crate) static KERNELS: &[&Kernel] = &variants::ALL;

/// The product that `node` is, or the one of its two that may be split.
fn problem(node: &Node) -> Problem {
    let (product, table, split_launches, raw): (_, &[_], _, _) = match node.pass {
        Pass::Fwd { prologue, moments, .. } => {
            (Product::Fwd, &FWD, Some(if moments { 3 } else { 1 }), prologue.is_none())
        }
        Pass::FwdEnd { .. } => (Product::Fwd, &END, Some(3), false),
        Pass::BwdX { epilogue, .. } => (Product::BwdX, &BWD_X, epilogue.is_none().then_some(1), true),
        Pass::BwdW { prologue, .. } => (Product::BwdW, &BWD_W, Some(1), prologue.is_none()),
        Pass::Bwd { .. } => return both::problems(node).w,
    };
    Problem { conv: node.conv, product, table, split_launches, raw }
}

/// Every way to compute `node`, for tests and benchmarks.
pub(super) fn plans(node: &Node, target: Target) -> Vec<Plan> {
    choose::plans(&problem(node), target.dtype)
}

fn choose(node: &Node, target: Target) -> Option<Plan> {
    match node.pass {
        Pass::Bwd { .. } => both::choose(node, target.dtype),
        _ => choose::choose(&problem(node), target.dtype),
    }
}

/// Numbers that a tile leaves of a column.
fn left(node: &Node, plan: Plan) -> usize {
    match node.pass {
        Pass::Fwd { moments, .. } if plan.splits() == 1 => 2 * usize::from(moments),
        Pass::FwdEnd { .. } if plan.splits() == 1 => 2,
        Pass::BwdX { epilogue: Some(e), .. } | Pass::Bwd { epilogue: Some(e), .. } => match e {
            Epilogue::Affine { .. } => 2,
            Epilogue::Signs { norms, .. } => 1 + norms,
        },
        _ => 0,
    }
}

/// What takes the moments from y, where they are wanted and the tiles of `plan` do not leave them.
fn measuring(node: &Node, plan: Plan) -> Result<Option<norm::Node>> {
    if plan.splits() == 1 || !matches!(node.pass, Pass::Fwd { moments: true, .. } | Pass::FwdEnd { .. }) {
        return Ok(None);
    }
    let (spec, [p, q]) = (node.conv.spec(), node.conv.output());
    // Moments need neither eps nor momentum.
    let bn = BatchNorm::new(batch_norm::Spec { x: [spec.n, p, q, spec.k], eps: 1.0, momentum: 0.0 })?;
    Ok(Some(norm::Node { bn, pass: norm::Pass::Moments }))
}

/// Columns of the result.
fn columns(node: &Node) -> usize {
    match node.pass {
        Pass::BwdX { .. } | Pass::Bwd { .. } => node.conv.spec().c,
        _ => node.conv.spec().k,
    }
}

/// Row tiles of all residues where they have `rows` rows: what is merged.
fn bands(node: &Node, rows: usize) -> usize {
    let shape = match node.pass {
        Pass::Bwd { .. } => both::problems(node).x.shape(),
        _ => problem(node).shape(),
    };
    shape.m.div_ceil(rows) * shape.residues
}

/// Rows of the tiles whose columns are merged, of either of the plan's kernels.
fn rows(node: &Node, plan: Plan) -> [usize; 2] {
    match node.pass {
        Pass::Bwd { .. } => both::data_plan(plan).rows(),
        _ => plan.rows(),
    }
}

/// Bytes of scratch memory where `node` runs as `plan` says, or as it chooses.
pub(super) fn scratch_bytes(node: &Node, target: Target, plan: Option<Plan>) -> usize {
    let Some(plan) = plan.or_else(|| choose(node, target)) else { return 0 };
    // Which of the plan's kernels runs depends on the addresses: enough for either.
    let tiles = rows(node, plan).map(|rows| {
        let (bands, numbers) = (Bands { count: bands(node, rows), channels: columns(node) }, left(node, plan));
        numbers * bands.bytes() + bands.merge_bytes(numbers)
    });
    let after = measuring(node, plan).ok().flatten().map_or(0, |m| m.scratch_bytes(target));
    // One after the other: partial sums, then what measures y.
    plan.partial_bytes(&problem(node)).max(after) + tiles.into_iter().max().unwrap_or(0)
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
    let partial = plan.partial_bytes(&problem);
    let tiles = match io.scratch {
        Some(view) => Some(view.part(partial, view.bytes() - partial)?),
        None => None,
    };
    let next = if matches!(node.pass, Pass::Bwd { .. }) { 3 } else { 2 };
    let mut call = Call { node, dtype: target.dtype, target, io, tiles, next, read: Vec::new() };
    match node.pass {
        Pass::Fwd { prologue, epilogue, .. } => call.fwd(problem, plan, prologue, epilogue),
        Pass::FwdEnd { affine } => call.fwd_end(problem, plan, affine),
        Pass::BwdX { correction, epilogue } => call.bwd_x(problem, plan, correction, epilogue),
        Pass::BwdW { correction, prologue } => call.bwd_w(problem, plan, correction, prologue),
        Pass::Bwd { correction, prologue, epilogue } => call.bwd(plan, correction, prologue, epilogue),
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

/// Scale and shift of a prologue, and its flag.
type Activating<'a> = ([Option<Matrix<'a>>; 2], i32);

impl<'a> Correcting<'a> {
    fn matrices(&self) -> Vec<Matrix<'a>> {
        [self.y, self.a, self.b, self.c].into_iter().flatten().collect()
    }
}

/// One pass, as its inputs are taken one by one.
struct Call<'a> {
    node: &'a Node,
    target: Target,
    dtype: DType,
    io: &'a Io<'a>,
    /// The scratch memory behind partial sums.
    tiles: Option<View>,
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

    fn prologue(&mut self, prologue: Option<Prologue>) -> Result<Activating<'a>> {
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

    /// The product of inputs `i` into output `o`, which may be added to.
    fn bound(&self, problem: Problem, plan: Plan, i: [usize; 2], o: usize, extras: Extras<'a>) -> Result<Bound<'a>> {
        let (io, name) = (self.io, self.node.name());
        let operands = [input(io, name, i[0])?, input(io, name, i[1])?, output(io, name, o)?];
        let accumulate = operands[2].write == Write::Accumulate;
        Bound::new(problem, plan, self.dtype, operands, Extras { accumulate, ..extras }, io.scratch)
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
        let mut bound = self.bound(problem, plan, [0, 1], 0, extras)?;
        bound.beside.x = prologue.clone();
        let (tiles, bytes) = self.tiles(&bound, plan)?;
        let params = forward(&bound, &([scale, shift], activate), &tiles)?;
        let (cost, views) = (Self::cost(&bound, &prologue, bytes), Self::views(&bound, &prologue, tiles.first()));
        let kernel = &bound.formed().variant.kernel;
        // SAFETY: the variant's row in `variants` names ForwardParams; every matrix was checked to lie in its view, the
        // moments of the tiles in the scratch memory.
        let first = unsafe { Launch::new(kernel, bound.grid()?, &params, cost, views) };
        self.measured(first, &bound, plan, &tiles)
    }

    /// `first` of a forward pass, and what adds up its splits and leaves the moments of y.
    fn measured(&self, first: Launch, bound: &Bound<'_>, plan: Plan, tiles: &[View]) -> Result<Vec<Launch>> {
        let mut launches = vec![first];
        launches.extend(bound.reduce(self.dtype)?);
        launches.extend(self.merge(bound, tiles, 1)?);
        if let Some(moments) = measuring(self.node, plan)? {
            let io = Io { inputs: &self.io.outputs[..1], outputs: &self.io.outputs[1..3], scratch: self.io.scratch };
            launches.extend(moments.launches(self.target, &io)?);
        }
        Ok(launches)
    }

    fn bwd_w(
        &mut self,
        problem: Problem,
        plan: Plan,
        correction: Option<Correction>,
        prologue: Option<Prologue>,
    ) -> Result<Vec<Launch>> {
        let correcting = self.correction(correction)?;
        let activating = self.prologue(prologue)?;
        let mut bound = self.bound(problem, plan, [0, 1], 0, Extras::default())?;
        load_both(&mut bound, &correcting, &activating);
        let params = weight_gradient(&bound, &correcting, &activating)?;
        let (cost, views) = (Self::cost(&bound, &self.read, 0), Self::views(&bound, &self.read, None));
        let kernel = &bound.formed().variant.kernel;
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
    ) -> Result<Vec<Launch>> {
        let correcting = self.correction(correction)?;
        let masking = self.masking(epilogue)?;
        let mut bound = self.bound(problem, plan, [0, 1], 0, Extras::default())?;
        load_gradient(&mut bound, &correcting, &masking);
        bound.whole_out = epilogue.is_some();
        let (tiles, bytes) = self.tiles(&bound, plan)?;
        let params = data_gradient(&bound, &correcting, &masking, &tiles)?;
        let (cost, views) = (Self::cost(&bound, &self.read, bytes), Self::views(&bound, &self.read, tiles.first()));
        let kernel = &bound.formed().variant.kernel;
        // SAFETY: the variant's row in `variants` names DataGradientParams; every matrix was checked to lie in its view,
        // the sums of the tiles in the scratch memory.
        let mut launches = vec![unsafe { Launch::new(kernel, bound.grid()?, &params, cost, views) }];
        launches.extend(bound.reduce(self.dtype)?);
        launches.extend(self.merge(&bound, &tiles, 1)?);
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
            Some(Epilogue::Signs { norms, gated }) => {
                m.bits = self.pixels("signs", [rows, sign_bytes(channels)], 1)?;
                for i in 0..norms {
                    m.y[i] = self.pixels("y of the epilogue", dims, elem)?;
                    m.mean[i] = self.numbers(true, "mean", channels)?;
                }
                m.open = self.numbers(gated, "gate", 1)?;
            }
        }
        Ok(m)
    }

    /// A view of what the tiles leave for each of their numbers, and the bytes of all.
    fn tiles(&self, bound: &Bound<'_>, plan: Plan) -> Result<(Vec<View>, usize)> {
        let bytes = 4 * bands(self.node, bound.formed().variant.tile.m) * columns(self.node);
        let (Some(scratch), count) = (&self.tiles, left(self.node, plan)) else { return Ok((Vec::new(), 0)) };
        let views: Result<Vec<View>> = (0..count).map(|i| scratch.part(i * bytes, bytes)).collect();
        Ok((views?, count * bytes))
    }

    /// The launches that merge what the tiles leave into the outputs from `first` on.
    fn merge(&self, bound: &Bound<'_>, tiles: &[View], first: usize) -> Result<Vec<Launch>> {
        let (rows, channels) = (bound.formed().variant.tile.m, columns(self.node));
        let bands = Bands { count: bands(self.node, rows), channels };
        let used = tiles.len() * bands.bytes();
        let scratch = match &self.tiles {
            Some(view) => Some(view.part(used, view.bytes() - used)?),
            None => None,
        };
        let from: Vec<&View> = tiles.iter().collect();
        let to = (first..first + tiles.len()).map(|i| output(self.io, self.node.name(), i).map(|arg| &arg.view));
        let to = to.collect::<Result<Vec<&View>>>()?;
        match (self.node.pass, &from[..], &to[..]) {
            (_, [], _) => Ok(Vec::new()),
            (Pass::Fwd { .. } | Pass::FwdEnd { .. }, &[mean, m2], &[to_mean, to_var]) => {
                let rows = BandRows { rows: y_dims(&self.node.conv)[0], each: rows };
                merge::moments(bands, rows, [mean, m2], [to_mean, to_var], scratch.as_ref())
            }
            _ => merge::sums(bands, &from, &to, scratch.as_ref()),
        }
    }
}

fn forward(bound: &Bound<'_>, &([scale, shift], activate): &Activating<'_>, tiles: &[View]) -> Result<ForwardParams> {
    let mut gather = bound.gather_params()?;
    gather.flags |= activate;
    Ok(ForwardParams {
        gather,
        in_scale: address(scale),
        in_shift: address(shift),
        mean: tiles.first().map_or(0, View::address),
        m2: tiles.get(1).map_or(0, View::address),
    })
}

/// The operands of the epilogue of bwd_x.
#[derive(Default)]
struct Masking<'a> {
    bits: Option<Matrix<'a>>,
    y: [Option<Matrix<'a>>; 2],
    mean: [Option<Matrix<'a>>; 2],
    scale: Option<Matrix<'a>>,
    shift: Option<Matrix<'a>>,
    open: Option<Matrix<'a>>,
    flags: i32,
}

/// Tells `bound`, which is bwd_x, what else it touches.
fn load_gradient<'a>(bound: &mut Bound<'a>, correcting: &Correcting<'a>, masking: &Masking<'a>) {
    bound.beside.y = correcting.matrices();
    bound.beside.out.extend(masking.y.into_iter().flatten());
}

/// The same for bwd_w.
fn load_both<'a>(bound: &mut Bound<'a>, correcting: &Correcting<'a>, activating: &Activating<'a>) {
    bound.beside.x.extend(activating.0.into_iter().flatten());
    bound.beside.y = correcting.matrices();
}

fn data_gradient(
    bound: &Bound<'_>,
    correcting: &Correcting<'_>,
    masking: &Masking<'_>,
    tiles: &[View],
) -> Result<DataGradientParams> {
    let mut gather = bound.gather_params()?;
    gather.flags |= masking.flags;
    (gather.scale, gather.shift) = (address(masking.scale), address(masking.shift));
    let stride = |m: Option<Matrix<'_>>| m.map_or(0, |m| m.stride());
    let formed = bound.formed();
    let m_tiles = formed.tiles()[0];
    Ok(DataGradientParams {
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
        open: address(masking.open),
        y_stride: stride(correcting.y),
        bits_stride: stride(masking.bits),
        y0_stride: stride(masking.y[0]),
        y1_stride: stride(masking.y[1]),
        m_tiles: int(m_tiles)?,
        bands: int(m_tiles * formed.shape.residues)?,
    })
}

fn weight_gradient(
    bound: &Bound<'_>,
    correcting: &Correcting<'_>,
    &([scale, shift], activate): &Activating<'_>,
) -> Result<WeightGradientParams> {
    let mut weight = bound.weight_params()?;
    weight.flags |= activate;
    Ok(WeightGradientParams {
        weight,
        y: address(correcting.y),
        a: address(correcting.a),
        b: address(correcting.b),
        c: address(correcting.c),
        x_scale: address(scale),
        x_shift: address(shift),
        y_stride: correcting.y.map_or(0, |y| y.stride()),
        unused: 0,
    })
}

/// The launch of the end of a block and its convolution, whose operands `Call::fwd_end` has bound.
fn launch_end(kernel: &'static Kernel, grid: [u32; 3], params: &EndParams, cost: Cost, views: Vec<View>) -> Launch {
    // SAFETY: the variant's row in `variants` names EndParams; every matrix was checked to lie in its view and to take the
    // accesses of the kernel, the moments of the tiles in the scratch memory.
    unsafe { Launch::new(kernel, grid, params, cost, views) }
}

/// The launch of both gradients, whose operands `Call::bwd` has bound.
fn launch_both(
    kernel: &'static Kernel,
    grid: [u32; 3],
    params: &GradientsParams,
    cost: Cost,
    views: Vec<View>,
) -> Launch {
    // SAFETY: the variant's row in `variants` names GradientsParams; every matrix was checked to lie in its view, the
    // sums of the tiles in the scratch memory behind the partial sums.
    unsafe { Launch::new(kernel, grid, params, cost, views) }
}
