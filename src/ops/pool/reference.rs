//! The op in plain loops.

use rayon::prelude::*;

use super::{host, Bwd, Fwd, Node, Pass, Pool};
use crate::device::threads;
use crate::ops::{norm, HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        threads::ensure();
        let [_, h, w, c] = self.pool.spec().x;
        let [_, p, q, _] = self.pool.y_shape();
        let (image, result, pool) = (h * w * c, p * q * c, &self.pool);
        match self.pass {
            Pass::Fwd(form) => {
                let Fwd { x, mut y, index } = io.bind(form);
                let x = x.loaded(c);
                let images = y.real().par_chunks_exact_mut(result).zip(x.par_chunks_exact(image));
                match index {
                    Some(mut index) => images
                        .zip(index.byte().par_chunks_exact_mut(result))
                        .for_each(|((y, x), index)| max_fwd(pool, x, y, index)),
                    None => images.for_each(|(y, x)| average_fwd(pool, x, y)),
                }
            }
            Pass::Bwd(form) => {
                let Bwd { dy, index, mask, mut dx, sums } = io.bind(form);
                let gradient = |dx: &mut [T]| {
                    let images = dx.par_chunks_exact_mut(image).zip(dy.real().par_chunks_exact(result));
                    match index {
                        Some(index) => images
                            .zip(index.byte().par_chunks_exact(result))
                            .for_each(|((dx, dy), index)| max_bwd(pool, dy, index, dx)),
                        None => images.for_each(|(dx, dy)| average_bwd(pool, dy, dx)),
                    }
                };
                match (mask, sums) {
                    (Some(mask), Some(sums)) => {
                        let mut dz = vec![T::ZERO; pool.x().shape.len()];
                        gradient(&mut dz);
                        norm::reference_gradient(mask, c, &dz, dx, sums);
                    }
                    _ => gradient(dx.real()),
                }
            }
        }
    }

    fn host(&self, io: &mut HostIo<'_, T>) {
        host::run(self, io);
    }
}

/// Calls `f` with the row and the column of every window of an image.
fn windows(pool: &Pool, mut f: impl FnMut(usize, usize)) {
    let [p, q] = pool.output();
    for i in 0..p {
        for j in 0..q {
            f(i, j);
        }
    }
}

/// The offsets in an image of the pixels of window `(i, j)`, row by row.
fn pixels(pool: &Pool, i: usize, j: usize) -> impl Iterator<Item = usize> + use<> {
    let [_, _, w, c] = pool.spec().x;
    let columns = pool.span(1, j);
    pool.span(0, i).flat_map(move |row| columns.clone().map(move |column| (row * w + column) * c))
}

fn max_fwd<T: Real>(pool: &Pool, x: &[T], y: &mut [T], index: &mut [u8]) {
    let (c, q) = (pool.spec().x[3], pool.output()[1]);
    windows(pool, |i, j| {
        for channel in 0..c {
            let at = (i * q + j) * c + channel;
            let mut best: Option<(T, usize)> = None;
            for (position, pixel) in pixels(pool, i, j).enumerate() {
                let v = x[pixel + channel];
                if best.is_none_or(|(b, _)| v > b || is_nan(v)) {
                    best = Some((v, position));
                }
            }
            let (v, position) = best.unwrap_or_default();
            y[at] = v;
            index[at] = position as u8;
        }
    });
}

fn max_bwd<T: Real>(pool: &Pool, dy: &[T], index: &[u8], dx: &mut [T]) {
    let (c, q) = (pool.spec().x[3], pool.output()[1]);
    dx.fill(T::ZERO);
    windows(pool, |i, j| {
        for channel in 0..c {
            let at = (i * q + j) * c + channel;
            if let Some(pixel) = pixels(pool, i, j).nth(usize::from(index[at])) {
                dx[pixel + channel] += dy[at];
            }
        }
    });
}

fn average_fwd<T: Real>(pool: &Pool, x: &[T], y: &mut [T]) {
    let (c, q) = (pool.spec().x[3], pool.output()[1]);
    windows(pool, |i, j| {
        for channel in 0..c {
            let sum: T = pixels(pool, i, j).map(|pixel| x[pixel + channel]).sum();
            y[(i * q + j) * c + channel] = sum / T::from_usize(pool.divisor(i, j));
        }
    });
}

fn average_bwd<T: Real>(pool: &Pool, dy: &[T], dx: &mut [T]) {
    let (c, q) = (pool.spec().x[3], pool.output()[1]);
    dx.fill(T::ZERO);
    windows(pool, |i, j| {
        for pixel in pixels(pool, i, j) {
            for channel in 0..c {
                dx[pixel + channel] += dy[(i * q + j) * c + channel] / T::from_usize(pool.divisor(i, j));
            }
        }
    });
}

fn is_nan<T: Real>(v: T) -> bool {
    v.partial_cmp(&v).is_none()
}
