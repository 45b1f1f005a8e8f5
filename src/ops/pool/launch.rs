//! Which kernels, on what grid.
use crate::device::Kernel;
pub(crate) const KERNELS: &[&Kernel] = &[];
use super::Node;
use crate::device::{Launch, Target};
use crate::ops::Io;
use crate::Result;

pub(super) fn launches(_node: &Node, _target: Target, _io: &Io<'_>) -> Result<Vec<Launch>> {
    Err(crate::Error::unsupported("stub", "stub"))
}
