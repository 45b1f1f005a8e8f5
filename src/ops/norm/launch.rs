//! Which kernels, on what grid.

use super::gradient::{self, Bound, Operands, FORMS};
use super::merge::{self, BandRows, Bands};
use super::{Epilogue, Node, Pass};
use crate::device::{Kernel, Launch, Target, View};
use crate::ops::batch_norm;
use crate::ops::strips::{entries, for_dtype, Strips, THREADS};
use crate::ops::{Arg, Io, Operator, Write};
use crate::tensor::DType;
use crate::{Error, Result};

/// `Affine` of kernels/norm/channels.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Affine {
    gamma: u64,
    beta: u64,
    mean: u64,
    var: u64,
    scale: u64,
    shift: u64,
    running_mean: u64,
    running_var: u64,
    channels: u32,
    eps: f32,
    momentum: f32,
    keep: f32,
    unbiased: f32,
    unused: u32,
}

/// `Coefficients` of kernels/norm/channels.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Coefficients {
    dy_sum: u64,
    dyx_sum: u64,
    gamma: u64,
    mean: u64,
    var: u64,
    dgamma: u64,
    dbeta: u64,
    a: u64,
    b: u64,
    c: u64,
    dbias: u64,
    channels: u32,
    eps: f32,
    count: f32,
    inverse_count: f32,
    add_b: u32,
    add_c: u32,
}

/// `OfStored` of kernels/norm/gradient.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Gradient {
    dz: u64,
    stride: i64,
    epilogue: Operands,
    strips: Strips,
}

static AFFINE: Kernel = Kernel::new::<Affine>("norm_affine_f32", THREADS, 0);
static COEFFICIENTS: Kernel = Kernel::new::<Coefficients>("norm_coefficients_f32", THREADS, 0);

/// Shared memory for so many sums of a row of strips of the 16-bit types.
pub(in crate::ops) const fn sums_shared(sums: u32) -> u32 {
    THREADS * 8 * sums * 4
}

static GRADIENT: [[Kernel; 3]; FORMS] = [
    entries::<Gradient>(
        ["norm_gradient_f32_affine", "norm_gradient_f16_affine", "norm_gradient_bf16_affine"],
        sums_shared(2),
    ),
    entries::<Gradient>(
        ["norm_gradient_f32_signs", "norm_gradient_f16_signs", "norm_gradient_bf16_signs"],
        sums_shared(2),
    ),
    entries::<Gradient>(
        ["norm_gradient_f32_signs_two", "norm_gradient_f16_signs_two", "norm_gradient_bf16_signs_two"],
        sums_shared(3),
    ),
];

pub(crate) const KERNELS: &[&Kernel] = &[
    &AFFINE,
    &COEFFICIENTS,
    &GRADIENT[0][0],
    &GRADIENT[0][1],
    &GRADIENT[0][2],
    &GRADIENT[1][0],
    &GRADIENT[1][1],
    &GRADIENT[1][2],
    &GRADIENT[2][0],
    &GRADIENT[2][1],
    &GRADIENT[2][2],
];

pub(super) fn scratch_bytes(node: &Node, target: Target) -> usize {
    match node.pass {
        Pass::Moments => {
            let bands = batch_norm::band_strips(&node.bn, target.dtype, &[]).map_or(0, |s| s.band_count());
            let bands = Bands { count: bands, channels: node.bn.spec().x[3] };
            2 * bands.bytes() + bands.merge_bytes(2)
        }
        Pass::Gradient(epilogue) => gradient::scratch_bytes(epilogue, node.bn.spec().x, target.dtype),
        Pass::Affine | Pass::Coefficients { .. } => 0,
    }
}

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    match node.pass {
        Pass::Moments => moments(node, target, io),
        Pass::Affine => Ok(vec![affine(node, io)]),
        Pass::Gradient(epilogue) => launch_gradient(node, epilogue, target, io),
        Pass::Coefficients { lazy, bias } => Ok(vec![coefficients(node, lazy, bias, io)]),
    }
}

/// `tensors` tensors of partial results in the scratch memory, and what is left of it for merging them.
pub(in crate::ops) fn band_views(bands: Bands, tensors: usize, scratch: Option<&View>) -> Result<(Vec<View>, View)> {
    let Some(scratch) = scratch else { return Err(Error::invalid("norm", "no scratch memory")) };
    let views = (0..tensors).map(|i| scratch.part(i * bands.bytes(), bands.bytes())).collect::<Result<_>>()?;
    Ok((views, scratch.part(tensors * bands.bytes(), bands.merge_bytes(tensors))?))
}

