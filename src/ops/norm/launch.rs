//! The launches: kernels, grids and parameters.

use super::gradient::{Bound, Operands, FORMS};
use super::merge::{self, BandRows, Bands};
use super::{Gradient, Measure, Node, Pass, Scale};
use crate::device::table::{entry, kernels, only, Entry};
use crate::device::{Launch, Target, View};
use crate::ops::batch_norm;
use crate::ops::params::params;
use crate::ops::store::{Mask, Moments};
use crate::ops::strips::{Rows, Strips, THREADS};
use crate::ops::{Arg, Call, Io, Operator};
use crate::tensor::{is_addressable, DType};
use crate::{Error, Result};

params! {
    /// `Affine` of kernels/norm/channels.cu.
    struct Affine {
        gamma: u64, beta: u64, mean: u64, var: u64, scale: u64, shift: u64, running_mean: u64, running_var: u64,
        channels: u32, eps: f32, momentum: f32, keep: f32, unbiased: f32, unused: u32,
    }

    /// `Coefficients` of kernels/norm/channels.cu.
    struct Coefficients {
        dy_sum: u64, dyx_sum: u64, gamma: u64, mean: u64, var: u64, dgamma: u64, dbeta: u64, a: u64, b: u64, c: u64,
        dbias: u64,
        channels: u32, eps: f32, count: f32, inverse_count: f32, add_b: u32, add_c: u32,
    }

    /// `OfStored` of kernels/norm/gradient.cu.
    struct OfStored { dz: u64, stride: i64, epilogue: Operands, strips: Strips }
}

/// Bytes of shared memory for `sums` sums per channel, for 16-bit types, which need the most.
pub(in crate::ops) const fn sums_shared(sums: u32) -> u32 {
    THREADS * 8 * sums * 4
}

kernels! {
    AFFINE: Affine = "norm_affine_*", 0;
    COEFFICIENTS: Coefficients = "norm_coefficients_*", 0;
    GRADIENT_AFFINE: OfStored = "norm_gradient_*_affine", sums_shared(2);
    GRADIENT_SIGNS: OfStored = "norm_gradient_*_signs", sums_shared(2);
    GRADIENT_SIGNS_TWO: OfStored = "norm_gradient_*_signs_two", sums_shared(3);
}

static GRADIENT: [&[Entry]; FORMS] = [&GRADIENT_AFFINE, &GRADIENT_SIGNS, &GRADIENT_SIGNS_TWO];

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let valid = !node.x.contains(&0) && is_addressable(&node.x);
    Error::check(valid, node.name(), || format!("images of shape {:?}", node.x))?;
    if let Pass::Gradient(Gradient { mask, sums, .. }) = node.pass {
        Mask::check_sums(node.name(), Some(mask), Some(sums))?;
    }
    io.check(node, target)?;
    match node.pass {
        Pass::Measure => {
            let Measure { y, moments } = io.bind(Measure::default());
            measure(node.x, target, y, moments.map(|_, to| &to.view), io.scratch)
        }
        Pass::Scale { eps, momentum } => Ok(vec![scale(node, [eps, momentum], io)]),
        Pass::Gradient(form) => launch_gradient(node, form, target, io),
        Pass::Coefficients { form, eps } => Ok(vec![coefficients(node, form, eps, io)]),
    }
}

/// The launches that compute the moments of `y`, images of `shape`.
pub(in crate::ops) fn measure(
    shape: [usize; 4],
    target: Target,
    y: &Arg,
    Moments { mean, var }: Moments<&View>,
    scratch: Option<&View>,
) -> Result<Vec<Launch>> {
    let strips = Strips::bands(Rows::pixels(shape), target.dtype, &[y], &[])?;
    let bands = Bands::of(shape, target.dtype);
    let views = bands.views(2, scratch)?;
    let from = [&views[0], &views[1]];
    let rows = BandRows { rows: shape[..3].iter().product(), each: strips.rows_per_band() as usize };
    let mut launches = vec![batch_norm::band_moments(shape, target, y, strips, from)?];
    launches.extend(merge::moments(bands, rows, from, [mean, var], bands.after(2, scratch)?.as_ref())?);
    Ok(launches)
}

