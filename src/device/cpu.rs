//! The CPU: memory of a program, matrix products, and wide vectors where the processor has them.
//!
//! The rest of the CPU path is safe code; the few `unsafe` blocks that it needs are here.

mod product;

use std::alloc::{alloc_zeroed, dealloc, Layout};
use std::ptr::NonNull;

use crate::tensor::{memory, Elem, Real};
use crate::{Error, Result};

/// A tensor on the host that is read.
#[derive(Clone, Copy, Debug)]
pub enum HostRef<'a, T> {
    /// [`Elem::Real`] and [`Elem::Stat`].
    Real(&'a [T]),
    /// Labels.
    Index(&'a [i32]),
    /// Window positions.
    Byte(&'a [u8]),
}

/// A tensor on the host that is written.
#[derive(Debug)]
pub enum HostMut<'a, T> {
    /// [`Elem::Real`] and [`Elem::Stat`].
    Real(&'a mut [T]),
    /// Labels.
    Index(&'a mut [i32]),
    /// Window positions.
    Byte(&'a mut [u8]),
}

impl<'a, T> HostRef<'a, T> {
    /// The numbers; panics where it holds none.
    pub fn real(&self) -> &'a [T] {
        match *self {
            Self::Real(v) => v,
            _ => panic!("a tensor of numbers is expected here"),
        }
    }

    /// The labels; panics where it holds none.
    pub fn index(&self) -> &'a [i32] {
        match *self {
            Self::Index(v) => v,
            _ => panic!("a tensor of labels is expected here"),
        }
    }

    /// The window positions; panics where it holds none.
    pub fn byte(&self) -> &'a [u8] {
        match *self {
            Self::Byte(v) => v,
            _ => panic!("a tensor of window positions is expected here"),
        }
    }
}

impl<T> HostMut<'_, T> {
    /// The numbers; panics where it holds none.
    pub fn real(&mut self) -> &mut [T] {
        match self {
            Self::Real(v) => v,
            _ => panic!("a tensor of numbers is expected here"),
        }
    }

    /// The labels; panics where it holds none.
    pub fn index(&mut self) -> &mut [i32] {
        match self {
            Self::Index(v) => v,
            _ => panic!("a tensor of labels is expected here"),
        }
    }

    /// The window positions; panics where it holds none.
    pub fn byte(&mut self) -> &mut [u8] {
        match self {
            Self::Byte(v) => v,
            _ => panic!("a tensor of window positions is expected here"),
        }
    }
}

/// Where a tensor lies in an [`Arena`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The first byte; a multiple of the element's size.
    pub offset: usize,
    /// Elements.
    pub len: usize,
    /// What they are; [`Elem::Real`] and [`Elem::Stat`] are `T`s.
    pub elem: Elem,
}

impl Slot {
    fn bytes<T: Real>(&self) -> usize {
        let element = match self.elem {
            Elem::Real | Elem::Stat => size_of::<T>(),
            Elem::Index => 4,
            Elem::Byte => 1,
        };
        assert!(self.offset.is_multiple_of(element), "{self:?} is not aligned to its elements of {element} bytes");
        self.len.saturating_mul(element)
    }
}

/// The memory of a program on the CPU: zeros at first, at an address that is a multiple of 64.
#[derive(Debug)]
pub struct Arena {
    start: NonNull<u8>,
    layout: Layout,
    bytes: usize,
}

