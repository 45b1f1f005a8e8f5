//! The op on the CPU: channels innermost, images in parallel.

use super::{Bwd, Fwd, Node, Pass, Pool};
use crate::device::cpu::vectorized;
use crate::ops::parallel::{add, in_lanes, split};
use crate::ops::{HostIo, HostOp, HostOut, HostRef};
use crate::tensor::Real;

/// The fewest input elements of a lane.
const LANE: usize = 1 << 14;

/// Runs a pooling without batch norm as below, any other as the reference.
pub(super) fn run<T: Real>(node: &Node, io: &mut HostIo<'_, T>) {
    match node.pass {
        Pass::Fwd(form) if form.x.load.is_as_it_is() => fwd(&node.pool, io.bind(form)),
        Pass::Bwd(form) if form.mask.is_none() => bwd(&node.pool, io.bind(form)),
        _ => node.reference(io),
    }
}

/// Elements of an input image and of an output image, and images per lane.
fn extents(pool: &Pool) -> [usize; 3] {
    let ([_, h, w, c], [p, q]) = (pool.spec.x, pool.output());
    [h * w * c, p * q * c, (LANE / (h * w * c)).max(1)]
}

fn fwd<T: Real>(pool: &Pool, Fwd { x, mut y, index }: Fwd<HostRef<'_, T>, HostOut<'_, '_, T>>) {
    let ([image, result, images], x) = (extents(pool), x.value.real());
    let lanes = split(y.real(), images * result);
    let Some(mut index) = index else {
        return in_lanes(lanes, |i, y| {
            let images = x[i * images * image..].chunks_exact(image);
            vectorized(|| images.zip(y.chunks_exact_mut(result)).for_each(|(x, y)| average_fwd(pool, x, y)));
        });
    };
    let lanes = lanes.into_iter().zip(split(index.byte(), images * result)).collect();
    in_lanes(lanes, |i, (y, index): (&mut [T], &mut [u8])| {
        let images = x[i * images * image..].chunks_exact(image);
        let results = y.chunks_exact_mut(result).zip(index.chunks_exact_mut(result));
        vectorized(|| images.zip(results).for_each(|(x, (y, index))| max_fwd(pool, x, y, index)));
    });
}

fn bwd<T: Real>(pool: &Pool, Bwd { dy, index, mut dx, .. }: Bwd<HostRef<'_, T>, HostOut<'_, '_, T>>) {
    let ([image, result, images], adds) = (extents(pool), dx.adds());
    let (dy, index) = (dy.real(), index.map(|index| index.byte()));
    in_lanes(split(dx.real(), images * image), |i, dx| {
        if !adds {
            dx.fill(T::ZERO);
        }
        let first = i * images * result;
        let images = dx.chunks_exact_mut(image).zip(dy[first..].chunks_exact(result));
        vectorized(|| match index {
            None => images.for_each(|(dx, dy)| average_bwd(pool, dy, dx)),
            Some(index) => images
                .zip(index[first..].chunks_exact(result))
                .for_each(|((dx, dy), index)| max_bwd(pool, dy, index, dx)),
        });
    });
}

/// Calls `f` for each pixel of each window, with the window's offset in y, the pixel's position in the window, its
/// offset in x, and the window's divisor.
#[inline(always)]
fn each_pixel(pool: &Pool, mut f: impl FnMut(usize, usize, usize, usize)) {
    let ([_, _, w, c], [p, q]) = (pool.spec.x, pool.output());
    for (i, j) in (0..p).flat_map(|i| (0..q).map(move |j| (i, j))) {
        let (window, divisor) = ((i * q + j) * c, pool.divisor(i, j));
        let mut number = 0;
        for row in pool.span(0, i) {
            for column in pool.span(1, j) {
                f(window, number, (row * w + column) * c, divisor);
                number += 1;
            }
        }
    }
}

#[inline(always)]
fn max_fwd<T: Real>(pool: &Pool, x: &[T], y: &mut [T], index: &mut [u8]) {
    let c = pool.spec.x[3];
    index.fill(0);
    each_pixel(pool, |window, number, pixel, _| {
        let (x, y, index) = (&x[pixel..pixel + c], &mut y[window..window + c], &mut index[window..window + c]);
        if number == 0 {
            y.copy_from_slice(x);
            return;
        }
        for ((&x, y), index) in x.iter().zip(y).zip(index) {
            // Of several NaNs the last one is the maximum.
            let larger = x > *y || x.partial_cmp(&x).is_none();
            *y = if larger { x } else { *y };
            *index = if larger { number as u8 } else { *index };
        }
    });
}

#[inline(always)]
fn max_bwd<T: Real>(pool: &Pool, dy: &[T], index: &[u8], dx: &mut [T]) {
    let c = pool.spec.x[3];
    each_pixel(pool, |window, number, pixel, _| {
        let from = dy[window..window + c].iter().zip(&index[window..window + c]);
        for (dx, (&dy, &index)) in dx[pixel..pixel + c].iter_mut().zip(from) {
            *dx += if usize::from(index) == number { dy } else { T::ZERO };
        }
    });
}

#[inline(always)]
fn average_fwd<T: Real>(pool: &Pool, x: &[T], y: &mut [T]) {
    let (c, [p, q]) = (pool.spec.x[3], pool.output());
    y.fill(T::ZERO);
    each_pixel(pool, |window, _, pixel, _| add(&mut y[window..window + c], &x[pixel..pixel + c]));
    for (window, y) in y.chunks_exact_mut(c).enumerate().take(p * q) {
        let divisor = T::from_usize(pool.divisor(window / q, window % q));
        y.iter_mut().for_each(|y| *y = *y / divisor);
    }
}

#[inline(always)]
fn average_bwd<T: Real>(pool: &Pool, dy: &[T], dx: &mut [T]) {
    let c = pool.spec.x[3];
    each_pixel(pool, |window, _, pixel, divisor| {
        let share = T::ONE / T::from_usize(divisor);
        for (dx, &dy) in dx[pixel..pixel + c].iter_mut().zip(&dy[window..window + c]) {
            *dx += dy * share;
        }
    });
}
