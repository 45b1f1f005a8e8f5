//! Matrix products.

use super::matrix::Matrix;
use super::product::{has_fast_products, product};
use super::vectorized::vectorized;
use crate::tensor::Real;

/// The longest sum that the `gemm` crate gets at once. It splits longer ones by the sizes of the caches.
const DEPTH: usize = 512;
/// The largest product that the crate computes as separate dot products if both operands are contiguous along the sum.
const SMALL: usize = 256;

/// `c = a b`, or `c += a b` with `accumulate`, on the calling thread, by the `gemm` crate if it works (see
/// [`has_fast_products`]). The order of the sums depends on the shapes only, not on caches or the width of vectors.
///
/// # Panics
/// If the extents do not match, a matrix exceeds its slice, two elements of `c` share a place, or `T` is no f32 or f64.
pub fn gemm<T: Real>(c: (&mut [T], Matrix), a: (&[T], Matrix), b: (&[T], Matrix), accumulate: bool) {
    let ((c, cm), (a, am), (b, bm)) = (c, a, b);
    assert!(cm.rows == am.rows && cm.cols == bm.cols && am.cols == bm.rows, "product {cm:?} = {am:?} {bm:?}");
    assert!(cm.fits(c.len()) && am.fits(a.len()) && bm.fits(b.len()), "product {cm:?} = {am:?} {bm:?}: slices");
    assert!(cm.is_injective(), "product into {cm:?}");
    if has_long_rows(cm, am, bm) {
        return vectorized(|| dots((c, cm), (a, am), (b, bm), accumulate));
    }
    if !has_fast_products() {
        return product((c, cm), (a, am), (b, bm), accumulate);
    }
    let each = am.cols.div_ceil(am.cols.div_ceil(DEPTH).max(1)).max(1);
    for first in (0..am.cols.max(1)).step_by(each) {
        let depth = each.min(am.cols - first);
        // SAFETY: as asserted, all three matrices lie in their slices, and so do these columns of a and rows of b, and
        // c's elements are distinct. The slices do not overlap, as c's is exclusive.
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

/// True if the crate would compute each element as a separate dot product, whose order depends on the vector width.
fn has_long_rows(c: Matrix, a: Matrix, b: Matrix) -> bool {
    let alone = c.rows.saturating_mul(c.cols) <= SMALL || (a.cols > 2 && (c.rows == 1 || c.cols == 1));
    a.cols > 0 && a.col_stride == 1 && b.row_stride == 1 && alone
}

/// The product of contiguous rows of a and contiguous columns of b, one element at a time.
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

/// The dot product: 32 interleaved partial sums, then a pairwise sum.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn panics(f: impl FnOnce()) -> bool {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err()
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
