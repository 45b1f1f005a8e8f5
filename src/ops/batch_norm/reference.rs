//! The op in plain loops. Sums over a channel run in f64, whatever `T` is.

use super::{host, Bwd, Fold, Infer, Node, Pass, Train};
use crate::ops::load::rectified;
use crate::ops::{HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        match self.pass {
            Pass::Train { relu } => self.train(relu, io.numbers(Train::default())),
            Pass::Infer { relu } => self.infer(relu, io.numbers(Infer::default())),
            Pass::Fold { form, share } => fold(self.bn.spec.eps, share, io.numbers(form)),
            Pass::Bwd(form) => self.bwd(io.numbers(form)),
        }
    }

    fn host(&self, io: &mut HostIo<'_, T>) {
        match self.pass {
            Pass::Fold { form, share } => fold(self.bn.spec.eps, share, io.numbers(form)),
            _ => host::run(self, io),
        }
    }

    fn host_scratch(&self) -> usize {
        host::scratch(self)
    }
}

impl Node {
    fn train<T: Real>(&self, relu: bool, call: Train<&[T], &mut [T]>) {
        let Train { x, gamma, beta, y, mean, invstd, running_mean, running_var } = call;
        let (c, m) = (self.bn.spec().x[3], self.bn.count() as f64);
        let (eps, momentum) = (self.bn.spec().eps, self.bn.spec().momentum);
        for k in 0..c {
            let channel = || x.iter().skip(k).step_by(c).map(|v| v.to_f64());
            let mu = mean_of(channel, m);
            let squares: f64 = channel().map(|v| (v - mu) * (v - mu)).sum();
            let (biased, unbiased) = (squares / m, squares / (m - 1.0));
            mean[k] = T::from_f64(mu);
            invstd[k] = T::from_f64(1.0 / (biased + eps).sqrt());
            let moved = |old: T, new: f64| T::from_f64((1.0 - momentum) * old.to_f64() + momentum * new);
            running_mean[k] = moved(running_mean[k], mu);
            running_var[k] = moved(running_var[k], unbiased);
        }
        for (i, y) in y.iter_mut().enumerate() {
            let k = i % c;
            *y = rectified(relu, gamma[k] * ((x[i] - mean[k]) * invstd[k]) + beta[k]);
        }
    }

    fn infer<T: Real>(&self, relu: bool, call: Infer<&[T], &mut [T]>) {
        let Infer { x, gamma, beta, running_mean, running_var, y } = call;
        let eps = T::from_f64(self.bn.spec().eps);
        let c = self.bn.spec().x[3];
        for (i, y) in y.iter_mut().enumerate() {
            let k = i % c;
            let xhat = (x[i] - running_mean[k]) / (running_var[k] + eps).sqrt();
            *y = rectified(relu, gamma[k] * xhat + beta[k]);
        }
    }

    fn bwd<T: Real>(&self, call: Bwd<&[T], &mut [T]>) {
        let Bwd { dy, x, gamma, mean, invstd, y, dx, dgamma, dbeta } = call;
        let (c, m) = (self.bn.spec().x[3], T::from_usize(self.bn.count()));
        let counted = |i: usize| if y.is_none_or(|y| y[i].is_open()) { dy[i] } else { T::ZERO };
        let xhat = |i: usize| (x[i] - mean[i % c]) * invstd[i % c];
        for k in 0..c {
            let channel = || (k..x.len()).step_by(c);
            dbeta[k] = T::from_f64(channel().map(|i| counted(i).to_f64()).sum());
            dgamma[k] = T::from_f64(channel().map(|i| counted(i).to_f64() * xhat(i).to_f64()).sum());
        }
        for (i, dx) in dx.iter_mut().enumerate() {
            let k = i % c;
            *dx = gamma[k] * invstd[k] * (counted(i) - dbeta[k] / m - xhat(i) * dgamma[k] / m);
        }
    }
}

fn fold<T: Real>(eps: f64, share: f64, call: Fold<&[T], &mut [T]>) {
    let Fold { gamma, beta, running_mean, running_var, bias, scale, shift } = call;
    for k in 0..scale.len() {
        // In f64, to round the shift once.
        let [gamma, beta, mean, var] = [gamma, beta, running_mean, running_var].map(|v| v[k].to_f64());
        scale[k] = T::from_f64(share * gamma / (var + eps).sqrt());
        shift[k] = T::from_f64(share * beta + (bias.map_or(0.0, |b| b[k].to_f64()) - mean) * scale[k].to_f64());
    }
}

/// The mean of `m` elements, corrected by the mean of their differences from it: exact if all are equal. Infinite if
/// one of them is.
pub(in crate::ops) fn mean_of<I: Iterator<Item = f64>>(channel: impl Fn() -> I, m: f64) -> f64 {
    let mean = compensated(channel()) / m;
    let corrected = mean + compensated(channel().map(|v| v - mean)) / m;
    if corrected.is_finite() {
        corrected
    } else {
        channel().sum::<f64>() / m
    }
}

/// The sum, plus the rounding errors of its additions (Neumaier, 1974): a mean near 0 keeps its digits.
fn compensated(terms: impl Iterator<Item = f64>) -> f64 {
    let (sum, lost) = terms.fold((0.0, 0.0), |(sum, lost), v: f64| {
        let next: f64 = sum + v;
        let (large, small) = if f64::abs(sum) >= v.abs() { (sum, v) } else { (v, sum) };
        (next, lost + ((large - next) + small))
    });
    sum + lost
}
