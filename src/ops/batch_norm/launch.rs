//! The launches: kernels, grids and parameters.

use super::{Infer, Node, Pass, Train};
use crate::device::table::{entry, kernels, only};
use crate::device::{Cost, Launch, Target, View};
use crate::ops::norm::merge::Bands;
use crate::ops::params::params;
use crate::ops::strips::{Rows, Strips, THREADS};
use crate::ops::{Arg, Call, Io, Operator};
use crate::tensor::{DType, TensorType};
use crate::Result;

/// The most rows per thread: enough to make loading scales and shifts cheap.
const WALK: usize = 16;
/// Channels per block of the kernels that merge bands.
const MERGE_CHANNELS: u32 = 32;
/// Bytes of shared memory of the reductions over rows, for 16-bit types, which need the most.
const STATS_SHARED: u32 = THREADS * (2 * 8 + 1) * 4;
const SUMS_SHARED: u32 = THREADS * 2 * 8 * 4;

params! {
    /// `Stats` of kernels/batch_norm/train.cu.
    struct Stats { x: u64, mean: u64, m2: u64, x_stride: i64, strips: Strips }

    /// `Finalize` of kernels/batch_norm/train.cu.
    struct Finalize {
        band_mean: u64, band_m2: u64, mean: u64, invstd: u64, running_mean: u64, running_var: u64,
        rows: i64,
        rows_per_band: u32, bands: u32, channels: u32, eps: f32, momentum: f32, keep: f32,
    }

    /// `Apply` of kernels/batch_norm/apply.cu.
    struct Apply {
        x: u64, y: u64, gamma: u64, beta: u64, mean: u64, spread: u64,
        x_stride: i64, y_stride: i64,
        strips: Strips, relu: u32, infer: u32, eps: f32, unused: u32,
    }

    /// `Fold` of kernels/batch_norm/apply.cu.
    struct Fold {
        gamma: u64, beta: u64, mean: u64, var: u64, bias: u64, scale: u64, shift: u64,
        channels: u32, eps: f32, survival: f32, unused: u32,
    }

    /// `BandSums` of kernels/batch_norm/bwd.cu.
    struct BandSums {
        dy: u64, x: u64, y: u64, mean: u64, dy_sum: u64, dyx_sum: u64,
        dy_stride: i64, x_stride: i64, y_stride: i64,
        strips: Strips,
    }

    /// `BwdFinalize` of kernels/batch_norm/bwd.cu.
    struct BwdFinalize {
        dy_sum: u64, dyx_sum: u64, invstd: u64, dgamma: u64, dbeta: u64,
        bands: u32, channels: u32,
    }

    /// `Bwd` of kernels/batch_norm/bwd.cu.
    struct Bwd {
        dy: u64, x: u64, y: u64, dx: u64, gamma: u64, mean: u64, invstd: u64, dgamma: u64, dbeta: u64,
        dy_stride: i64, x_stride: i64, y_stride: i64, dx_stride: i64,
        strips: Strips, inverse_count: f32, accumulate: u32,
    }
}

kernels! {
    STATS: Stats = "batch_norm_stats_*", STATS_SHARED;
    FINALIZE: Finalize = "batch_norm_finalize_*", THREADS * 3 * 4;
    APPLY: Apply = "batch_norm_apply_*", 0;
    FOLD: Fold = "batch_norm_fold_*", 0;
    SUMS: BandSums = "batch_norm_bwd_sums_*", SUMS_SHARED;
    BWD_FINALIZE: BwdFinalize = "batch_norm_bwd_finalize_*", THREADS * 2 * 4;
    BWD: Bwd = "batch_norm_bwd_*", 0;
}

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    match node.pass {
        Pass::Train { relu } => {
            let Train { x, gamma, beta, y, mean, invstd, .. } = io.bind(Train::default());
            let [stats, finalize] = node.launch_statistics(target, io)?;
            let parts = Parts { x, y, gamma, beta, mean, spread: invstd };
            Ok(vec![stats, finalize, node.launch_apply(target, &parts, relu, false)?])
        }
        Pass::Infer { relu } => {
            let Infer { x, gamma, beta, running_mean, running_var, y } = io.bind(Infer::default());
            let parts = Parts { x, y, gamma, beta, mean: running_mean, spread: running_var };
            Ok(vec![node.launch_apply(target, &parts, relu, true)?])
        }
        Pass::Fold { form, share } => node.launch_fold(form, share, io),
        Pass::Bwd(form) => node.launch_bwd(target, form, io),
    }
}

