//! The op on the CPU, in passes over whole vectors.
//!
//! The statistics are taken block by block in two passes, the mean and then the squares about it, and blocks and parts
//! are merged as Chan, Golub and LeVeque (1979) do: a mean far larger than the deviation costs no digits. Parts are
//! merged in f64.

use super::{Node, Pass};
use crate::device::cpu::vectorized;
use crate::ops::parallel::{add, in_lanes, repeat, split, Cut};
use crate::ops::{HostIo, Write};
use crate::tensor::Real;

/// The elements of a block: 32 KiB in f32, so that the second pass finds it in the first-level cache.
const BLOCK: usize = 1 << 13;

/// Runs a pass other than the fold.
pub(super) fn run<T: Real>(node: &Node, io: &mut HostIo<'_, T>) {
    match node.pass {
        Pass::Train { relu } => train(node, relu, io),
        Pass::Infer { relu } => infer(node, relu, io),
        Pass::Bwd { relu } => bwd(node, relu, io),
        Pass::Fold { .. } => panic!("folding has no way of its own"),
    }
}

/// Elements of scratch that [`run`] needs.
pub(super) fn scratch(node: &Node) -> usize {
    let cut = cut(node);
    match node.pass {
        Pass::Train { .. } => cut.parts * train_each(&cut) + 3 * cut.wide,
        Pass::Infer { .. } => 3 * cut.wide,
        Pass::Bwd { .. } => cut.parts * 2 * cut.wide + 4 * cut.wide,
        Pass::Fold { .. } => 0,
    }
}

fn cut(node: &Node) -> Cut {
    let c = node.bn.spec.x[3];
    Cut::new(node.bn.count() * c, c)
}

/// A part's mean and squares, and the wide rows of a block.
fn train_each(cut: &Cut) -> usize {
    2 * cut.c + 3 * cut.wide
}

fn train<T: Real>(node: &Node, relu: bool, io: &mut HostIo<'_, T>) {
    let cut = cut(node);
    let [x, gamma, beta] = [0, 1, 2].map(|i| io.inputs[i].real());
    let ([y, mean, invstd, running_mean, running_var], scratch) = io.split();
    let (parts, wide) = scratch.split_at_mut(cut.parts * train_each(&cut));
    cut.for_each(parts, train_each(&cut), |i, scratch| moments(&cut, &x[cut.range(i, x.len())], scratch));
    let (m, eps, momentum) = (node.bn.count() as f64, node.bn.spec.eps, node.bn.spec.momentum);
    for k in 0..cut.c {
        let (mu, squares) = merged(&cut, parts, x.len(), k);
        mean[k] = T::from_f64(mu);
        invstd[k] = T::from_f64(1.0 / (squares / m + eps).sqrt());
        let moved = |old: T, new: f64| T::from_f64((1.0 - momentum) * old.to_f64() + momentum * new);
        running_mean[k] = moved(running_mean[k], mu);
        running_var[k] = moved(running_var[k], squares / (m - 1.0));
        wide[k] = gamma[k] * invstd[k];
    }
    let affine = Affine::new(&cut, mean, beta, wide);
    affine.apply(&cut, relu, x, y);
}

fn infer<T: Real>(node: &Node, relu: bool, io: &mut HostIo<'_, T>) {
    let cut = cut(node);
    let [x, gamma, beta, running_mean, running_var] = [0, 1, 2, 3, 4].map(|i| io.inputs[i].real());
    let eps = T::from_f64(node.bn.spec.eps);
    let ([y], wide) = io.split();
    for k in 0..cut.c {
        wide[k] = gamma[k] / (running_var[k] + eps).sqrt();
    }
    Affine::new(&cut, running_mean, beta, wide).apply(&cut, relu, x, y);
}

