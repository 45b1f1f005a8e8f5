//! Copies between the host and a device during which the driver never sees memory of the caller.
//!
//! Bytes go through page-locked buffers. An asynchronous copy may use the host's memory after the call, even after a
//! failed wait. So a buffer is used again only after its event has passed, and leaked if the event cannot be recorded.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{sys, CudaStream};

/// The most bytes in one buffer; longer copies are split.
const PIECE: usize = 8 << 20;
/// The most buffers.
const BUFFERS: usize = 4;

/// The buffers of one context, which is current in every call.
#[derive(Debug, Default)]
pub(super) struct Staging {
    buffers: Vec<Pinned>,
    next: usize,
}

/// `bytes` bytes of page-locked memory from `host` on, owned by this value. No copy uses them once `idle` has passed.
#[derive(Debug)]
struct Pinned {
    host: *mut u8,
    bytes: usize,
    idle: sys::CUevent,
}

// SAFETY: a buffer owns its memory and its event, and the driver lets any thread use both.
unsafe impl Send for Pinned {}

impl Staging {
    /// Copies `src` to the device address `dst` on `stream`; does not wait for it.
    ///
    /// # Safety
    /// The context of `stream` is current and owns the `src.len()` bytes from `dst` on.
    pub unsafe fn write(&mut self, dst: u64, src: &[u8], stream: &CudaStream) -> Result<(), DriverError> {
        for (piece, at) in src.chunks(PIECE).zip((dst..).step_by(PIECE)) {
            let place = self.take(piece.len())?;
            let host = self.buffers[place].host;
            // SAFETY: `take` gave a buffer of at least the piece's bytes that no copy uses; the contract covers `dst`.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), host, piece.len());
                let staged = std::slice::from_raw_parts(host, piece.len());
                result::memcpy_htod_async(at, staged, stream.cu_stream())?;
            }
            self.mark(place, stream)?;
        }
        Ok(())
    }

    /// Copies from the device address `src` to `dst` on `stream`, and waits for it.
    ///
    /// # Safety
    /// The context of `stream` is current and owns the `dst.len()` bytes from `src` on.
    pub unsafe fn read(&mut self, dst: &mut [u8], src: u64, stream: &CudaStream) -> Result<(), DriverError> {
        for (piece, at) in dst.chunks_mut(PIECE).zip((src..).step_by(PIECE)) {
            let place = self.take(piece.len())?;
            let host = self.buffers[place].host;
            // SAFETY: `take` gave a buffer of at least the piece's bytes that no copy uses; the contract covers `src`.
            unsafe {
                let staged = std::slice::from_raw_parts_mut(host, piece.len());
                result::memcpy_dtoh_async(staged, at, stream.cu_stream())?;
            }
            self.mark(place, stream)?;
            self.buffers[place].wait()?;
            // SAFETY: the copy to the buffer, of at least the piece's bytes, has ended.
            unsafe { std::ptr::copy_nonoverlapping(host, piece.as_mut_ptr(), piece.len()) };
        }
        Ok(())
    }

    /// Notes that the buffer is in use until `stream` has come this far.
    fn mark(&mut self, place: usize, stream: &CudaStream) -> Result<(), DriverError> {
        // SAFETY: the buffer owns the event, and the stream's type keeps the stream alive.
        let marked = unsafe { result::event::record(self.buffers[place].idle, stream.cu_stream()) };
        if marked.is_err() {
            // A copy uses it, and its end cannot be observed: leaked, as it has no `Drop`.
            self.buffers.swap_remove(place);
        }
        marked
    }

    /// The place of a buffer of at least `bytes` bytes that no copy uses.
    fn take(&mut self, bytes: usize) -> Result<usize, DriverError> {
        if let Some(place) = self.buffers.iter().position(|b| b.bytes >= bytes && b.is_idle()) {
            return Ok(place);
        }
        if self.buffers.len() < BUFFERS {
            self.buffers.push(Pinned::new(bytes)?);
            return Ok(self.buffers.len() - 1);
        }
        let place = self.next % BUFFERS;
        self.next += 1;
        self.buffers[place].wait()?;
        if self.buffers[place].bytes < bytes {
            let larger = Pinned::new(bytes)?;
            let smaller = std::mem::replace(&mut self.buffers[place], larger);
            // SAFETY: its event has passed.
            unsafe { smaller.free() };
        }
        Ok(place)
    }

    /// Frees the buffers.
    ///
    /// # Safety
    /// Every stream that copied has been waited for.
    pub unsafe fn free(&mut self) {
        // SAFETY: by the contract no copy is under way.
        self.buffers.drain(..).for_each(|buffer| unsafe { buffer.free() });
    }
}

impl Pinned {
    fn new(bytes: usize) -> Result<Self, DriverError> {
        let bytes = bytes.next_power_of_two().max(4096);
        let idle = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        // SAFETY: flags 0 ask for plain page-locked memory.
        match unsafe { result::malloc_host(bytes, 0) } {
            Ok(host) => Ok(Self { host: host.cast(), bytes, idle }),
            Err(error) => {
                // SAFETY: the event was created above and is used by nothing.
                let _ = unsafe { result::event::destroy(idle) };
                Err(error)
            }
        }
    }

    fn is_idle(&self) -> bool {
        // SAFETY: the buffer owns the event; one that was never recorded counts as passed.
        unsafe { result::event::query(self.idle) }.is_ok()
    }

    fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the buffer owns the event.
        unsafe { result::event::synchronize(self.idle) }
    }

    /// # Safety
    /// No copy uses the buffer.
    unsafe fn free(self) {
        // SAFETY: the buffer owns both and ends here; by the contract no copy uses them. Errors have nowhere to go.
        unsafe {
            let _ = result::event::destroy(self.idle);
            let _ = result::free_host(self.host.cast());
        }
    }
}
