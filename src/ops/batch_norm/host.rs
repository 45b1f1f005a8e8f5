//! The op on the CPU, in passes over whole vectors.
//!
//! The statistics of a block take two passes: its mean, by differences from the first pixel, then sum and squares about
//! the mean. Blocks and parts are merged in f64 (Chan, Golub and LeVeque, 1979), so that a mean far larger than the
//! deviation costs no digits. A constant channel has exactly its mean and variance 0, and y is exactly beta.

use super::{Bwd, Infer, Node, Pass, Train};
use crate::device::cpu::vectorized;
use crate::ops::parallel::{in_lanes, repeat, split, Cut};
use crate::ops::HostIo;
use crate::tensor::Real;

/// The elements of a block: 32 KiB in f32, so that the second pass finds it in the L1 cache.
const BLOCK: usize = 1 << 13;

/// Runs a pass other than [`Pass::Fold`].
pub(super) fn run<T: Real>(node: &Node, io: &mut HostIo<'_, T>) {
    match node.pass {
        Pass::Train { relu } => train(node, relu, io),
        Pass::Infer { relu } => infer(node, relu, io),
        Pass::Bwd(form) => bwd(node, form, io),
        Pass::Fold { .. } => panic!("folding is the reference's"),
    }
}

/// Elements of scratch memory for [`run`].
pub(super) fn scratch(node: &Node) -> usize {
    let cut = cut(node);
    match node.pass {
        Pass::Train { .. } => cut.parts * train_each(&cut) + 3 * cut.wide,
        Pass::Infer { .. } => 3 * cut.wide,
        Pass::Bwd(_) => cut.parts * 2 * cut.wide + 4 * cut.wide,
        Pass::Fold { .. } => 0,
    }
}

fn cut(node: &Node) -> Cut {
    let c = node.bn.spec.x[3];
    Cut::new(node.bn.count() * c, c)
}

/// Elements per part: its mean in two numbers, its squares, and three wide rows.
fn train_each(cut: &Cut) -> usize {
    3 * cut.c + 3 * cut.wide
}

fn train<T: Real>(node: &Node, relu: bool, io: &mut HostIo<'_, T>) {
    let cut = cut(node);
    let scratch = std::mem::take(&mut io.scratch);
    let Train { x, gamma, beta, y, mean, invstd, running_mean, running_var } = io.numbers(Train::default());
    let (parts, wide) = scratch.split_at_mut(cut.parts * train_each(&cut));
    cut.for_each(parts, train_each(&cut), |i, scratch| moments(&cut, &x[cut.range(i, x.len())], scratch));
    let (m, eps, momentum) = (node.bn.count() as f64, node.bn.spec.eps, node.bn.spec.momentum);
    let (scale, rest) = wide.split_at_mut(cut.wide);
    let (center, shift) = rest.split_at_mut(cut.wide);
    for k in 0..cut.c {
        let (mu, squares) = merged(&cut, parts, x.len(), k);
        mean[k] = T::from_f64(mu);
        invstd[k] = T::from_f64(1.0 / (squares / m + eps).sqrt());
        let moved = |old: T, new: f64| T::from_f64((1.0 - momentum) * old.to_f64() + momentum * new);
        running_mean[k] = moved(running_mean[k], mu);
        running_var[k] = moved(running_var[k], squares / (m - 1.0));
        (scale[k], center[k], shift[k]) = (gamma[k] * invstd[k], mean[k], beta[k]);
        // The rounding error of the mean matters if the deviation is no larger.
        let lost = (mu - mean[k].to_f64()) * scale[k].to_f64();
        if lost.is_finite() {
            shift[k] -= T::from_f64(lost);
        }
    }
    Affine::new(&cut, wide).apply(&cut, relu, x, y);
}

fn infer<T: Real>(node: &Node, relu: bool, io: &mut HostIo<'_, T>) {
    let cut = cut(node);
    let eps = T::from_f64(node.bn.spec.eps);
    let wide = std::mem::take(&mut io.scratch);
    let Infer { x, gamma, beta, running_mean, running_var, y } = io.numbers(Infer::default());
    for k in 0..cut.c {
        wide[k] = gamma[k] / (running_var[k] + eps).sqrt();
        wide[cut.wide + k] = running_mean[k];
        wide[2 * cut.wide + k] = beta[k];
    }
    Affine::new(&cut, wide).apply(&cut, relu, x, y);
}

/// Leaves each channel's mean, in two numbers, and sum of squares about it in the first 3 C elements of `scratch`.
fn moments<T: Real>(cut: &Cut, x: &[T], scratch: &mut [T]) {
    let (moments, rows) = scratch.split_at_mut(3 * cut.c);
    let (origin, rows) = rows.split_at_mut(cut.wide);
    let (sum, about) = rows.split_at_mut(cut.wide);
    moments.fill(T::ZERO);
    let mut count = 0;
    for block in x.chunks(BLOCK.next_multiple_of(cut.wide)) {
        let m = block.len() / cut.c;
        repeat(&block[..cut.c], origin);
        sum.fill(T::ZERO);
        for row in block.chunks(cut.wide) {
            sum.iter_mut().zip(row).zip(&*origin).for_each(|((sum, &x), &origin)| *sum += x - origin);
        }
        cut.fold(sum);
        let share = T::from_f64(1.0 / m as f64);
        for k in 0..cut.c {
            sum[k] = origin[k] + sum[k] * share;
        }
        let center = &mut *origin;
        repeat(&sum[..cut.c], center);
        sum.fill(T::ZERO);
        about.fill(T::ZERO);
        for row in block.chunks(cut.wide) {
            let sums = sum.iter_mut().zip(about.iter_mut());
            for (((sum, about), &x), &center) in sums.zip(row).zip(&*center) {
                let off = x - center;
                *sum += off;
                *about += off * off;
            }
        }
        cut.fold(sum);
        cut.fold(about);
        for k in 0..cut.c {
            let mut all = Moments::read(cut, moments, k, count);
            // The center is the rounded mean.
            let rest = sum[k].to_f64() / m as f64;
            let squares = about[k].to_f64() - rest * rest * m as f64;
            let squares = if squares < 0.0 { 0.0 } else { squares };
            all.take(&Moments { count: m as f64, mean: center[k].to_f64() + rest, squares });
            moments[k] = T::from_f64(all.mean);
            moments[cut.c + k] = T::from_f64(all.mean - moments[k].to_f64());
            moments[2 * cut.c + k] = T::from_f64(all.squares);
        }
        count += m;
    }
}