// SAFETY: an arena owns its memory alone, and hands it out only under the borrow rules.
unsafe impl Send for Arena {}
// SAFETY: as above; through a shared arena the memory can only be read.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves `bytes` bytes; fails where the system has no memory for them.
    pub fn new(bytes: usize) -> Result<Self> {
        let refused = || Error::out_of_memory("a program on the CPU", bytes);
        let layout = Layout::from_size_align(bytes.max(1), 64).map_err(|_| refused())?;
        // SAFETY: the size is not 0.
        let start = memory::fallible(|| NonNull::new(unsafe { alloc_zeroed(layout) })).ok_or_else(refused)?;
        Ok(Self { start, layout, bytes })
    }

    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The tensor in `slot`, to be read.
    ///
    /// # Panics
    /// Where it is not aligned or leaves the arena.
    pub fn read<T: Real>(&self, slot: &Slot) -> HostRef<'_, T> {
        let p = self.locate::<T>(slot);
        // SAFETY: `locate` checked that the elements lie in the arena and are aligned; they were initialised when it
        // was made, any bits are valid for them, and nobody writes while `self` is shared.
        unsafe {
            match slot.elem {
                Elem::Real | Elem::Stat => HostRef::Real(std::slice::from_raw_parts(p.cast(), slot.len)),
                Elem::Index => HostRef::Index(std::slice::from_raw_parts(p.cast(), slot.len)),
                Elem::Byte => HostRef::Byte(std::slice::from_raw_parts(p, slot.len)),
            }
        }
    }

    /// The tensor in `slot`, to be written.
    ///
    /// # Panics
    /// Where it is not aligned or leaves the arena.
    pub fn write<T: Real>(&mut self, slot: &Slot) -> HostMut<'_, T> {
        let p = self.locate::<T>(slot);
        // SAFETY: `locate` checked; the arena is borrowed exclusively for as long as the slice lives.
        unsafe { exclusive(p, slot) }
    }

    /// The tensors of one step of a program: those in `reads` to be read, those in `writes` to be written.
    ///
    /// # Panics
    /// Where one is not aligned or leaves the arena, or where one that is written overlaps any other.
    pub fn slices<T: Real>(&mut self, reads: &[Slot], writes: &[Slot]) -> (Vec<HostRef<'_, T>>, Vec<HostMut<'_, T>>) {
        for (i, a) in writes.iter().enumerate() {
            for b in writes[i + 1..].iter().chain(reads) {
                let before = |a: &Slot, b: &Slot| a.offset.saturating_add(a.bytes::<T>()) <= b.offset;
                assert!(
                    before(a, b) || before(b, a) || a.len == 0 || b.len == 0,
                    "{a:?} is written and overlaps {b:?}"
                );
            }
        }
        let starts: Vec<*mut u8> = writes.iter().map(|slot| self.locate::<T>(slot)).collect();
        // SAFETY: `locate` checked bounds and alignment, and the loop above that what is written overlaps nothing else.
        // The arena is borrowed exclusively for as long as the slices live.
        let writes = starts.into_iter().zip(writes).map(|(p, slot)| unsafe { exclusive(p, slot) }).collect();
        (reads.iter().map(|slot| self.read(slot)).collect(), writes)
    }

    fn locate<T: Real>(&self, slot: &Slot) -> *mut u8 {
        let end = slot.offset.checked_add(slot.bytes::<T>());
        assert!(end.is_some_and(|end| end <= self.bytes), "{slot:?} leaves an arena of {} bytes", self.bytes);
        // SAFETY: the offset is inside the arena or its end.
        unsafe { self.start.as_ptr().add(slot.offset) }
    }
}

