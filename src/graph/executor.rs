//! What runs a planned program: the host or kernels.

use std::fmt;

use super::Runs;
use crate::device::cpu::Slot;
use crate::device::{Cost, Launch};
use crate::tensor::HostData;
use crate::Result;

/// A kernel launch of a program's run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The kernel's name.
    pub kernel: &'static str,
    /// The name of the op that it computes, or computes a part of.
    pub op: &'static str,
    /// The op's extents in a few words.
    pub shape: String,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// What it computes and moves.
    pub cost: Cost,
    /// When a run does that.
    pub runs: Runs,
}

impl Step {
    pub(super) fn new(op: &'static str, shape: String, launch: &Launch, runs: Runs) -> Self {
        Self { kernel: launch.kernel().name, op, shape, grid: launch.grid(), cost: launch.cost(), runs }
    }
}

/// The arena of a program and the steps that work in it.
pub(super) trait Executor: fmt::Debug + Send {
    /// Sets a value, given in the library's layout.
    fn write(&mut self, slot: &Slot, data: &HostData) -> Result<()>;
    /// Reads a value in the library's layout.
    fn read(&self, slot: &Slot) -> Result<HostData>;
    /// Sets an input of the next run; the last one may still be under way.
    fn feed(&mut self, slot: &Slot, data: &HostData) -> Result<()> {
        self.write(slot, data)
    }
    /// Runs what depends on parameters and buffers only.
    fn prepare(&mut self) -> Result<()>;
    /// Runs the rest, the optimizer last.
    fn run(&mut self) -> Result<()>;
    /// The launches of `run`, in order.
    fn steps(&self) -> &[Step] {
        &[]
    }
    /// Waits for it.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}
