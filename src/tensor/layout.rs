//! Conversion between torch's layouts (NCHW, OIHW) and the library's (NHWC, KRSC).
//!
//! ```
//! use residuum::tensor::layout::{nchw_to_nhwc, nhwc_to_nchw};
//!
//! // An image of 2 channels and 1x3 pixels: channels apart, then side by side.
//! let nchw = [1, 2, 3, 10, 20, 30];
//! let nhwc = nchw_to_nhwc(&nchw, 1, 2, 1, 3)?;
//! assert_eq!(nhwc, [1, 10, 2, 20, 3, 30]);
//! assert_eq!(nhwc_to_nchw(&nhwc, 1, 1, 3, 2)?, nchw);
//! # Ok::<(), residuum::Error>(())
//! ```

use super::memory;
use crate::Result;

/// From `[N, C, H, W]` to `[N, H, W, C]`; for weights, from OIHW to KRSC. Fails if there is no memory for the copy.
pub fn nchw_to_nhwc<T: Copy + Default>(src: &[T], n: usize, c: usize, h: usize, w: usize) -> Result<Vec<T>> {
    permute(src, n, c, h * w)
}

/// From `[N, H, W, C]` to `[N, C, H, W]`; for weights, from KRSC to OIHW. Fails if there is no memory for the copy.
pub fn nhwc_to_nchw<T: Copy + Default>(src: &[T], n: usize, h: usize, w: usize, c: usize) -> Result<Vec<T>> {
    permute(src, n, h * w, c)
}

/// Transposes each of `batch` matrices of `rows` x `cols`.
fn permute<T: Copy + Default>(src: &[T], batch: usize, rows: usize, cols: usize) -> Result<Vec<T>> {
    assert_eq!(src.len(), batch * rows * cols, "elements to permute");
    let mut dst = memory::filled("a tensor in another layout", T::default(), src.len())?;
    for (s, d) in src.chunks_exact((rows * cols).max(1)).zip(dst.chunks_exact_mut((rows * cols).max(1))) {
        for i in 0..rows {
            for j in 0..cols {
                d[j * rows + i] = s[i * cols + j];
            }
        }
    }
    Ok(dst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_is_the_identity() {
        let x: Vec<u32> = (0..2 * 3 * 4 * 5).collect();
        let y = nchw_to_nhwc(&x, 2, 3, 4, 5).expect("memory");
        assert_eq!(y[1], 20, "channel 1 of the first pixel");
        assert_eq!(nhwc_to_nchw(&y, 2, 4, 5, 3).expect("memory"), x);
    }
}
