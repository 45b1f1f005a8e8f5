//! The interface of devices that run kernels.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::launch::Launch;
use super::memory::Memory;
use super::Arch;
use crate::{Error, Result};

/// A device that runs the library's kernels: [`Device::Kernels`](super::Device::Kernels) holds one.
///
/// # Safety
/// Safe code launches kernels through this trait, so an implementation promises:
/// * [`allocate`](Self::allocate) returns memory whose [`device`](Memory::device) is this one.
/// * [`launch`](Self::launch) and [`Replay::replay`] first refuse a launch that fails [`Launch::check_device`]. They
///   then run its kernel with its grid, its parameters and its gate, after everything that was put on the queue before.
/// * Memory outlives the launches on the queue that use it, and a [`Replay`] owns its launches.
///
/// A wrapper that forwards each call to one other backend keeps these promises.
///
/// ```
/// use residuum::device::{Arch, Device};
///
/// let Device::Kernels(backend) = Device::blueprint(Arch::Sm90) else { unreachable!() };
/// let memory = backend.allocate(1 << 20)?;
/// assert_eq!((backend.kind(), memory.bytes()), ("blueprint", 1 << 20));
/// # Ok::<(), residuum::Error>(())
/// ```
pub unsafe trait Backend: fmt::Debug + Send + Sync {
    /// `cuda`, `sim` or `blueprint`.
    fn kind(&self) -> &'static str;

    /// The device's own name, for people.
    fn name(&self) -> String;

    /// The generation whose kernels it runs.
    fn arch(&self) -> Arch;

    /// Reserves `bytes` bytes at a multiple of 256, or of [`SimOptions::alignment`](super::sim::SimOptions::alignment).
    /// Their content is undefined.
    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Memory>>;

    /// Puts one launch on the device's queue.
    fn launch(&self, launch: &Launch) -> Result<()>;

    /// Prepares `launches` for a faster replay, if the device has one, without running them.
    fn record(&self, launches: &Arc<[Launch]>) -> Result<Option<Box<dyn Replay>>> {
        let _ = launches;
        Ok(None)
    }

    /// Free bytes of the device's memory, if the device can tell.
    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    /// Waits for all launches; reports the first failure since the last call.
    fn synchronize(&self) -> Result<()>;

    /// Times `work`, from its first entry on the device's queue to the end of its last. Uses the device's clock if it
    /// has one, else the host's. Includes the time in which the queue waits for `work`.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.synchronize()?;
        let start = Instant::now();
        work()?;
        self.synchronize()?;
        Ok(start.elapsed())
    }

    /// The error that made the device unusable for this process. Every later call returns it; a service must restart.
    fn failure(&self) -> Option<Error> {
        None
    }
}

/// Launches prepared for replay, such as a CUDA graph. It owns the launches and so their memory.
/// [`Recording`](super::Recording) has an example.
pub trait Replay: fmt::Debug + Send + Sync {
    /// Puts all launches on the device's queue, in order.
    fn replay(&self) -> Result<()>;
}