fn moments(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let y = &io.inputs[0];
    let strips: Strips = batch_norm::band_strips(&node.bn, target.dtype, &[y])?;
    let bands = Bands { count: strips.band_count(), channels: node.bn.spec().x[3] };
    let (views, scratch) = band_views(bands, 2, io.scratch)?;
    let from = [&views[0], &views[1]];
    let rows = BandRows { rows: node.bn.count(), each: strips.rows_per_band() as usize };
    let mut launches = vec![batch_norm::band_moments(&node.bn, target.dtype, y, strips, from)?];
    launches.extend(merge::moments(bands, rows, from, [&io.outputs[0].view, &io.outputs[1].view], Some(&scratch))?);
    Ok(launches)
}

fn launch_gradient(node: &Node, epilogue: Epilogue, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let dz = &io.inputs[0];
    let bound = Bound { epilogue, shape: node.bn.spec().x, operands: &io.inputs[1..], outputs: io.outputs };
    let sums = bound.bands(target.dtype, &[dz], &[], io.scratch)?;
    let params = Gradient {
        dz: dz.view.address(),
        stride: dz.pixel_stride as i64,
        epilogue: bound.params(&sums),
        strips: sums.strips,
    };
    let cost = bound.cost(target.dtype, &node.inputs(), node.flops(), &sums);
    let kernel = for_dtype(target.dtype, &GRADIENT[bound.form()])?;
    // SAFETY: `strips` covers dz, g, y and the bits, which with the channels' numbers are as large as the descriptor says
    // (`Io::check`), and every band has a place for its sums; what the form does not read is null.
    let first = unsafe { Launch::new(kernel, sums.strips.grid()?, &params, cost, bound.views(io.inputs, &sums)) };
    let mut launches = vec![first];
    launches.extend(bound.merge(&sums)?);
    Ok(launches)
}

/// A thread for each channel.
fn channel_grid(node: &Node) -> [u32; 3] {
    [node.bn.spec().x[3].div_ceil(THREADS as usize) as u32, 1, 1]
}

fn affine(node: &Node, io: &Io<'_>) -> Launch {
    let [gamma, beta, mean, var] = addresses(io.inputs);
    let [scale, shift, running_mean, running_var] = addresses(io.outputs);
    let (spec, m) = (node.bn.spec(), node.bn.count() as f64);
    let params = Affine {
        gamma,
        beta,
        mean,
        var,
        scale,
        shift,
        running_mean,
        running_var,
        channels: spec.x[3] as u32,
        eps: spec.eps as f32,
        momentum: spec.momentum as f32,
        keep: (1.0 - spec.momentum) as f32,
        unbiased: (m / (m - 1.0)) as f32,
        unused: 0,
    };
    // The running statistics are read too.
    let mut cost = node.cost(DType::F32);
    cost.bytes_read += 2 * node.bn.per_channel().bytes(DType::F32) as u64;
    // SAFETY: every view holds a number for each channel (`Io::check`).
    unsafe { Launch::new(&AFFINE, channel_grid(node), &params, cost, views(io)) }
}

fn coefficients(node: &Node, lazy: bool, bias: bool, io: &Io<'_>) -> Launch {
    let [dy_sum, dyx_sum, gamma, mean, var] = addresses(io.inputs);
    let [dgamma, dbeta] = addresses(io.outputs);
    let [b, c] = addresses(&io.outputs[if lazy { 2 } else { 3 }..]);
    let adds = |i: usize| lazy && io.outputs[i].write == Write::Accumulate;
    let spec = node.bn.spec();
    let params = Coefficients {
        dy_sum,
        dyx_sum,
        gamma,
        mean,
        var,
        dgamma,
        dbeta,
        a: if lazy { 0 } else { io.outputs[2].view.address() },
        b,
        c,
        dbias: if bias { io.outputs[io.outputs.len() - 1].view.address() } else { 0 },
        channels: spec.x[3] as u32,
        eps: spec.eps as f32,
        count: node.bn.count() as f32,
        inverse_count: 1.0 / node.bn.count() as f32,
        add_b: adds(2).into(),
        add_c: adds(3).into(),
    };
    let mut cost = node.cost(DType::F32);
    cost.bytes_read += (usize::from(adds(2)) + usize::from(adds(3))) as u64 * 4 * spec.x[3] as u64;
    // SAFETY: every view holds a number for each channel (`Io::check`); `a` and `dbias` may be null.
    unsafe { Launch::new(&COEFFICIENTS, channel_grid(node), &params, cost, views(io)) }
}

/// The addresses of the first `N` of `args`.
fn addresses<const N: usize>(args: &[Arg]) -> [u64; N] {
    std::array::from_fn(|i| args[i].view.address())
}

fn views(io: &Io<'_>) -> Vec<View> {
    io.inputs.iter().chain(io.outputs).map(|a| a.view.clone()).collect()
}
