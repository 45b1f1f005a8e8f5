//! The pieces in plain loops. Sums over a channel run in f64, whatever `T` is.

use super::{Coefficients, Gradient, Measure, Node, Pass, Scale};
use crate::ops::batch_norm::mean_of;
use crate::ops::store::{sign_bytes, Mask, Moments, Sums};
use crate::ops::{HostIo, HostOp, HostOut, HostRef};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        match self.pass {
            Pass::Measure => {
                let Measure { y, moments: to } = io.numbers(Measure::default());
                moments(y, to);
            }
            Pass::Scale { eps, momentum } => self.scale([eps, momentum], io),
            Pass::Gradient(form) => {
                let Gradient { dz, mask, g, sums } = io.bind(form);
                gradient(mask, self.x[3], dz.real(), g, sums);
            }
            Pass::Coefficients { form, eps } => self.coefficients(form, eps, io),
        }
    }

    fn host(&self, io: &mut HostIo<'_, T>) {
        self.reference(io);
    }
}

/// Mean and biased variance of each channel of y.
pub(in crate::ops) fn moments<T: Real>(y: &[T], Moments { mean, var }: Moments<&mut [T]>) {
    let (c, m) = (mean.len(), (y.len() / mean.len()) as f64);
    for k in 0..c {
        let channel = || y.iter().skip(k).step_by(c).map(|v| v.to_f64());
        let mu = mean_of(channel, m);
        mean[k] = T::from_f64(mu);
        var[k] = T::from_f64(channel().map(|v| (v - mu) * (v - mu)).sum::<f64>() / m);
    }
}

impl Node {
    fn scale<T: Real>(&self, [eps, momentum]: [f64; 2], io: &mut HostIo<'_, T>) {
        let Scale { gamma, beta, moments: Moments { mean, var }, scale, shift, running_mean, running_var } =
            io.numbers(Scale::default());
        let (m, eps) = (self.count() as f64, T::from_f64(eps));
        let moved = |old: T, new: f64| T::from_f64((1.0 - momentum) * old.to_f64() + momentum * new);
        for k in 0..scale.len() {
            scale[k] = gamma[k] / (var[k] + eps).sqrt();
            shift[k] = beta[k] - mean[k] * scale[k];
            running_mean[k] = moved(running_mean[k], mean[k].to_f64());
            running_var[k] = moved(running_var[k], var[k].to_f64() * (m / (m - 1.0)));
        }
    }

    fn coefficients<T: Real>(&self, form: Coefficients, eps: f64, io: &mut HostIo<'_, T>) {
        let mut call = io.bind(form);
        let [dy_sum, dyx_sum, gamma] = [call.dy_sum, call.dyx_sum, call.gamma].map(|v| v.real());
        let Moments { mean, var } = call.moments.map(|_, v| v.real());
        let (m, eps) = (T::from_usize(self.count()), T::from_f64(eps));
        let add = |out: &mut HostOut<'_, '_, T>, k: usize, v: T| {
            let old = if out.adds() { out.real()[k] } else { T::ZERO };
            out.real()[k] = old + v;
        };
        for k in 0..gamma.len() {
            let invstd = T::ONE / (var[k] + eps).sqrt();
            let dgamma = invstd * dyx_sum[k];
            let a = gamma[k] * invstd;
            let b = -a * invstd * dgamma / m;
            let c = -a * dy_sum[k] / m - b * mean[k];
            call.dgamma.real()[k] = dgamma;
            call.dbeta.real()[k] = dy_sum[k];
            if let Some(out) = &mut call.a {
                out.real()[k] = a;
            }
            add(&mut call.b, k, b);
            add(&mut call.c, k, c);
            if let Some(dbias) = &mut call.dbias {
                dbias.real()[k] = a * dy_sum[k] + m * (b * mean[k] + c);
            }
        }
    }
}

/// Applies a [`Mask`] to dz, which has `c` channels. Unlike other references it accumulates g if `g.write` says so: the
/// sums include the old g.
pub(in crate::ops) fn gradient<T: Real>(
    mask: Mask<HostRef<'_, T>>,
    c: usize,
    dz: &[T],
    mut g: HostOut<'_, '_, T>,
    sums: Sums<HostOut<'_, '_, T>>,
) {
    let norms: Vec<_> = mask.normalised().into_iter().map(|n| (n.y.real(), n.mean.real())).collect();
    let closed = mask.gate().is_some_and(|gate| gate.real()[0] == T::ZERO);
    let open = |i: usize| match &mask {
        Mask::Affine { y, scale, shift, relu, .. } => {
            !relu || (y.real()[i] * scale.real()[i % c] + shift.real()[i % c]).is_open()
        }
        Mask::Signs { bits, .. } => bits.byte()[i / c * sign_bytes(c) + i % c / 8] >> (i % c % 8) & 1 == 1,
    };
    let scale = match &mask {
        Mask::Affine { scale, scaled: true, .. } => Some(scale.real()),
        _ => None,
    };
    let mut found = vec![vec![0.0; c]; 1 + norms.len()];
    let adds = g.adds();
    for (i, g) in g.real().iter_mut().enumerate() {
        let k = i % c;
        let old = if adds { *g } else { T::ZERO };
        let v = if scale.is_some() { dz[i] } else { dz[i] + old };
        let v = if open(i) { v } else { T::ZERO };
        found[0][k] += v.to_f64();
        for (n, (y, mean)) in norms.iter().enumerate().skip(usize::from(closed)) {
            found[1 + n][k] += v.to_f64() * (y[i].to_f64() - mean[k].to_f64());
        }
        *g = scale.map_or(v, |scale| old + scale[k] * v);
    }
    for (mut to, found) in sums.list().into_iter().zip(found) {
        to.real().iter_mut().zip(found).for_each(|(to, sum)| *to = T::from_f64(sum));
    }
}