fn launch_gradient(node: &Node, form: Gradient, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let Gradient { dz, mask, g, sums } = io.bind(form);
    let bound = Bound { mask, shape: node.x, g, sums };
    let sums = bound.bands(target.dtype, &[dz], &[], io.scratch)?;
    let (stride, epilogue, strips) = (dz.pixel_stride as i64, bound.params(&sums), sums.strips);
    let params = OfStored { dz: dz.address(), stride, epilogue, strips };
    let cost = bound.cost(target.dtype, &node.inputs(), node.flops(), &sums);
    let kernel = entry(target, GRADIENT[bound.form()])?;
    // SAFETY: `strips` covers dz, g, y and the bits; the views hold these, the mask's other operands (`Io::check`) and
    // the bands' sums; operands that the form does not read are null.
    let first = unsafe { Launch::new(kernel, strips.grid()?, &params, cost, bound.views(io.inputs, &sums)) };
    let mut launches = vec![first];
    launches.extend(bound.merge(&sums)?);
    Ok(launches)
}

/// One thread per channel.
fn channel_grid(node: &Node) -> [u32; 3] {
    [node.x[3].div_ceil(THREADS as usize) as u32, 1, 1]
}

fn scale(node: &Node, [eps, momentum]: [f64; 2], io: &Io<'_>) -> Launch {
    let call = io.bind(Scale::default()).map(|_, arg| arg.address(), |_, arg| arg.address());
    let m = node.count() as f64;
    let params = Affine {
        gamma: call.gamma,
        beta: call.beta,
        mean: call.moments.mean,
        var: call.moments.var,
        scale: call.scale,
        shift: call.shift,
        running_mean: call.running_mean,
        running_var: call.running_var,
        channels: node.x[3] as u32,
        eps: eps as f32,
        momentum: momentum as f32,
        keep: (1.0 - momentum) as f32,
        unbiased: (m / (m - 1.0)) as f32,
        unused: 0,
    };
    // The running statistics are read too.
    let mut cost = node.cost(DType::F32);
    cost.bytes_read += 2 * 4 * node.x[3] as u64;
    // SAFETY: every view holds one number per channel (`Io::check`).
    unsafe { Launch::new(only(&AFFINE), channel_grid(node), &params, cost, io.views()) }
}

fn coefficients(node: &Node, form: super::Coefficients, eps: f64, io: &Io<'_>) -> Launch {
    let call = io.bind(form);
    let (add_b, add_c) = (call.b.adds(), call.c.adds());
    let call = call.map(|_, arg| arg.address(), |_, arg| arg.address());
    let params = Coefficients {
        dy_sum: call.dy_sum,
        dyx_sum: call.dyx_sum,
        gamma: call.gamma,
        mean: call.moments.mean,
        var: call.moments.var,
        dgamma: call.dgamma,
        dbeta: call.dbeta,
        a: call.a.unwrap_or(0),
        b: call.b,
        c: call.c,
        dbias: call.dbias.unwrap_or(0),
        channels: node.x[3] as u32,
        eps: eps as f32,
        count: node.count() as f32,
        inverse_count: 1.0 / node.count() as f32,
        add_b: add_b.into(),
        add_c: add_c.into(),
    };
    let mut cost = node.cost(DType::F32);
    cost.bytes_read += (u64::from(add_b) + u64::from(add_c)) * 4 * node.x[3] as u64;
    // SAFETY: every view holds one number per channel (`Io::check`); `a` and `dbias` may be null.
    unsafe { Launch::new(only(&COEFFICIENTS), channel_grid(node), &params, cost, io.views()) }
}