/// Mean and sum of squares about it of each channel of a part, into the first 2 C elements of `scratch`.
fn moments<T: Real>(cut: &Cut, x: &[T], scratch: &mut [T]) {
    let (moments, rows) = scratch.split_at_mut(2 * cut.c);
    let (mean, squares) = moments.split_at_mut(cut.c);
    let (mu, rows) = rows.split_at_mut(cut.wide);
    let (sum, about) = rows.split_at_mut(cut.wide);
    mean.fill(T::ZERO);
    squares.fill(T::ZERO);
    let mut count = 0;
    for block in x.chunks(BLOCK.next_multiple_of(cut.wide)) {
        let m = block.len() / cut.c;
        sum.fill(T::ZERO);
        block.chunks(cut.wide).for_each(|row| add(sum, row));
        cut.fold(sum);
        let share = T::from_f64(1.0 / m as f64);
        sum[..cut.c].iter_mut().for_each(|s| *s *= share);
        repeat(&sum[..cut.c], mu);
        about.fill(T::ZERO);
        for row in block.chunks(cut.wide) {
            for ((about, &x), &mu) in about.iter_mut().zip(row).zip(&*mu) {
                *about += (x - mu) * (x - mu);
            }
        }
        cut.fold(about);
        let total = count + m;
        let (weight, both) = (m as f64 / total as f64, count as f64 * m as f64 / total as f64);
        let (weight, both) = (T::from_f64(weight), T::from_f64(both));
        for k in 0..cut.c {
            let delta = mu[k] - mean[k];
            mean[k] += delta * weight;
            squares[k] += about[k] + delta * delta * both;
        }
        count = total;
    }
}

/// Mean and sum of squares of channel `k` over all parts.
fn merged<T: Real>(cut: &Cut, parts: &[T], len: usize, k: usize) -> (f64, f64) {
    let (mut mean, mut squares, mut count) = (0.0, 0.0, 0.0);
    for (i, part) in parts.chunks_exact(train_each(cut)).enumerate() {
        let m = (cut.range(i, len).len() / cut.c) as f64;
        let delta = part[k].to_f64() - mean;
        mean += delta * m / (count + m);
        squares += part[cut.c + k].to_f64() + delta * delta * count * m / (count + m);
        count += m;
    }
    (mean, squares)
}

/// `y = (x - mean) scale + beta`, each as a wide row.
struct Affine<'a, T> {
    mean: &'a [T],
    scale: &'a [T],
    beta: &'a [T],
}

impl<'a, T: Real> Affine<'a, T> {
    /// In `scratch`, whose first C elements are the scale.
    fn new(cut: &Cut, mean: &[T], beta: &[T], scratch: &'a mut [T]) -> Self {
        let (wide_scale, rest) = scratch.split_at_mut(cut.wide);
        let (wide_mean, wide_beta) = rest.split_at_mut(cut.wide);
        let (scale, more) = wide_scale.split_at_mut(cut.c);
        repeat(scale, more);
        repeat(mean, wide_mean);
        repeat(beta, wide_beta);
        Self { mean: wide_mean, scale: wide_scale, beta: wide_beta }
    }

    fn apply(&self, cut: &Cut, relu: bool, x: &[T], y: &mut [T]) {
        in_lanes(split(y, cut.part), |i, y| {
            let x = &x[cut.range(i, x.len())];
            vectorized(
                || if relu { self.rows(cut, x, y, |v| v.maximum(T::ZERO)) } else { self.rows(cut, x, y, |v| v) },
            );
        });
    }

    #[inline(always)]
    fn rows(&self, cut: &Cut, x: &[T], y: &mut [T], then: impl Fn(T) -> T) {
        for (x, y) in x.chunks(cut.wide).zip(y.chunks_mut(cut.wide)) {
            let channels = self.mean.iter().zip(self.scale).zip(self.beta);
            for ((y, &x), ((&mean, &scale), &beta)) in y.iter_mut().zip(x).zip(channels) {
                *y = then((x - mean) * scale + beta);
            }
        }
    }
}

