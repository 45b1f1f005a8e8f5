//! How the CPU's ops share their work: cuts that depend on the shape only, so that the bits do not depend on the number
//! of threads, and fixed-order sums over the rows of a matrix: the per-channel reductions of NHWC tensors.
//!
//! The rows are cut into parts; each part is summed by itself and the parts are added in order. Inside a part several
//! rows are taken together as one of at least [`WIDTH`] elements, which a loop over channels fills with whole vectors
//! however few the channels are.

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use crate::device::cpu::vectorized;
use crate::device::threads;
use crate::tensor::Real;

/// The least elements of a wide row.
const WIDTH: usize = 128;
/// The least elements of a part.
const PART: usize = 1 << 14;
/// The most parts.
const PARTS: usize = 32;
/// The elements of a run of an element-by-element op.
const RUN: usize = 1 << 14;

/// How a matrix of `rows` rows of `c` channels is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Channels.
    pub(super) c: usize,
    /// Elements of a wide row, a multiple of `c`.
    pub(super) wide: usize,
    /// Parts.
    pub(super) parts: usize,
    /// Elements of every part but the last, a multiple of `wide`.
    pub(super) part: usize,
}

impl Cut {
    /// The cut for `len` elements.
    pub(super) fn new(len: usize, c: usize) -> Self {
        let wide = c * WIDTH.div_ceil(c);
        let part = len.div_ceil(PARTS).max(PART).next_multiple_of(wide);
        Self { c, wide, parts: len.div_ceil(part).max(1), part }
    }

    /// The elements of part `i` of `len`.
    pub(super) fn range(&self, i: usize, len: usize) -> Range<usize> {
        (i * self.part).min(len)..((i + 1) * self.part).min(len)
    }

    /// Calls `f` for each part, in parallel, with its number and `each` elements of `scratch`.
    pub(super) fn for_each<T: Real>(&self, scratch: &mut [T], each: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        in_lanes(split(&mut scratch[..self.parts * each], each), |i, scratch| vectorized(|| f(i, scratch)));
    }

    /// Adds the `wide` sums of a part up to `c` of them, in place; the rest keeps nothing of use.
    pub(super) fn fold<T: Real>(&self, sums: &mut [T]) {
        let (total, rest) = sums.split_at_mut(self.c);
        for row in rest.chunks_exact(self.c) {
            add(total, row);
        }
    }
}

/// Calls `f` for each run of `out`, in parallel, with the index of its first element.
pub(super) fn elements<T: Real>(out: &mut [T], f: impl Fn(usize, &mut [T]) + Sync) {
    in_lanes(split(out, RUN), |i, out| vectorized(|| f(i * RUN, out)));
}

/// Writes `from` over and over to all of `to`.
pub(super) fn repeat<T: Real>(from: &[T], to: &mut [T]) {
    to.chunks_mut(from.len()).for_each(|to| to.copy_from_slice(&from[..to.len()]));
}

/// `a += b`.
pub(super) fn add<T: Real>(a: &mut [T], b: &[T]) {
    for (a, &b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// Pieces of `each` elements; one whole piece where `each` is 0.
pub(crate) fn split<T>(scratch: &mut [T], each: usize) -> Vec<&mut [T]> {
    scratch.chunks_mut(each.max(1)).collect()
}

/// Calls `f` for each lane with its number: here where there is one, else in parallel.
pub(crate) fn in_lanes<L: Send>(lanes: Vec<L>, f: impl Fn(usize, L) + Sync) {
    if lanes.len() == 1 {
        lanes.into_iter().for_each(|lane| f(0, lane));
    } else {
        threads::ensure();
        lanes.into_par_iter().enumerate().for_each(|(i, lane)| f(i, lane));
    }
}

/// Scratch memory in pieces of which each lane takes one while it runs. The piece given back last is taken first: it is
/// still in the cache.
pub(super) struct Pieces<'a, T>(Mutex<Vec<&'a mut [T]>>);

impl<'a, T> Pieces<'a, T> {
    /// Pieces of `each` elements; with 0, any number of empty ones.
    pub(super) fn new(scratch: &'a mut [T], each: usize) -> Self {
        let pieces = if each == 0 { Vec::new() } else { scratch.chunks_exact_mut(each).collect() };
        Self(Mutex::new(pieces))
    }

    /// A piece, given back when dropped; empty where none is left.
    pub(super) fn take(&self) -> Piece<'a, '_, T> {
        Piece { piece: self.free().pop().unwrap_or_default(), pieces: self }
    }

    fn free(&self) -> MutexGuard<'_, Vec<&'a mut [T]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of [`Pieces`].
pub(super) struct Piece<'a, 'b, T> {
    piece: &'a mut [T],
    pieces: &'b Pieces<'a, T>,
}

impl<T> Deref for Piece<'_, '_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.piece
    }
}

impl<T> DerefMut for Piece<'_, '_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.piece
    }
}

impl<T> Drop for Piece<'_, '_, T> {
    fn drop(&mut self) {
        let piece = std::mem::take(&mut self.piece);
        self.pieces.free().push(piece);
    }
}

/// Scratch elements of [`columns`].
pub(super) fn columns_scratch(len: usize, c: usize) -> usize {
    let cut = Cut::new(len, c);
    cut.parts * cut.wide
}

/// `out[c] = sum over rows of x[row, c]`, or `+=`.
pub(super) fn columns<T: Real>(x: &[T], out: &mut [T], accumulate: bool, scratch: &mut [T]) {
    let cut = Cut::new(x.len(), out.len());
    cut.for_each(scratch, cut.wide, |i, sums| {
        sums.fill(T::ZERO);
        x[cut.range(i, x.len())].chunks(cut.wide).for_each(|row| add(sums, row));
        cut.fold(sums);
    });
    if !accumulate {
        out.fill(T::ZERO);
    }
    for sums in scratch.chunks_exact(cut.wide).take(cut.parts) {
        add(out, &sums[..cut.c]);
    }
}