/// The launch that leaves the mean of every band of `strips` and the sum of squares about it in `to`, each
/// `[bands][channels]`, for images x of `shape` (`Io::check`).
pub(in crate::ops) fn band_moments(
    shape: [usize; 4],
    target: Target,
    x: &Arg,
    strips: Strips,
    to: [&View; 2],
) -> Result<Launch> {
    let bytes = Bands::of(shape, target.dtype).bytes();
    assert!(to.iter().all(|v| v.bytes() >= bytes), "a number for every band and channel");
    let [mean, m2] = to.map(View::address);
    let params = Stats { x: x.address(), mean, m2, x_stride: x.pixel_stride as i64, strips };
    let ty = TensorType::real(shape);
    let cost = Cost {
        flops: 3 * ty.shape.len() as u64,
        bytes_read: ty.bytes(target.dtype) as u64,
        bytes_written: 2 * bytes as u64,
    };
    let views = [&x.view, to[0], to[1]].map(View::clone).to_vec();
    // SAFETY: `strips` covers x, which its view holds, and `to` has two numbers for each band and channel.
    Ok(unsafe { Launch::new(entry(target, &STATS)?, strips.grid()?, &params, cost, views) })
}

/// The operands of an `Apply`.
struct Parts<'a> {
    x: &'a Arg,
    y: &'a Arg,
    gamma: &'a Arg,
    beta: &'a Arg,
    mean: &'a Arg,
    spread: &'a Arg,
}

/// The bands of a reduction over rows, and the places of two numbers per band and channel.
struct Reduction {
    strips: Strips,
    numbers: Vec<View>,
}

impl Reduction {
    /// Bytes of all numbers.
    fn bytes(&self) -> u64 {
        self.numbers.iter().map(|view| view.bytes() as u64).sum()
    }
}

impl Node {
    /// The reduction over the rows of `tensors`, which are bound as the node describes.
    fn reduction(&self, target: Target, tensors: &[&Arg], io: &Io<'_>) -> Result<Reduction> {
        let strips = Strips::bands(Rows::pixels(self.bn.spec.x), target.dtype, tensors, &[])?;
        Ok(Reduction { strips, numbers: Bands::of(self.bn.spec.x, target.dtype).views(2, io.scratch)? })
    }

    fn launch_statistics(&self, target: Target, io: &Io<'_>) -> Result<[Launch; 2]> {
        let Train { x, mean, invstd, running_mean, running_var, .. } = io.bind(Train::default());
        let bands = self.reduction(target, &[x], io)?;
        let (strips, from) = (bands.strips, [&bands.numbers[0], &bands.numbers[1]]);
        let stats = band_moments(self.bn.spec.x, target, x, strips, from)?;
        let [band_mean, band_m2] = from.map(View::address);
        let channels = self.bn.spec.x[3];
        let params = Finalize {
            band_mean,
            band_m2,
            mean: mean.address(),
            invstd: invstd.address(),
            running_mean: running_mean.address(),
            running_var: running_var.address(),
            rows: self.bn.count() as i64,
            rows_per_band: strips.rows_per_band(),
            bands: strips.band_count() as u32,
            channels: channels as u32,
            eps: self.bn.spec.eps as f32,
            momentum: self.bn.spec.momentum as f32,
            keep: (1.0 - self.bn.spec.momentum) as f32,
        };
        let cost = Cost {
            flops: 5 * bands.bytes() / 4,
            bytes_read: bands.bytes() + 8 * channels as u64,
            bytes_written: 16 * channels as u64,
        };
        let outputs = [mean, invstd, running_mean, running_var].map(|arg| arg.view.clone());
        let views = bands.numbers.into_iter().chain(outputs).collect();
        let grid = [(channels as u32).div_ceil(MERGE_CHANNELS), 1, 1];
        // SAFETY: one number per channel in each view, two per band and channel in the scratch memory (`Io::check`).
        let finalize = unsafe { Launch::new(only(&FINALIZE), grid, &params, cost, views) };
        Ok([stats, finalize])
    }