/// The elements at `p`.
///
/// # Safety
/// They lie in an arena, are aligned, and are not reached in any other way during `'a`.
unsafe fn exclusive<'a, T: Real>(p: *mut u8, slot: &Slot) -> HostMut<'a, T> {
    // SAFETY: the caller's promise; an arena's bytes are initialised and any bits are valid elements.
    unsafe {
        match slot.elem {
            Elem::Real | Elem::Stat => HostMut::Real(std::slice::from_raw_parts_mut(p.cast(), slot.len)),
            Elem::Index => HostMut::Index(std::slice::from_raw_parts_mut(p.cast(), slot.len)),
            Elem::Byte => HostMut::Byte(std::slice::from_raw_parts_mut(p, slot.len)),
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// The extents of a matrix and the distances in elements from one row and one column to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// From one row to the next.
    pub row_stride: usize,
    /// From one column to the next.
    pub col_stride: usize,
}

impl Matrix {
    /// A matrix whose rows are `stride` elements apart and hold their elements side by side.
    pub fn rows(rows: usize, cols: usize, stride: usize) -> Self {
        Self { rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride }
    }

    fn fits(&self, len: usize) -> bool {
        let last = |extent: usize, stride: usize| extent.checked_sub(1).map(|i| i.saturating_mul(stride));
        match (last(self.rows, self.row_stride), last(self.cols, self.col_stride)) {
            (Some(row), Some(col)) => row.saturating_add(col) < len,
            _ => true,
        }
    }

    fn is_injective(&self) -> bool {
        (self.col_stride == 1 && self.row_stride >= self.cols) || (self.row_stride == 1 && self.col_stride >= self.rows)
    }
}

/// The most products that the `gemm` crate is given to add up at once. It cuts longer sums by the sizes of the caches.
const DEPTH: usize = 512;
/// The most elements of a product for which the crate adds up each by itself where both operands lie along the sum.
const SMALL: usize = 256;

/// `c = a b`, or `c += a b` with `accumulate`, on the calling thread, in the `gemm` crate where that works (see
/// [`has_fast_products`]). The order of the sums depends on the shapes only,
/// not on the caches, nor on how wide the processor's vectors are.
///
/// # Panics
/// Where the extents do not match, a matrix leaves its slice, `c` visits an element twice, or `T` is neither f32 nor
/// f64.
pub fn gemm<T: Real>(c: (&mut [T], Matrix), a: (&[T], Matrix), b: (&[T], Matrix), accumulate: bool) {
    let ((c, cm), (a, am), (b, bm)) = (c, a, b);
    assert!(cm.rows == am.rows && cm.cols == bm.cols && am.cols == bm.rows, "product {cm:?} = {am:?} {bm:?}");
    assert!(cm.fits(c.len()) && am.fits(a.len()) && bm.fits(b.len()), "product {cm:?} = {am:?} {bm:?}: slices");
    assert!(cm.is_injective(), "product into {cm:?}");
    if has_long_rows(cm, am, bm) {
        return vectorized(|| dots((c, cm), (a, am), (b, bm), accumulate));
    }
    if !has_fast_products() {
        return product::product((c, cm), (a, am), (b, bm), accumulate);
    }
    let each = am.cols.div_ceil(am.cols.div_ceil(DEPTH).max(1)).max(1);
    for first in (0..am.cols.max(1)).step_by(each) {
        let depth = each.min(am.cols - first);
        // SAFETY: all three matrices lie in their slices, and so do these columns of a and rows of b; c's elements are
        // distinct, and the slices do not overlap, as c's is exclusive.
        unsafe {
            gemm::gemm(
                cm.rows,
                cm.cols,
                depth,
                c.as_mut_ptr(),
                cm.col_stride as isize,
                cm.row_stride as isize,
                accumulate || first > 0,
                a.as_ptr().wrapping_add(first * am.col_stride),
                am.col_stride as isize,
                am.row_stride as isize,
                b.as_ptr().wrapping_add(first * bm.row_stride),
                bm.col_stride as isize,
                bm.row_stride as isize,
                T::ONE,
                T::ONE,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

/// Whether matrix products run in the `gemm` crate. On the few processors on which it fails plain loops take its place,
/// which are slower and round otherwise.
pub fn has_fast_products() -> bool {
    product::crate_works()
}

/// Whether the crate would add up each element of this product by itself, in as many sums as the processor's vectors
/// are wide.
fn has_long_rows(c: Matrix, a: Matrix, b: Matrix) -> bool {
    let alone = c.rows.saturating_mul(c.cols) <= SMALL || (a.cols > 2 && (c.rows == 1 || c.cols == 1));
    a.cols > 0 && a.col_stride == 1 && b.row_stride == 1 && alone
}

/// The product of rows of a and columns of b that hold their elements side by side, each element by itself.
#[inline(always)]
fn dots<T: Real>((c, cm): (&mut [T], Matrix), (a, am): (&[T], Matrix), (b, bm): (&[T], Matrix), accumulate: bool) {
    for i in 0..cm.rows {
        let row = &a[i * am.row_stride..][..am.cols];
        for j in 0..cm.cols {
            let sum = dot(row, &b[j * bm.col_stride..][..am.cols]);
            let to = &mut c[i * cm.row_stride + j * cm.col_stride];
            *to = if accumulate { *to + sum } else { sum };
        }
    }
}

/// The sum of products, in 32 sums of every 32nd that are then added up in pairs.
#[inline(always)]
fn dot<T: Real>(x: &[T], y: &[T]) -> T {
    const LANES: usize = 32;
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    let rest = x_rest.iter().zip(y_rest).fold(T::ZERO, |sum, (&x, &y)| sum + x * y);
    if x.is_empty() {
        return rest;
    }
    let mut sums = [T::ZERO; LANES];
    for (x, y) in x.iter().zip(y) {
        sums.iter_mut().zip(x.iter().zip(y)).for_each(|(sum, (&x, &y))| *sum += x * y);
    }
    for half in [16, 8, 4, 2, 1] {
        let (low, high) = sums.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
    }
    sums[0] + rest
}

/// Runs `f`, compiled for 32-byte vectors where the processor has them. The results are the same bits either way.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { with_avx2(f) };
    }
    f()
}

/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn with_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(offset: usize, len: usize, elem: Elem) -> Slot {
        Slot { offset, len, elem }
    }

    #[test]
    fn an_arena_hands_out_disjoint_slices() {
        let mut arena = Arena::new(256).expect("memory");
        let (a, b) = (slot(0, 4, Elem::Real), slot(64, 4, Elem::Stat));
        let (labels, window) = (slot(128, 3, Elem::Index), slot(140, 5, Elem::Byte));
        arena.write::<f32>(&a).real().copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        let (reads, mut writes) = arena.slices::<f32>(&[a, a], &[b, labels, window]);
        assert_eq!(reads[0].real().as_ptr() as usize % 64, 0);
        writes[0].real().copy_from_slice(reads[1].real());
        writes[1].index().fill(7);
        writes[2].byte().fill(9);
        assert_eq!(arena.read::<f32>(&b).real(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(arena.read::<f32>(&labels).index(), [7; 3]);
        assert_eq!(arena.read::<f32>(&window).byte(), [9; 5]);
    }

    fn panics(f: impl FnOnce()) -> bool {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err()
    }

    #[test]
    fn an_arena_refuses_what_would_alias() {
        let mut arena = Arena::new(256).expect("memory");
        let (a, b) = (slot(0, 4, Elem::Real), slot(12, 4, Elem::Real));
        assert!(panics(|| drop(arena.slices::<f32>(&[a], &[b]))), "read and written");
        assert!(panics(|| drop(arena.slices::<f32>(&[], &[a, b]))), "written twice");
        assert!(!panics(|| drop(arena.slices::<f32>(&[a, b], &[]))), "read twice");
        assert!(panics(|| drop(arena.slices::<f64>(&[b], &[]))), "not aligned");
        assert!(panics(|| drop(arena.slices::<f32>(&[slot(252, 2, Elem::Real)], &[]))), "beyond the end");
        assert!(panics(|| drop(arena.slices::<f32>(&[slot(4, usize::MAX / 2, Elem::Real)], &[]))), "overflow");
        assert!(panics(|| drop(arena.slices::<f32>(&[], &[slot(4, usize::MAX / 2, Elem::Real)]))), "overflow");
    }

    #[test]
    fn gemm_is_a_product() {
        let a: Vec<f64> = (0..6).map(f64::from).collect();
        let b: Vec<f64> = (0..12).map(f64::from).collect();
        let mut c = vec![1.0; 8];
        let (am, bm) = (Matrix::rows(2, 3, 3), Matrix::rows(3, 4, 4));
        gemm((&mut c, Matrix::rows(2, 4, 4)), (&a, am), (&b, bm), false);
        assert_eq!(c, [20.0, 23.0, 26.0, 29.0, 56.0, 68.0, 80.0, 92.0]);
        gemm((&mut c, Matrix::rows(4, 2, 2).transposed()), (&a, am), (&b, bm), true);
        assert_eq!(c, [40.0, 79.0, 49.0, 97.0, 82.0, 148.0, 109.0, 184.0]);
        assert!(panics(|| gemm((&mut [0.0; 7], Matrix::rows(2, 4, 4)), (&a, am), (&b, bm), false)), "too short");
        assert!(panics(|| gemm((&mut [0.0; 8], Matrix::rows(2, 4, 1)), (&a, am), (&b, bm), false)), "rows overlap");
    }
}
