//! Device memory and parts of it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crate::tensor::memory::filled;
use crate::{Error, Result};

/// Fails unless `bytes` bytes from `offset` on lie in memory of `of` bytes; `what` names their use.
pub(super) fn check_range(what: &str, offset: usize, bytes: usize, of: usize) -> Result<()> {
    let holds = offset.checked_add(bytes).is_some_and(|end| end <= of);
    Error::check(holds, what, || format!("bytes {offset}..+{bytes} of {of}"))
}

/// Identifies a device within this process, and so the owner of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId(u64);

impl DeviceId {
    /// An id that no other device has.
    ///
    /// ```
    /// use residuum::device::DeviceId;
    ///
    /// assert_ne!(DeviceId::unique(), DeviceId::unique());
    /// ```
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A range of device memory, freed when dropped.
///
/// # Safety
/// Kernels write to the addresses that an implementation names, so it promises:
/// * [`address`](Self::address), [`bytes`](Self::bytes) and [`device`](Self::device) never change.
/// * Until the value is dropped, the `bytes()` bytes from `address()` on belong to it alone, in memory that kernels of
///   `device()` may read and write. (A device that runs nothing may name any address.)
/// * [`write`](Self::write), [`zero`](Self::zero) and [`read`](Self::read) refuse a range that exceeds the memory.
///
/// A wrapper that forwards each call to memory that it owns keeps these promises. Safe code cannot make up memory, nor
/// have kernels write to an address of its choice:
///
/// ```compile_fail,E0200
/// use residuum::device::{DeviceId, Memory};
/// use residuum::Result;
///
/// #[derive(Debug)]
/// struct MadeUp;
///
/// impl Memory for MadeUp {
///     fn device(&self) -> Option<DeviceId> {
///         None
///     }
///     fn address(&self) -> u64 {
///         0xdead_0000
///     }
///     fn bytes(&self) -> usize {
///         usize::MAX
///     }
///     fn write(&self, _: usize, _: &[u8]) -> Result<()> {
///         Ok(())
///     }
///     fn zero(&self, _: usize, _: usize) -> Result<()> {
///         Ok(())
///     }
///     fn read(&self, _: usize, _: &mut [u8]) -> Result<()> {
///         Ok(())
///     }
/// }
/// ```
pub unsafe trait Memory: fmt::Debug + Send + Sync {
    /// The device whose launches may use it; `None` if [`View::foreign`]'s caller answers for that.
    fn device(&self) -> Option<DeviceId>;

    /// The device address of the first byte.
    fn address(&self) -> u64;

    /// The number of bytes.
    fn bytes(&self) -> usize;

    /// Copies `src` to `offset`, after earlier launches.
    fn write(&self, offset: usize, src: &[u8]) -> Result<()>;

    /// Clears `bytes` bytes from `offset` on, after earlier launches. Needs no memory of that size.
    fn zero(&self, offset: usize, bytes: usize) -> Result<()>;

    /// Copies from `offset` to `dst` after earlier launches, and waits for the copy.
    fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()>;

    /// A second queue, for copies to this memory while launches run; `None` if the device has none.
    fn side_queue(self: Arc<Self>) -> Result<Option<Box<dyn SideQueue>>> {
        Ok(None)
    }
}

/// A second queue for copies to one memory, to two places in turn: one is filled while launches read the other.
///
/// A copy to a place runs after the work that was on the device's queue at the place's last [release](Self::release).
/// Work queued after a [join](Self::join) runs after all copies before the join. No other order is promised.
///
/// ```
/// use residuum::device::SideQueue;
///
/// /// Feeds a step that reads 1024 bytes at `place * 1024`, and calls `launch` to queue the step.
/// fn step(side: &dyn SideQueue, place: usize, batch: &[u8], launch: impl Fn()) -> residuum::Result<()> {
///     side.write(place, place * 1024, batch)?;
///     side.join()?;
///     launch();
///     side.release(place)
/// }
/// ```
pub trait SideQueue: fmt::Debug + Send + Sync {
    /// Copies `src` to `offset` of the memory, as part of `place`, 0 or 1. Returns before the copy ends.
    fn write(&self, place: usize, offset: usize, src: &[u8]) -> Result<()>;

    /// Makes later work on the device's queue wait for the copies so far.
    fn join(&self) -> Result<()>;

