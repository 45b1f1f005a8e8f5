//! Parts of the simulator, exposed for its tests.

use std::ffi::{CStr, CString};
use std::path::Path;

use super::ffi;
use super::options::Arithmetic;
use crate::{Error, Result};

/// The traffic of a launch to global memory, in sectors of 32 bytes, each counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of the sectors read.
    pub bytes_read: u64,
    /// Bytes of the sectors written.
    pub bytes_written: u64,
}

/// Loads the kernels that devices with `SimOptions::traffic` run; fails if `library` cannot be loaded.
///
/// # Safety
/// `library` is a shared object of this build's kernel wrappers, compiled with `-fsanitize=thread` so that they report
/// every access. Its initialisers run.
pub unsafe fn load_counted(library: &Path) -> Result<()> {
    let what = || format!("loading {}", library.display());
    let path =
        CString::new(library.as_os_str().as_encoded_bytes()).map_err(|_| Error::invalid(what(), "a zero byte"))?;
    // SAFETY: the path ends with a zero; the contract says what the library is.
    let text = unsafe { ffi::residuum_sim_load_counted(path.as_ptr()) };
    // SAFETY: the text is null or the call's, which is ours to free.
    unsafe { ffi::take_text(text) }
        .map_or(Ok(()), |problem| Err(Error::Device { device: "sim".into(), what: what(), problem }))
}

/// The traffic of each launch that this thread made on devices with `SimOptions::traffic` since the last call.
pub fn traffic() -> Vec<Traffic> {
    let next = || {
        let (mut bytes_read, mut bytes_written) = (0, 0);
        // SAFETY: both are references to values of this function.
        unsafe { ffi::residuum_sim_next_counted(&mut bytes_read, &mut bytes_written) }
            .then_some(Traffic { bytes_read, bytes_written })
    };
    std::iter::from_fn(next).collect()
}

/// Name, bytes of parameters and threads of every kernel in this build.
pub fn kernels() -> Vec<(String, usize, u32)> {
    // SAFETY: `ffi` asks for nothing.
    (0..unsafe { ffi::residuum_sim_kernels() })
        .map(|i| {
            let (mut name, mut bytes, mut threads) = (std::ptr::null(), 0, 0);
            // SAFETY: `i` is below the number of kernels; the places are values of this function.
            unsafe { ffi::residuum_sim_kernel(i, &mut name, &mut bytes, &mut threads) };
            // SAFETY: the call left a name, which ends with a zero and is never freed.
            (unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(), bytes, threads)
        })
        .collect()
}

/// `c + a.b` as a tensor core adds it, for bf16 or f16 bit patterns. Panics unless both lengths are one multiple of 8.
pub fn dot(bf16: bool, arithmetic: Arithmetic, a: &[u16], b: &[u16], c: f32) -> f32 {
    assert!(a.len() == b.len() && a.len().is_multiple_of(8), "operands of {} and {} elements", a.len(), b.len());
    // SAFETY: both slices have the length that is passed, a multiple of 8.
    unsafe { ffi::residuum_sim_dot(u32::from(bf16), arithmetic as u32, a.len() as u32, a.as_ptr(), b.as_ptr(), c) }
}

/// The value of an f16 bit pattern.
pub fn from_f16(bits: u16) -> f32 {
    // SAFETY: `ffi` asks for nothing.
    unsafe { ffi::residuum_sim_from_f16(bits) }
}

/// The nearest f16, ties to even, as a bit pattern.
pub fn to_f16(v: f32) -> u16 {
    // SAFETY: `ffi` asks for nothing.
    unsafe { ffi::residuum_sim_to_f16(v) }
}

/// The nearest bf16, ties to even, as a bit pattern.
pub fn to_bf16(v: f32) -> u16 {
    // SAFETY: `ffi` asks for nothing.
    unsafe { ffi::residuum_sim_to_bf16(v) }
}
