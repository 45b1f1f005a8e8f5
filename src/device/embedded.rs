//! The kernels in this build: fatbins, their targets and their resources.
//!
//! Another CUDA framework can load a fatbin with `cuModuleLoadData` and launch its entries by name.
//!
//! ```
//! use residuum::device::embedded::{FATBINS, TOOLKIT, USAGE};
//!
//! println!("{} fatbins by nvcc {}", FATBINS.len(), TOOLKIT.unwrap_or("(none at build time)"));
//! println!("at most {:?} registers", USAGE.iter().map(|usage| usage.registers).max());
//! ```

/// The resources of one entry point on one target, as ptxas reports them. See the [module](self) for an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The entry point.
    pub kernel: &'static str,
    /// The target, such as `sm_80`.
    pub target: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Barriers.
    pub barriers: u32,
    /// Bytes of a thread's stack.
    pub stack_bytes: u32,
    /// Bytes of registers spilled to memory.
    pub spill_bytes: u32,
}

/// An image, aligned as the driver requires.
#[repr(C, align(64))]
#[allow(dead_code)] // a build without nvcc has none
struct Aligned<const N: usize>([u8; N]);

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
