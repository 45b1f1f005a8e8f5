//! The op in plain loops.

use rayon::prelude::*;

use super::{host, Bwd, BwdBias, BwdW, BwdX, Conv2d, End, Fwd, Node, Pass, Spec};
use crate::device::threads;
use crate::ops::load::rectified;
use crate::ops::store::{write_signs, Epilogue, Mask, Moments, Sums};
use crate::ops::{norm, HostIo, HostOp, HostOut, HostRef};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        threads::ensure();
        let (conv, Spec { c, k, .. }) = (&self.conv, self.conv.spec);
        match self.pass {
            Pass::Fwd(form) => self.fwd(io.bind(form)),
            Pass::BwdX(form) => {
                let BwdX { dy, w, mask, dx, sums } = io.bind(form);
                let gradient = bwd_x(conv, &dy.loaded(k), w.real());
                store(conv, mask, gradient, dx, sums);
            }
            Pass::BwdW(form) => {
                let BwdW { dy, x, dw } = io.bind(form);
                add(bwd_w(conv, &dy.loaded(k), &x.loaded(c)), dw);
            }
            Pass::Bwd(form) => {
                let Bwd { dy, w, x, mask, dx, dw, sums } = io.bind(form);
                let (dy, x) = (dy.loaded(k), x.loaded(c));
                add(bwd_w(conv, &dy, &x), dw);
                store(conv, mask, bwd_x(conv, &dy, w.real()), dx, sums);
            }
            Pass::BwdBias(_) => {
                let BwdBias { dy, dbias } = io.bind(BwdBias::default());
                let mut sums = vec![T::ZERO; k];
                for (i, &dy) in dy.real().iter().enumerate() {
                    sums[i % k] += dy;
                }
                add(sums, dbias);
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

/// Writes or accumulates `v`. Unlike other references this one accumulates: a mask acts on the accumulated gradient.
fn add<T: Real>(v: Vec<T>, mut out: HostOut<'_, '_, T>) {
    let adds = out.adds();
    out.real().iter_mut().zip(v).for_each(|(out, v)| *out = if adds { *out + v } else { v });
}

/// Stores dx, through a mask if there is one.
fn store<T: Real>(
    conv: &Conv2d,
    mask: Option<Mask<HostRef<'_, T>>>,
    gradient: Vec<T>,
    dx: HostOut<'_, '_, T>,
    sums: Option<Sums<HostOut<'_, '_, T>>>,
) {
    match (mask, sums) {
        (Some(mask), Some(sums)) => norm::reference_gradient(mask, conv.spec.c, &gradient, dx, sums),
        _ => add(gradient, dx),
    }
}

impl Node {
    fn fwd<T: Real>(&self, call: Fwd<HostRef<'_, T>, HostOut<'_, '_, T>>) {
        let Fwd { x, w, epilogue, mut y, moments, end } = call;
        let x = x.loaded(self.conv.spec.c);
        if let Some(End { mut z, mut signs }) = end {
            z.real().copy_from_slice(&x);
            write_signs(&x, self.conv.spec.c, signs.byte());
        }
        fwd(&self.conv, epilogue.map(|_, v| v.real()), &x, w.real(), y.real());
        if let Some(Moments { mut mean, mut var }) = moments {
            norm::reference_moments(y.real(), Moments { mean: mean.real(), var: var.real() });
        }
    }
}

/// The pixel of an image, `h W + w`, that tap `[r, s]` of output `[p, q]` reads; `None` in the padding.
fn pixel(spec: &Spec, output: [usize; 2], tap: [usize; 2]) -> Option<usize> {
    let read = |axis: usize, size: usize| {
        let padded = output[axis] * spec.stride[axis] + tap[axis] * spec.dilation[axis];
        padded.checked_sub(spec.padding[axis]).filter(|&at| at < size)
    };
    Some(read(0, spec.h)? * spec.w + read(1, spec.w)?)
}

/// Every pair of a row and a column.
fn grid([rows, columns]: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
    (0..rows).flat_map(move |row| (0..columns).map(move |column| [row, column]))
}

fn fwd<T: Real>(conv: &Conv2d, epilogue: Epilogue<&[T]>, x: &[T], w: &[T], y: &mut [T]) {
    let spec = conv.spec;
    let ([p, q], [_, r, s, cg]) = (conv.output(), conv.w_shape());
    let kg = spec.k / spec.groups;
    y.par_iter_mut().enumerate().for_each(|(at, y)| {
        let (n, i, j, k) = (at / (p * q * spec.k), at / (q * spec.k) % p, at / spec.k % q, at % spec.k);
        let mut sum = T::ZERO;
        for (tap, place) in grid([r, s]).enumerate() {
            let Some(pixel) = pixel(&spec, [i, j], place) else { continue };
            let x_at = (n * spec.h * spec.w + pixel) * spec.c + k / kg * cg;
            let w_at = (k * r * s + tap) * cg;
            for c in 0..cg {
                sum += x[x_at + c] * w[w_at + c];
            }
        }
        if let Some(scale) = epilogue.scale {
            sum *= scale[k];
        }
        if let Some(shift) = epilogue.shift {
            sum += shift[k];
        }
        if let Some(residual) = epilogue.residual {
            sum += residual[at];
        }
        *y = rectified(epilogue.relu, sum);
    });
}

fn bwd_x<T: Real>(conv: &Conv2d, dy: &[T], w: &[T]) -> Vec<T> {
    let spec = conv.spec;
    let ([p, q], [_, r, s, cg]) = (conv.output(), conv.w_shape());
    let kg = spec.k / spec.groups;
    let mut dx = vec![T::ZERO; conv.x().shape.len()];
    dx.par_chunks_exact_mut(spec.h * spec.w * spec.c).enumerate().for_each(|(n, dx)| {
        for (at, output) in grid([p, q]).enumerate() {
            for (tap, place) in grid([r, s]).enumerate() {
                let Some(pixel) = pixel(&spec, output, place) else { continue };
                for k in 0..spec.k {
                    let dy = dy[(n * p * q + at) * spec.k + k];
                    let x_at = pixel * spec.c + k / kg * cg;
                    let w_at = (k * r * s + tap) * cg;
                    for c in 0..cg {
                        dx[x_at + c] += dy * w[w_at + c];
                    }
                }
            }
        }
    });
    dx
}

fn bwd_w<T: Real>(conv: &Conv2d, dy: &[T], x: &[T]) -> Vec<T> {
    let spec = conv.spec;
    let ([p, q], [_, r, s, cg]) = (conv.output(), conv.w_shape());
    let kg = spec.k / spec.groups;
    let mut dw = vec![T::ZERO; conv.w_shape().iter().product()];
    dw.par_chunks_exact_mut(cg).enumerate().for_each(|(at, dw)| {
        let (k, tap) = (at / (r * s), [at / s % r, at % s]);
        for (n, (at, output)) in (0..spec.n).flat_map(|n| grid([p, q]).enumerate().map(move |output| (n, output))) {
            let Some(pixel) = pixel(&spec, output, tap) else { continue };
            let dy = dy[(n * p * q + at) * spec.k + k];
            let x_at = (n * spec.h * spec.w + pixel) * spec.c + k / kg * cg;
            for c in 0..cg {
                dw[c] += dy * x[x_at + c];
            }
        }
    });
    dw
}
