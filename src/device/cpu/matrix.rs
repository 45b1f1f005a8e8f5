//! Matrices in slices.

/// The extents of a matrix, and its strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl Matrix {
    /// A matrix of contiguous rows, `stride` elements apart.
    pub fn rows(rows: usize, cols: usize, stride: usize) -> Self {
        Self { rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The transpose, in place.
    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride }
    }

    /// True if every element lies in a slice of `len` elements.
    pub(super) fn fits(&self, len: usize) -> bool {
        let last = |extent: usize, stride: usize| extent.checked_sub(1).map(|i| i.saturating_mul(stride));
        match (last(self.rows, self.row_stride), last(self.cols, self.col_stride)) {
            (Some(row), Some(col)) => row.saturating_add(col) < len,
            _ => true,
        }
    }

    /// True if no two elements share a place.
    pub(super) fn is_injective(&self) -> bool {
        (self.col_stride == 1 && self.row_stride >= self.cols) || (self.row_stride == 1 && self.col_stride >= self.rows)
    }
}
