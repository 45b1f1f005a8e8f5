//! Fallible allocation of host memory of a tensor's size.
//!
//! Small allocations (names, lists of ops, launches) use Rust's allocator, and the process ends if one fails. Memory
//! that grows with the batch or with a layer's width is allocated here and fails with [`Error::OutOfMemory`].

use std::cell::Cell;

use crate::{Error, Result};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Calls `allocate`, whose caller handles a failed allocation.
pub(crate) fn fallible<T>(allocate: impl FnOnce() -> T) -> T {
    let outer = EXPECTED.replace(true);
    let result = allocate();
    EXPECTED.set(outer);
    result
}

/// True inside [`fallible`]: this thread's caller handles a failed allocation.
pub(crate) fn is_fallible() -> bool {
    EXPECTED.try_with(Cell::get).unwrap_or(false)
}

/// An empty vector with room for `len` elements; `what` names it in the error.
pub(crate) fn room<T>(what: &str, len: usize) -> Result<Vec<T>> {
    let mut v = Vec::new();
    let refused = |_| Error::out_of_memory(what, len.saturating_mul(size_of::<T>()));
    fallible(|| v.try_reserve_exact(len)).map_err(refused)?;
    Ok(v)
}

/// The elements of `from`; `what` names the vector in the error.
pub(crate) fn collect<T>(what: &str, from: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>> {
    let mut v = room(what, from.len())?;
    v.extend(from);
    Ok(v)
}

/// A vector of `len` times `value`; `what` names it in the error.
pub(crate) fn filled<T: Clone>(what: &str, value: T, len: usize) -> Result<Vec<T>> {
    let mut v = room(what, len)?;
    v.resize(len, value);
    Ok(v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_beyond_the_address_space_are_refused() {
        for len in [usize::MAX, usize::MAX / 8, isize::MAX as usize / 4 + 1] {
            let bytes = len.saturating_mul(8);
            let error = filled("a tensor", 0.0f64, len).expect_err("no such memory");
            assert!(matches!(&error, Error::OutOfMemory { bytes: Some(b), .. } if *b == bytes), "{error:?}");
            assert!(error.to_string().starts_with(&format!("out of memory: a tensor needs {bytes} bytes")), "{error}");
            assert!(!is_fallible());
        }
        assert_eq!(collect("three", [1, 2, 3].into_iter()).expect("memory"), [1, 2, 3]);
        assert_eq!(filled("two", 7, 2).expect("memory"), [7; 2]);
        assert!(fallible(|| fallible(is_fallible) && is_fallible()));
    }
}
