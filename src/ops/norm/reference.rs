//! The pieces in plain loops. Sums over a channel run in f64, whatever `T` is.

use super::{sign_bytes, Epilogue, Node, Pass};
use crate::ops::batch_norm::mean_of;
use crate::ops::{HostIo, HostMut, HostOp, HostRef, Write};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        match self.pass {
            Pass::Moments => self.moments(io),
            Pass::Affine => self.affine(io),
            Pass::Gradient(epilogue) => {
                let (dz, operands) = (io.inputs[0].real(), &io.inputs[1..]);
                gradient(epilogue, self.bn.spec().x[3], dz, operands, &mut io.outputs, io.writes[0]);
            }
            Pass::Coefficients { lazy, bias } => self.coefficients(lazy, bias, io),
        }
    }

    fn host(&self, io: &mut HostIo<'_, T>) {
        self.reference(io);
    }
}

impl Node {
    fn moments<T: Real>(&self, io: &mut HostIo<'_, T>) {
        let y = io.inputs[0].real();
        let [mean, var] = io.reals();
        let (c, m) = (self.bn.spec().x[3], self.bn.count() as f64);
        for k in 0..c {
            let channel = || y.iter().skip(k).step_by(c).map(|v| v.to_f64());
            let mu = mean_of(channel, m);
            mean[k] = T::from_f64(mu);
            var[k] = T::from_f64(channel().map(|v| (v - mu) * (v - mu)).sum::<f64>() / m);
        }
    }

    fn affine<T: Real>(&self, io: &mut HostIo<'_, T>) {
        let [gamma, beta, mean, var] = [0, 1, 2, 3].map(|i| io.inputs[i].real());
        let [scale, shift, running_mean, running_var] = io.reals();
        let (m, momentum) = (self.bn.count() as f64, self.bn.spec().momentum);
        let eps = T::from_f64(self.bn.spec().eps);
        let moved = |old: T, new: f64| T::from_f64((1.0 - momentum) * old.to_f64() + momentum * new);
        for k in 0..scale.len() {
            scale[k] = gamma[k] / (var[k] + eps).sqrt();
            shift[k] = beta[k] - mean[k] * scale[k];
            running_mean[k] = moved(running_mean[k], mean[k].to_f64());
            running_var[k] = moved(running_var[k], var[k].to_f64() * (m / (m - 1.0)));
        }
    }

    fn coefficients<T: Real>(&self, lazy: bool, bias: bool, io: &mut HostIo<'_, T>) {
        let [dy_sum, dyx_sum, gamma, mean, var] = [0, 1, 2, 3, 4].map(|i| io.inputs[i].real());
        let (m, eps) = (T::from_usize(self.bn.count()), T::from_f64(self.bn.spec().eps));
        let first = if lazy { 2 } else { 3 };
        let old = |i: usize, v: T| if io.writes[i] == Write::Accumulate { v } else { T::ZERO };
        for k in 0..gamma.len() {
            let invstd = T::ONE / (var[k] + eps).sqrt();
            let dgamma = invstd * dyx_sum[k];
            let a = gamma[k] * invstd;
            let b = -a * invstd * dgamma / m;
            let c = -a * dy_sum[k] / m - b * mean[k];
            io.outputs[0].real()[k] = dgamma;
            io.outputs[1].real()[k] = dy_sum[k];
            if !lazy {
                io.outputs[2].real()[k] = a;
            }
            for (i, v) in [(first, b), (first + 1, c)] {
                let to = &mut io.outputs[i].real()[k];
                *to = old(i, *to) + v;
            }
            if bias {
                io.outputs[first + 2].real()[k] = a * dy_sum[k] + m * (b * mean[k] + c);
            }
        }
    }
}

/// What an [`Epilogue`] does to dz, which has `c` channels: `outputs` are g and the sums. Unlike other references it
/// adds to what is there, where `write` says so: that is part of what it computes.
pub(in crate::ops) fn gradient<T: Real>(
    epilogue: Epilogue,
    c: usize,
    dz: &[T],
    operands: &[HostRef<'_, T>],
    outputs: &mut [HostMut<'_, T>],
    write: Write,
) {
    let real = |i: usize| operands[i].real();
    let (norms, scaled) = match epilogue {
        Epilogue::Affine { scaled, .. } => (vec![(real(0), real(3))], scaled),
        Epilogue::Signs { norms, .. } => ((0..norms).map(|n| (real(1 + 2 * n), real(2 + 2 * n))).collect(), false),
    };
    let closed = epilogue.is_gated() && real(operands.len() - 1)[0] == T::ZERO;
    let open = |i: usize| match epilogue {
        Epilogue::Affine { relu, .. } => !relu || (real(0)[i] * real(1)[i % c] + real(2)[i % c]).is_open(),
        Epilogue::Signs { .. } => {
            let byte = operands[0].byte()[i / c * sign_bytes(c) + i % c / 8];
            byte >> (i % c % 8) & 1 == 1
        }
    };
    let mut sums = vec![vec![0.0; c]; 1 + norms.len()];
    let g = outputs[0].real();
    for (i, g) in g.iter_mut().enumerate() {
        let k = i % c;
        let old = if write == Write::Accumulate { *g } else { T::ZERO };
        let v = if scaled { dz[i] } else { dz[i] + old };
        let v = if open(i) { v } else { T::ZERO };
        sums[0][k] += v.to_f64();
        for (n, (y, mean)) in norms.iter().enumerate().skip(usize::from(closed)) {
            sums[1 + n][k] += v.to_f64() * (y[i].to_f64() - mean[k].to_f64());
        }
        *g = if scaled { old + real(1)[k] * v } else { v };
    }
    for (output, sums) in outputs[1..].iter_mut().zip(sums) {
        output.real().iter_mut().zip(sums).for_each(|(to, sum)| *to = T::from_f64(sum));
    }
}
