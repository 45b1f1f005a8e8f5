//! The op in plain loops.

use rayon::prelude::*;

use super::{host, Conv2d, Epilogue, Node, Pass, Spec};
use crate::device::threads;
use crate::ops::{HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        threads::ensure();
        let conv = &self.conv;
        match self.pass {
            Pass::Fwd(epilogue) => fwd(conv, epilogue, io),
            Pass::BwdX => bwd_x(conv, io),
            Pass::BwdW => bwd_w(conv, io),
            Pass::BwdBias => {
                let dy = io.inputs[0].real();
                let [dbias] = io.reals();
                dbias.fill(T::ZERO);
                for (i, &dy) in dy.iter().enumerate() {
                    dbias[i % conv.spec.k] += dy;
                }
            }
        }
    }

    fn host(&self, io: &mut HostIo<'_, T>) {
        host::run(self, io);
    }

    fn host_scratch(&self) -> usize {
        host::scratch(self)
    }
}

/// The input row that tap `r` of output row `p` reads (`axis` 0), or the column (`axis` 1); `None` in the padding.
fn read_by(spec: &Spec, axis: usize, p: usize, r: usize) -> Option<usize> {
    let size = [spec.h, spec.w][axis];
    (p * spec.stride[axis] + r * spec.dilation[axis]).checked_sub(spec.padding[axis]).filter(|&h| h < size)
}

fn fwd<T: Real>(conv: &Conv2d, epilogue: Epilogue, io: &mut HostIo<'_, T>) {
    let spec = conv.spec;
    let ([p, q], [_, r, s, cg]) = (conv.output(), conv.w_shape());
    let kg = spec.k / spec.groups;
    let mut inputs = io.inputs.iter().map(|i| i.real());
    let mut next = |given: bool| if given { inputs.next().unwrap_or_default() } else { &[] };
    let (x, w) = (next(true), next(true));
    let (scale, shift, residual) = (next(epilogue.scale), next(epilogue.shift), next(epilogue.residual));
    let [y] = io.reals();
    y.par_iter_mut().enumerate().for_each(|(at, y)| {
        let (n, i, j, k) = (at / (p * q * spec.k), at / (q * spec.k) % p, at / spec.k % q, at % spec.k);
        let mut sum = T::ZERO;
        for r_ in 0..r {
            for s_ in 0..s {
                let (Some(h), Some(v)) = (read_by(&spec, 0, i, r_), read_by(&spec, 1, j, s_)) else { continue };
                let x_at = ((n * spec.h + h) * spec.w + v) * spec.c + k / kg * cg;
                let w_at = ((k * r + r_) * s + s_) * cg;
                for c in 0..cg {
                    sum += x[x_at + c] * w[w_at + c];
                }
            }
        }
        if epilogue.scale {
            sum *= scale[k];
        }
        if epilogue.shift {
            sum += shift[k];
        }
        if epilogue.residual {
            sum += residual[at];
        }
        *y = if epilogue.relu { sum.maximum(T::ZERO) } else { sum };
    });
}

fn bwd_x<T: Real>(conv: &Conv2d, io: &mut HostIo<'_, T>) {
    let spec = conv.spec;
    let ([p, q], [_, r, s, cg]) = (conv.output(), conv.w_shape());
    let kg = spec.k / spec.groups;
    let (dy, w) = (io.inputs[0].real(), io.inputs[1].real());
    let [dx] = io.reals();
    dx.par_chunks_exact_mut(spec.h * spec.w * spec.c).enumerate().for_each(|(n, dx)| {
        dx.fill(T::ZERO);
        for (i, j) in (0..p).flat_map(|i| (0..q).map(move |j| (i, j))) {
            for (r_, s_) in (0..r).flat_map(|r| (0..s).map(move |s| (r, s))) {
                let (Some(h), Some(v)) = (read_by(&spec, 0, i, r_), read_by(&spec, 1, j, s_)) else { continue };
                for k in 0..spec.k {
                    let dy = dy[((n * p + i) * q + j) * spec.k + k];
                    let x_at = (h * spec.w + v) * spec.c + k / kg * cg;
                    let w_at = ((k * r + r_) * s + s_) * cg;
                    for c in 0..cg {
                        dx[x_at + c] += dy * w[w_at + c];
                    }
                }
            }
        }
    });
}

fn bwd_w<T: Real>(conv: &Conv2d, io: &mut HostIo<'_, T>) {
    let spec = conv.spec;
    let ([p, q], [_, r, s, cg]) = (conv.output(), conv.w_shape());
    let kg = spec.k / spec.groups;
    let (dy, x) = (io.inputs[0].real(), io.inputs[1].real());
    let [dw] = io.reals();
    dw.par_chunks_exact_mut(cg).enumerate().for_each(|(at, dw)| {
        let (k, r_, s_) = (at / (r * s), at / s % r, at % s);
        dw.fill(T::ZERO);
        for (n, i, j) in (0..spec.n).flat_map(|n| (0..p).flat_map(move |i| (0..q).map(move |j| (n, i, j)))) {
            let (Some(h), Some(v)) = (read_by(&spec, 0, i, r_), read_by(&spec, 1, j, s_)) else { continue };
            let dy = dy[((n * p + i) * q + j) * spec.k + k];
            let x_at = ((n * spec.h + h) * spec.w + v) * spec.c + k / kg * cg;
            for c in 0..cg {
                dw[c] += dy * x[x_at + c];
            }
        }
    });
}
