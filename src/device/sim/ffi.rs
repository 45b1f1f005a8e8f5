//! The C functions of `kernels/sim/api.cpp` and their preconditions.

use std::ffi::{c_char, c_void, CStr};

/// Mirrors `sim::Options` in `kernels/sim/engine.hpp`, whose enums have the order of `options`.
#[repr(C)]
pub(super) struct Options {
    pub schedule: u32,
    pub depth: u32,
    pub copies: u32,
    pub arithmetic: u32,
    pub alignment: u32,
    pub shared_limit: u32,
    pub approximate: u32,
    pub traffic: u32,
    pub seed: u64,
}

// A device is alive from `residuum_sim_new` to `residuum_sim_free` and may be used from any thread: allocations and
// releases concurrently, launches and copies one at a time. Strings end with a zero, and output pointers are valid.
extern "C" {
    /// Copies the options. If it returns null, `problem` is a text.
    pub(super) fn residuum_sim_new(options: *const Options, problem: *mut *mut c_char) -> *mut c_void;
    /// All of the device's memory has been released.
    pub(super) fn residuum_sim_free(device: *mut c_void);
    /// Null if there is no memory.
    pub(super) fn residuum_sim_allocate(device: *mut c_void, bytes: usize) -> *mut u8;
    pub(super) fn residuum_sim_release(device: *mut c_void, address: *mut u8);
    /// The parameters point into memory of the device, `gate` is null or an f32 in it, `grid` is three numbers. Returns
    /// null or a text; a stray access in the kernel is caught and becomes one.
    pub(super) fn residuum_sim_launch(
        device: *mut c_void,
        name: *const c_char,
        params: *const u8,
        params_bytes: usize,
        gate: *const f32,
        threads: u32,
        grid: *const u32,
        shared_bytes: u32,
    ) -> *mut c_char;
    /// Frees a text that another function returned, once.
    pub(super) fn residuum_sim_free_text(text: *mut c_char);
    /// The file is a shared object of the kernels' wrappers. Returns null or a text.
    pub(super) fn residuum_sim_load_counted(path: *const c_char) -> *mut c_char;
    pub(super) fn residuum_sim_next_counted(bytes_read: *mut u64, bytes_written: *mut u64) -> bool;
    pub(super) fn residuum_sim_kernels() -> usize;
    /// `i` is below the number of kernels. The name is a literal.
    pub(super) fn residuum_sim_kernel(i: usize, name: *mut *const c_char, params_bytes: *mut usize, threads: *mut u32);
    /// `a` and `b` are `n` elements each, a multiple of 8.
    pub(super) fn residuum_sim_dot(bf16: u32, arithmetic: u32, n: u32, a: *const u16, b: *const u16, c: f32) -> f32;
    pub(super) fn residuum_sim_from_f16(bits: u16) -> f32;
    pub(super) fn residuum_sim_to_f16(v: f32) -> u16;
    pub(super) fn residuum_sim_to_bf16(v: f32) -> u16;
}

/// Copies a text of the simulator, if there is one, and frees it.
///
/// # Safety
/// `text` is null or a text that the simulator gave to its caller to free; it is not used again.
pub(super) unsafe fn take_text(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: by the contract it is the simulator's, whose texts end with a zero.
    let owned = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: by the contract nothing uses it after this.
    unsafe { residuum_sim_free_text(text) };
    Some(owned)
}