    fn launch_apply(&self, target: Target, parts: &Parts<'_>, relu: bool, infer: bool) -> Result<Launch> {
        let Parts { x, y, gamma, beta, mean, spread } = *parts;
        let rows = Rows::pixels(self.bn.spec.x);
        let strips = Strips::new(rows, target.dtype, WALK, rows.wide(target.dtype, &[x, y], &[]))?;
        let (x_stride, y_stride) = (rows.stride(x), rows.stride(y));
        let views = [x, y, gamma, beta, mean, spread].map(|a| a.view.clone()).to_vec();
        let [x, y, gamma, beta, mean, spread] = [x, y, gamma, beta, mean, spread].map(Arg::address);
        let (relu, infer, eps) = (relu.into(), infer.into(), self.bn.spec.eps as f32);
        let params = Apply { x, y, gamma, beta, mean, spread, x_stride, y_stride, strips, relu, infer, eps, unused: 0 };
        let bytes = self.bn.x().bytes(target.dtype) as u64;
        let cost = Cost {
            flops: 3 * self.bn.x().shape.len() as u64,
            bytes_read: bytes + 16 * self.bn.spec.x[3] as u64,
            bytes_written: bytes,
        };
        // SAFETY: `strips` covers x and y, and the views hold these and one number per channel (`Io::check`).
        Ok(unsafe { Launch::new(entry(target, &APPLY)?, strips.grid()?, &params, cost, views) })
    }

    fn launch_fold(&self, form: super::Fold, share: f64, io: &Io<'_>) -> Result<Vec<Launch>> {
        let call = io.bind(form).map(|_, arg| arg.address(), |_, arg| arg.address());
        let super::Fold { gamma, beta, running_mean: mean, running_var: var, bias, scale, shift } = call;
        let (bias, channels) = (bias.unwrap_or(0), self.bn.spec.x[3] as u32);
        let (eps, survival) = (self.bn.spec.eps as f32, share as f32);
        let params = Fold { gamma, beta, mean, var, bias, scale, shift, channels, eps, survival, unused: 0 };
        let grid = [channels.div_ceil(THREADS), 1, 1];
        // SAFETY: every view holds one number per channel (`Io::check`); the bias may be null.
        Ok(vec![unsafe { Launch::new(only(&FOLD), grid, &params, self.cost(DType::F32), io.views()) }])
    }

    fn launch_bwd(&self, target: Target, form: super::Bwd, io: &Io<'_>) -> Result<Vec<Launch>> {
        let super::Bwd { invstd, dgamma, dbeta, .. } = io.bind(form);
        let (sums, bands) = self.launch_sums(target, form, io)?;
        let [dy_sum, dyx_sum] = [0, 1].map(|i| bands.numbers[i].address());
        let views = bands.numbers.iter().chain([invstd, dgamma, dbeta].map(|arg| &arg.view)).cloned().collect();
        let [invstd, dgamma, dbeta] = [invstd, dgamma, dbeta].map(Arg::address);
        let (count, channels) = (bands.strips.band_count() as u32, self.bn.spec.x[3] as u32);
        let params = BwdFinalize { dy_sum, dyx_sum, invstd, dgamma, dbeta, bands: count, channels };
        let cost = Cost {
            flops: bands.bytes() / 4,
            bytes_read: bands.bytes() + 4 * u64::from(channels),
            bytes_written: 8 * u64::from(channels),
        };
        let grid = [channels.div_ceil(MERGE_CHANNELS), 1, 1];
        // SAFETY: one number per channel in each view, two per band and channel in the scratch memory (`Io::check`).
        let finalize = unsafe { Launch::new(only(&BWD_FINALIZE), grid, &params, cost, views) };
        Ok(vec![sums, finalize, self.launch_bwd_x(target, form, io)?])
    }

