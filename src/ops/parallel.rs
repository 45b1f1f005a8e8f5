//! Parallel loops of the CPU's ops, and fixed-order sums over the rows of a matrix: the per-channel reductions of NHWC
//! tensors. Work is cut by shape only, so that the bits do not depend on the number of threads.
//!
//! The rows are cut into parts, which are summed separately and added in order. In a part several rows form one wide
//! row of at least [`WIDTH`] elements, so that a loop over it uses whole vectors even if there are few channels.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::device::cpu::vectorized;
use crate::device::threads;
use crate::tensor::Real;

/// The fewest elements of a wide row.
const WIDTH: usize = 128;
/// The fewest elements of a part.
const PART: usize = 1 << 14;
/// The most parts.
const PARTS: usize = 32;
/// Elements of a run of an elementwise op.
const RUN: usize = 1 << 14;

/// The cut of a matrix of rows of `c` channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) c: usize,
    /// Elements of a wide row, a multiple of `c`.
    pub(super) wide: usize,
    pub(super) parts: usize,
    /// Elements of a part, a multiple of `wide`; the last may have fewer.
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

    /// Calls `f` for each part, in parallel, with its index and `each` elements of `scratch`.
    pub(super) fn for_each<T: Real>(&self, scratch: &mut [T], each: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        in_lanes(split(&mut scratch[..self.parts * each], each), |i, scratch| vectorized(|| f(i, scratch)));
    }

    /// Repeats the first `c` elements of each wide row to its end.
    pub(super) fn widen<T: Real>(&self, rows: &mut [T]) {
        for row in rows.chunks_exact_mut(self.wide) {
            let (first, more) = row.split_at_mut(self.c);
            repeat(first, more);
        }
    }

    /// Folds the `wide` sums of a part into its first `c`; the others are left undefined.
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

/// Fills `to` with repetitions of `from`.
pub(super) fn repeat<T: Real>(from: &[T], to: &mut [T]) {
    to.chunks_mut(from.len()).for_each(|to| to.copy_from_slice(&from[..to.len()]));
}

/// `a += b`.
pub(super) fn add<T: Real>(a: &mut [T], b: &[T]) {
    for (a, &b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// Pieces of `each` elements; with 0, of one.
pub(crate) fn split<T>(scratch: &mut [T], each: usize) -> Vec<&mut [T]> {
    scratch.chunks_mut(each.max(1)).collect()
}

/// Calls `f` for each lane with its index: in parallel, or on this thread if there is one lane.
pub(crate) fn in_lanes<L: Send>(lanes: Vec<L>, f: impl Fn(usize, L) + Sync) {
    if lanes.len() == 1 {
        lanes.into_iter().for_each(|lane| f(0, lane));
    } else {
        threads::ensure();
        lanes.into_par_iter().enumerate().for_each(|(i, lane)| f(i, lane));
    }
}

/// Scratch memory in pieces, one for each running lane. The piece returned last is taken first: it is still cached.
pub(super) struct Pieces<'a, T>(Mutex<Vec<&'a mut [T]>>);

impl<'a, T> Pieces<'a, T> {
    /// Pieces of `each` elements; with 0, an empty one for every lane.
    pub(super) fn new(scratch: &'a mut [T], each: usize) -> Self {
        let pieces = if each == 0 { Vec::new() } else { scratch.chunks_exact_mut(each).collect() };
        Self(Mutex::new(pieces))
    }

    /// Calls `f` with a piece; an empty one if none is left.
    pub(super) fn with(&self, f: impl FnOnce(&mut [T])) {
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = free().pop().unwrap_or_default();
        f(piece);
        free().push(piece);
    }
}

/// Elements of scratch memory for [`columns`].
pub(super) fn columns_scratch(len: usize, c: usize) -> usize {
    let cut = Cut::new(len, c);
    cut.parts * cut.wide
}

/// `out[c] = sum over rows of x[row, c]`, or `+=` if `accumulate`.
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
