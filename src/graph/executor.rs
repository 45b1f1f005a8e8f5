//! What runs a planned program: the host or kernels.

use std::fmt;

use super::Runs;
use crate::device::cpu::Slot;
use crate::device::{Cost, Launch};
use crate::tensor::HostData;
use crate::Result;

/// A kernel launch of a program. The [module](super) has an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The kernel's name.
    pub kernel: &'static str,
    /// The name of the op that it computes, wholly or in part.
    pub op: &'static str,
    /// The op's extents in short.
    pub shape: String,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Its operations and bytes.
    pub cost: Cost,
    /// The condition under which it runs.
    pub runs: Runs,
}

impl Step {
    pub(super) fn new(op: &'static str, shape: String, launch: &Launch, runs: Runs) -> Self {
        Self { kernel: launch.kernel().name, op, shape, grid: launch.grid(), cost: launch.cost(), runs }
    }
}

/// The arena of a program and the launches on it.
pub(super) trait Executor: fmt::Debug + Send {
    /// Sets a value from data in the library's layout (NHWC, KRSC).
    fn write(&mut self, slot: &Slot, data: &HostData) -> Result<()>;
    /// Reads a value in the library's layout (NHWC, KRSC).
    fn read(&self, slot: &Slot) -> Result<HostData>;
    /// Sets an input of the next run from data in NHWC; the previous run may still be active.
    fn feed(&mut self, slot: &Slot, data: &HostData) -> Result<()> {
        self.write(slot, data)
    }
    /// Runs the ops that depend on parameters and buffers only.
    fn prepare(&mut self) -> Result<()>;
    /// Runs the other ops, then the optimizer.
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
