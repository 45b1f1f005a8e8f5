//! The kernels that the build embedded: fatbins, what they were compiled for and what they use.
//!
//! Another CUDA framework can load a fatbin with `cuModuleLoadData` and launch its entries by name.

/// What ptxas told of one entry point on one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The entry point.
    pub kernel: &'static str,
    /// The target, such as `sm_80`.
    pub target: &'static str,
    /// Registers a thread.
    pub registers: u32,
    /// Barriers.
    pub barriers: u32,
    /// Bytes of stack a thread.
    pub stack_bytes: u32,
    /// Bytes of registers that are stored to memory and loaded back; the build fails where it is not 0.
    pub spill_bytes: u32,
}

/// An image where the driver wants it.
#[repr(C, align(64))]
#[allow(dead_code)] // a build without nvcc has none
struct Aligned<const N: usize>([u8; N]);

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