    fn launch_sums(&self, target: Target, form: super::Bwd, io: &Io<'_>) -> Result<(Launch, Reduction)> {
        let super::Bwd { dy, x, mean, y, .. } = io.bind(form);
        let (rows, tensors) = (Rows::pixels(self.bn.spec.x), Vec::from_iter([dy, x].into_iter().chain(y)));
        let bands = self.reduction(target, &tensors, io)?;
        let read = tensors.iter().chain([&mean]).map(|arg| &arg.view);
        let views = read.chain(&bands.numbers).cloned().collect();
        let [dy_stride, x_stride] = [dy, x].map(|arg| rows.stride(arg));
        let (y_stride, y) = (y.map_or(0, |y| rows.stride(y)), y.map_or(0, Arg::address));
        let [dy_sum, dyx_sum] = [0, 1].map(|i| bands.numbers[i].address());
        let ([dy, x, mean], strips) = ([dy, x, mean].map(Arg::address), bands.strips);
        let params = BandSums { dy, x, y, mean, dy_sum, dyx_sum, dy_stride, x_stride, y_stride, strips };
        let cost = Cost {
            flops: 3 * self.bn.x().shape.len() as u64,
            bytes_read: (tensors.len() * self.bn.x().bytes(target.dtype) + 4 * self.bn.spec.x[3]) as u64,
            bytes_written: bands.bytes(),
        };
        // SAFETY: `strips` covers dy, x and y, and the views hold these, the mean and the bands' sums (`Io::check`); y
        // may be null.
        let launch = unsafe { Launch::new(entry(target, &SUMS)?, strips.grid()?, &params, cost, views) };
        Ok((launch, bands))
    }

    fn launch_bwd_x(&self, target: Target, form: super::Bwd, io: &Io<'_>) -> Result<Launch> {
        let super::Bwd { dy, x, gamma, mean, invstd, y, dx, dgamma, dbeta } = io.bind(form);
        let (rows, tensors) = (Rows::pixels(self.bn.spec.x), Vec::from_iter([dy, x, dx].into_iter().chain(y)));
        let strips = Strips::new(rows, target.dtype, WALK, rows.wide(target.dtype, &tensors, &[]))?;
        let params = Bwd {
            dy: dy.address(),
            x: x.address(),
            y: y.map_or(0, Arg::address),
            dx: dx.address(),
            gamma: gamma.address(),
            mean: mean.address(),
            invstd: invstd.address(),
            dgamma: dgamma.address(),
            dbeta: dbeta.address(),
            dy_stride: rows.stride(dy),
            x_stride: rows.stride(x),
            y_stride: y.map_or(0, |a| rows.stride(a)),
            dx_stride: rows.stride(dx),
            strips,
            inverse_count: 1.0 / self.bn.count() as f32,
            accumulate: dx.adds().into(),
        };
        let bytes = self.bn.x().bytes(target.dtype) as u64;
        let cost = Cost {
            flops: 5 * self.bn.x().shape.len() as u64,
            bytes_read: bytes * (tensors.len() as u64 - u64::from(!dx.adds())) + 20 * self.bn.spec.x[3] as u64,
            bytes_written: bytes,
        };
        // SAFETY: `strips` covers dy, x, y and dx, and the views hold these and one number per channel (`Io::check`); y
        // may be null.
        Ok(unsafe { Launch::new(entry(target, &BWD)?, strips.grid()?, &params, cost, io.views()) })
    }
}
