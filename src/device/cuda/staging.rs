//! Copies from the host that neither wait for the device nor borrow the caller's memory.
//!
//! Bytes go through page-locked buffers: an asynchronous copy from ordinary memory may still read it after it returns.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::faults::NOT_READY;

/// The most bytes that one buffer holds; longer copies go in pieces.
const PIECE: usize = 8 << 20;
/// Buffers that may be in flight at once.
const BUFFERS: usize = 4;

/// Page-locked buffers, each with the event after which it may be used again.
#[derive(Debug, Default)]
pub(super) struct Staging {
    buffers: Vec<Buffer>,
    next: usize,
}

#[derive(Debug)]
struct Buffer {
    host: *mut u8,
    bytes: usize,
    free_again: sys::CUevent,
}

// SAFETY: the memory and the event belong to the buffer alone, and both may be used from any thread.
unsafe impl Send for Staging {}

impl Staging {
    /// Copies `src` to the device address `dst` on `stream`; `src` may change once this returns.
    ///
    /// # Safety
    /// The context of `stream` is current, and `src.len()` bytes from `dst` on are memory of it.
    pub unsafe fn copy(&mut self, dst: u64, src: &[u8], stream: sys::CUstream) -> Result<(), DriverError> {
        let mut at = dst;
        for piece in src.chunks(PIECE) {
            let buffer = self.take(piece.len())?;
            // SAFETY: the buffer is at least as long as the piece, and nothing reads it now.
            let staged = unsafe {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), buffer.host, piece.len());
                std::slice::from_raw_parts(buffer.host, piece.len())
            };
            // SAFETY: the caller's promise; the buffer is not written before the event that follows the copy.
            unsafe {
                result::memcpy_htod_async(at, staged, stream)?;
                result::event::record(buffer.free_again, stream)?;
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// A buffer of at least `bytes` bytes that no copy reads.
    fn take(&mut self, bytes: usize) -> Result<&mut Buffer, DriverError> {
        let idle = self.buffers.iter().position(|b| b.bytes >= bytes && b.is_idle());
        let place = match idle {
            Some(place) => place,
            None if self.buffers.len() < BUFFERS => {
                self.buffers.push(Buffer::new(bytes)?);
                self.buffers.len() - 1
            }
            None => {
                let place = self.next % BUFFERS;
                self.next += 1;
                self.buffers[place].wait()?;
                if self.buffers[place].bytes < bytes {
                    let larger = Buffer::new(bytes)?;
                    std::mem::replace(&mut self.buffers[place], larger).free();
                }
                place
            }
        };
        Ok(&mut self.buffers[place])
    }

    /// Frees the buffers; no copy may be in flight.
    pub fn free(&mut self) {
        self.buffers.drain(..).for_each(Buffer::free);
    }
}

impl Buffer {
    fn new(bytes: usize) -> Result<Self, DriverError> {
        let bytes = bytes.next_power_of_two().max(4096);
        let free_again = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        // SAFETY: flags 0 ask for plain page-locked memory.
        match unsafe { result::malloc_host(bytes, 0) } {
            Ok(host) => Ok(Self { host: host.cast(), bytes, free_again }),
            Err(error) => {
                // SAFETY: the event was created above and is used by nothing.
                let _ = unsafe { result::event::destroy(free_again) };
                Err(error)
            }
        }
    }

    fn is_idle(&self) -> bool {
        // SAFETY: the event is alive; one that was never recorded counts as done. An error is for the next call to tell.
        !matches!(unsafe { result::event::query(self.free_again) }, Err(e) if e.0 as u32 == NOT_READY)
    }

    fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.free_again) }
    }

    fn free(self) {
        // SAFETY: no copy reads the buffer. Errors have nowhere to go.
        unsafe {
            let _ = result::event::destroy(self.free_again);
            let _ = result::free_host(self.host.cast());
        }
    }
}