    /// Makes later copies to `place` wait for the work that is on the device's queue now.
    fn release(&self, place: usize) -> Result<()>;
}

/// A part of a [`Memory`], which it keeps alive.
///
/// Views may overlap: a clone names the same bytes, and the parts of a concatenation are slices of channels that
/// interleave in one buffer. [`Launch::new`](super::Launch::new) says what a launch may do with views that overlap.
///
/// ```
/// use residuum::device::{Arch, Device, View};
///
/// let Device::Kernels(backend) = Device::blueprint(Arch::Sm80) else { unreachable!() };
/// let whole = View::whole(backend.allocate(1024)?);
/// let tail = whole.part(1000, 24)?;
/// assert_eq!(tail.address() - whole.address(), 1000);
/// assert!(tail.part(0, 25).is_err());
/// assert!(tail.overlaps(&whole) && !tail.overlaps(&whole.part(0, 1000)?));
/// # Ok::<(), residuum::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct View {
    memory: Arc<dyn Memory>,
    offset: usize,
    bytes: usize,
}

impl View {
    /// The `bytes` bytes from `offset` on; fails if they exceed the memory.
    pub fn new(memory: Arc<dyn Memory>, offset: usize, bytes: usize) -> Result<Self> {
        check_range("view", offset, bytes, memory.bytes())?;
        Ok(Self { memory, offset, bytes })
    }

    /// The whole of `memory`.
    pub fn whole(memory: Arc<dyn Memory>) -> Self {
        let bytes = memory.bytes();
        Self { memory, offset: 0, bytes }
    }

    /// `bytes` bytes at the device address `address` that another library owns, for its tensors as inputs, outputs and
    /// scratch memory of launches. This library neither frees nor copies them.
    ///
    /// # Safety
    /// * The `bytes` bytes from `address` on are memory of the device that runs the launches, and `address` is aligned
    ///   to the tensor's elements (256 bytes always suffice).
    /// * The memory lives until the last launch that uses the view or a clone has ended.
    /// * While such a launch runs, nobody else writes the memory, nor reads what the launch writes.
    /// * The memory belongs to no [`Memory`] of this library: [`overlaps`](Self::overlaps) would miss that.
    pub unsafe fn foreign(address: u64, bytes: usize) -> Self {
        Self::whole(Arc::new(Foreign { address, bytes }))
    }

    /// The `bytes` bytes from byte `offset` of this view on; fails if they exceed it.
    pub fn part(&self, offset: usize, bytes: usize) -> Result<Self> {
        check_range("part of a view", offset, bytes, self.bytes)?;
        Self::new(self.memory.clone(), self.offset + offset, bytes)
    }

    /// The device address of the first byte.
    pub fn address(&self) -> u64 {
        self.memory.address() + self.offset as u64
    }

    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The device whose launches may use it; `None` if [`foreign`](Self::foreign)'s caller answers for that.
    pub fn device(&self) -> Option<DeviceId> {
        self.memory.device()
    }

    /// True if a byte is in both views.
    pub fn overlaps(&self, other: &Self) -> bool {
        let [a, b] = [self, other].map(|view| (view.address(), view.address().saturating_add(view.bytes as u64)));
        // A blueprint's memories all begin at one address; a caller's may be given more than once.
        let same = std::ptr::addr_eq(Arc::as_ptr(&self.memory), Arc::as_ptr(&other.memory));
        let foreign = self.device().is_none() && other.device().is_none();
        (same || foreign) && a.0.max(b.0) < a.1.min(b.1)
    }

    /// Copies `src` to the start of the view.
    pub fn write(&self, src: &[u8]) -> Result<()> {
        check_range("write to a view", 0, src.len(), self.bytes)?;
        self.memory.write(self.offset, src)
    }

    /// Copies the whole view to the host.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut dst = filled("a copy of device memory", 0, self.bytes)?;
        self.memory.read(self.offset, &mut dst)?;
        Ok(dst)
    }
}

/// Memory that another library owns.
#[derive(Debug)]
struct Foreign {
    address: u64,
    bytes: usize,
}

impl Foreign {
    fn refuse<T>(&self, what: &str) -> Result<T> {
        let reason = "its owner copies; this library only runs kernels on it";
        Err(Error::unsupported(format!("{what} foreign memory at {:#x}", self.address), reason))
    }
}

// SAFETY: only `View::foreign` makes one, and its caller promises the memory; every copy is refused.
unsafe impl Memory for Foreign {
    fn device(&self) -> Option<DeviceId> {
        None
    }

    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn write(&self, _offset: usize, _src: &[u8]) -> Result<()> {
        self.refuse("writing")
    }

    fn zero(&self, _offset: usize, _bytes: usize) -> Result<()> {
        self.refuse("zeroing")
    }

    fn read(&self, _offset: usize, _dst: &mut [u8]) -> Result<()> {
        self.refuse("reading")
    }
}