fn bwd<T: Real>(node: &Node, relu: bool, io: &mut HostIo<'_, T>) {
    let cut = cut(node);
    let accumulate = io.writes[0] == Write::Accumulate;
    let [dy, x, gamma, mean, invstd] = [0, 1, 2, 3, 4].map(|i| io.inputs[i].real());
    let y = if relu { io.inputs[5].real() } else { dy };
    let ([dx, dgamma, dbeta], scratch) = io.split();
    let (parts, wide) = scratch.split_at_mut(cut.parts * 2 * cut.wide);
    let (center, wide) = wide.split_at_mut(cut.wide);
    repeat(mean, center);
    cut.for_each(parts, 2 * cut.wide, |i, sums| {
        let range = cut.range(i, x.len());
        let tensors = [&dy[range.clone()], &x[range.clone()], &y[range]];
        if relu {
            reduce::<T, true>(&cut, tensors, center, sums);
        } else {
            reduce::<T, false>(&cut, tensors, center, sums);
        }
    });
    let m = node.bn.count() as f64;
    for k in 0..cut.c {
        let total = |at: usize| parts.chunks_exact(2 * cut.wide).map(|part| part[at].to_f64()).sum::<f64>();
        let (sum, along) = (total(k), total(cut.wide + k) * invstd[k].to_f64());
        dbeta[k] = T::from_f64(sum);
        dgamma[k] = T::from_f64(along);
        let scale = gamma[k].to_f64() * invstd[k].to_f64();
        wide[k] = T::from_f64(scale);
        wide[cut.wide + k] = T::from_f64(-scale * invstd[k].to_f64() * along / m);
        wide[2 * cut.wide + k] = T::from_f64(-scale * sum / m);
    }
    for row in wide.chunks_exact_mut(cut.wide) {
        let (first, more) = row.split_at_mut(cut.c);
        repeat(first, more);
    }
    let affine = Correction { center, wide, cut: &cut };
    in_lanes(split(dx, cut.part), |i, dx| {
        let range = cut.range(i, x.len());
        let tensors = [&dy[range.clone()], &x[range.clone()], &y[range]];
        vectorized(|| match (relu, accumulate) {
            (false, false) => affine.rows::<false, false>(tensors, dx),
            (false, true) => affine.rows::<false, true>(tensors, dx),
            (true, false) => affine.rows::<true, false>(tensors, dx),
            (true, true) => affine.rows::<true, true>(tensors, dx),
        });
    });
}

/// dy where it counts.
#[inline(always)]
fn counted<T: Real, const RELU: bool>(dy: T, y: T) -> T {
    if !RELU || y > T::ZERO {
        dy
    } else {
        T::ZERO
    }
}

/// The sums of dy and of dy (x - mean) of a part, the second from `wide` on.
#[inline(always)]
fn reduce<T: Real, const RELU: bool>(cut: &Cut, [dy, x, y]: [&[T]; 3], center: &[T], sums: &mut [T]) {
    sums.fill(T::ZERO);
    let (sum, along) = sums.split_at_mut(cut.wide);
    for ((dy, x), y) in dy.chunks(cut.wide).zip(x.chunks(cut.wide)).zip(y.chunks(cut.wide)) {
        let sums = sum.iter_mut().zip(&mut *along).zip(center);
        for (((&dy, &x), &y), ((sum, along), &center)) in dy.iter().zip(x).zip(y).zip(sums) {
            let dy = counted::<T, RELU>(dy, y);
            *sum += dy;
            *along += dy * (x - center);
        }
    }
    cut.fold(sum);
    cut.fold(along);
}

/// `dx = a dy + b (x - mean) + d`, each a wide row of `wide`.
struct Correction<'a, T> {
    center: &'a [T],
    wide: &'a [T],
    cut: &'a Cut,
}

impl<T: Real> Correction<'_, T> {
    #[inline(always)]
    fn rows<const RELU: bool, const ADD: bool>(&self, [dy, x, y]: [&[T]; 3], dx: &mut [T]) {
        let wide = self.cut.wide;
        let (a, rest) = self.wide.split_at(wide);
        let (b, d) = rest.split_at(wide);
        for (((dy, x), y), dx) in dy.chunks(wide).zip(x.chunks(wide)).zip(y.chunks(wide)).zip(dx.chunks_mut(wide)) {
            let tensors = dy.iter().zip(x).zip(y);
            let channels = self.center.iter().zip(a).zip(b).zip(d);
            for ((dx, ((&dy, &x), &y)), (((&center, &a), &b), &d)) in dx.iter_mut().zip(tensors).zip(channels) {
                let v = a * counted::<T, RELU>(dy, y) + (b * (x - center) + d);
                *dx = if ADD { *dx + v } else { v };
            }
        }
    }
}
