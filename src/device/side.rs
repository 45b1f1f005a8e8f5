//! A second queue of a device, for copies while launches run.

use std::fmt;

use crate::Result;

/// Copies to one memory beside the device's own queue, to two places in turn: one is written while the launches under
/// way read the other.
///
/// A copy to a place comes after all that was on the device's queue when the place was last [released](Self::release);
/// what is put on the device's queue after a [join](Self::join) comes after all copies before it. Nothing else is
/// ordered.
pub trait SideQueue: fmt::Debug + Send + Sync {
    /// Copies `src` to `offset` of the memory, as part of the place `place`, 0 or 1; returns before the copy ends.
    fn write(&self, place: usize, offset: usize, src: &[u8]) -> Result<()>;

    /// Lets what is put on the device's queue from here on wait for the copies so far.
    fn join(&self) -> Result<()>;

    /// Lets copies to `place` from here on wait for what is on the device's queue.
    fn release(&self, place: usize) -> Result<()>;
}