/// Mean and sum of squares of channel `k` over all parts.
fn merged<T: Real>(cut: &Cut, parts: &[T], len: usize, k: usize) -> (f64, f64) {
    let mut all = Moments { count: 0.0, mean: 0.0, squares: 0.0 };
    for (i, part) in parts.chunks_exact(train_each(cut)).enumerate() {
        all.take(&Moments::read(cut, part, k, cut.range(i, len).len() / cut.c));
    }
    (all.mean, all.squares)
}

/// The number of elements of a channel, their mean, and the sum of squares about it.
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Channel `k`, as [`moments`] leaves it.
    fn read<T: Real>(cut: &Cut, from: &[T], k: usize, count: usize) -> Self {
        let [mean, rest, squares] = [0, 1, 2].map(|i| from[i * cut.c + k].to_f64());
        Self { count: count as f64, mean: mean + rest, squares }
    }

    /// Adds elements. The first are copied: 0 times the square of a large mean may be NaN.
    fn take(&mut self, other: &Self) {
        let count = self.count + other.count;
        if self.count == 0.0 {
            (self.mean, self.squares) = (other.mean, other.squares);
        } else {
            let (delta, share) = (other.mean - self.mean, other.count / count);
            self.mean += delta * share;
            self.squares += other.squares + delta * delta * (self.count * share);
        }
        self.count = count;
    }
}

/// `y = (x - mean) scale + shift`, each a wide row.
struct Affine<'a, T> {
    scale: &'a [T],
    mean: &'a [T],
    shift: &'a [T],
}

impl<'a, T: Real> Affine<'a, T> {
    /// Takes three wide rows that begin with C scales, means and shifts.
    fn new(cut: &Cut, rows: &'a mut [T]) -> Self {
        cut.widen(rows);
        let (scale, rest) = rows.split_at(cut.wide);
        let (mean, shift) = rest.split_at(cut.wide);
        Self { scale, mean, shift }
    }

    fn apply(&self, cut: &Cut, relu: bool, x: &[T], y: &mut [T]) {
        in_lanes(split(y, cut.part), |i, y| {
            let x = &x[cut.range(i, x.len())];
            vectorized(|| match relu {
                true => self.rows(cut, x, y, |v| v.maximum(T::ZERO)),
                false => self.rows(cut, x, y, |v| v),
            });
        });
    }

    #[inline(always)]
    fn rows(&self, cut: &Cut, x: &[T], y: &mut [T], then: impl Fn(T) -> T) {
        for (x, y) in x.chunks(cut.wide).zip(y.chunks_mut(cut.wide)) {
            let channels = self.mean.iter().zip(self.scale).zip(self.shift);
            for ((y, &x), ((&mean, &scale), &shift)) in y.iter_mut().zip(x).zip(channels) {
                *y = then((x - mean) * scale + shift);
            }
        }
    }
}

fn bwd<T: Real>(node: &Node, form: Bwd, io: &mut HostIo<'_, T>) {
    let cut = cut(node);
    let scratch = std::mem::take(&mut io.scratch);
    let accumulate = io.bind(form).dx.adds();
    let Bwd { dy, x, gamma, mean, invstd, y, dx, dgamma, dbeta } = io.numbers(form);
    let (relu, y) = (y.is_some(), y.unwrap_or(dy));
    let (parts, wide) = scratch.split_at_mut(cut.parts * 2 * cut.wide);
    let (center, wide) = wide.split_at_mut(cut.wide);
    repeat(mean, center);
    let part = |i: usize| [dy, x, y].map(|tensor| &tensor[cut.range(i, x.len())]);
    cut.for_each(parts, 2 * cut.wide, |i, sums| match relu {
        true => reduce::<T, true>(&cut, part(i), center, sums),
        false => reduce::<T, false>(&cut, part(i), center, sums),
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
    cut.widen(wide);
    let correction = Correction { center, wide, cut: &cut };
    in_lanes(split(dx, cut.part), |i, dx| {
        let tensors = part(i);
        vectorized(|| match (relu, accumulate) {
            (false, false) => correction.rows::<false, false>(tensors, dx),
            (false, true) => correction.rows::<false, true>(tensors, dx),
            (true, false) => correction.rows::<true, false>(tensors, dx),
            (true, true) => correction.rows::<true, true>(tensors, dx),
        });
    });
}

/// dy, with `RELU` 0 where y is 0 or less.
#[inline(always)]
fn counted<T: Real, const RELU: bool>(dy: T, y: T) -> T {
    if RELU && y <= T::ZERO {
        T::ZERO
    } else {
        dy
    }
}

/// The sums of dy and, from `wide` on, of dy (x - mean) over a part.
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

/// `dx = a dy + b (x - mean) + d`, with a, b and d the rows of `wide`.
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
