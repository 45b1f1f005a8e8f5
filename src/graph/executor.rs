//! The interface to a planned program, on the host or on a device with kernels.

use std::fmt;

use super::Runs;
use crate::device::cpu::Slot;
use crate::device::Cost;
use crate::tensor::HostData;
use crate::Result;

/// A kernel launch of a program. The [module](super) has an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The kernel's name.
    pub kernel: &'static str,
    /// The name of the op that the launch computes, wholly or in part. After fusion its kernel may be of another kind:
    /// `conv2d_fwd` with moments runs `conv2d_fused_fwd_*`.
    pub op: &'static str,
    /// A summary of the op's extents, as `n256 56x56 c64`.
    pub shape: String,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Operations and bytes.
    pub cost: Cost,
    /// The condition under which the launch runs.
    pub runs: Runs,
}

/// The arena of a program and its ops or launches.
pub(super) trait Executor: fmt::Debug + Send {
    /// Sets a value from data in the library's layout (NHWC, KRSC).
    fn write(&mut self, slot: &Slot, data: &HostData) -> Result<()>;
    /// Reads a value in the library's layout (NHWC, KRSC).
    fn read(&self, slot: &Slot) -> Result<HostData>;
    /// Sets an input of the next run from NHWC data, possibly while the previous run is active.
    fn feed(&mut self, slot: &Slot, data: &HostData) -> Result<()> {
        self.write(slot, data)
    }
    /// Runs the ops that depend only on parameters and buffers.
    fn prepare(&mut self) -> Result<()>;
    /// Runs the other ops and the optimizer.
    fn run(&mut self) -> Result<()>;
    /// The launches of `run`, in order.
    fn steps(&self) -> &[Step] {
        &[]
    }
    /// Waits for all runs.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}
