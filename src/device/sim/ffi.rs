//! The C functions of `kernels/sim/api.cpp`.

use std::ffi::{c_char, c_void};

/// Mirrors `sim::Options` in `kernels/sim/engine.hpp`.
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

extern "C" {
    pub(super) fn residuum_sim_new(options: *const Options, problem: *mut *mut c_char) -> *mut c_void;
    pub(super) fn residuum_sim_free(device: *mut c_void);
    pub(super) fn residuum_sim_allocate(device: *mut c_void, bytes: usize) -> *mut u8;
    pub(super) fn residuum_sim_release(device: *mut c_void, address: *mut u8);
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
    pub(super) fn residuum_sim_free_text(text: *mut c_char);
    pub(super) fn residuum_sim_load_counted(path: *const c_char) -> *mut c_char;
    pub(super) fn residuum_sim_next_counted(bytes_read: *mut u64, bytes_written: *mut u64) -> bool;
    pub(super) fn residuum_sim_kernels() -> usize;
    pub(super) fn residuum_sim_kernel(i: usize, name: *mut *const c_char, params_bytes: *mut usize, threads: *mut u32);
    pub(super) fn residuum_sim_dot(bf16: u32, arithmetic: u32, n: u32, a: *const u16, b: *const u16, c: f32) -> f32;
    pub(super) fn residuum_sim_from_f16(bits: u16) -> f32;
    pub(super) fn residuum_sim_to_f16(v: f32) -> u16;
    pub(super) fn residuum_sim_to_bf16(v: f32) -> u16;
}
