//! Copies between the host and a device that never leave the driver with memory of the caller.
//!
//! Bytes go through page-locked buffers. An asynchronous copy may still use the host's memory after it was asked for, even
//! after a failed wait; such a buffer is not used again before its event has passed, and lost where it never will.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

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
    /// Copies `src` to the device address `dst` on `stream`; does not wait for it.
    ///
    /// # Safety
    /// The context of `stream` is current, and `src.len()` bytes from `dst` on are memory of it.
    pub unsafe fn write(&mut self, dst: u64, src: &[u8], stream: sys::CUstream) -> Result<(), DriverError> {
        let mut at = dst;
        for piece in src.chunks(PIECE) {
            let place = self.take(piece.len())?;
            let host = self.buffers[place].host;
            // SAFETY: the buffer is at least as long as the piece and nothing else uses it until its event has passed;
            // for the device's side, the caller's promise.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), host, piece.len());
                let staged = std::slice::from_raw_parts(host, piece.len());
                result::memcpy_htod_async(at, staged, stream)?;
            }
            self.mark(place, stream)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Copies from the device address `src` to `dst` on `stream`, and waits for it.
    ///
    /// # Safety
    /// The context of `stream` is current, and `dst.len()` bytes from `src` on are memory of it.
    pub unsafe fn read(&mut self, dst: &mut [u8], src: u64, stream: sys::CUstream) -> Result<(), DriverError> {
        let mut at = src;
        for piece in dst.chunks_mut(PIECE) {
            let place = self.take(piece.len())?;
            let host = self.buffers[place].host;
            // SAFETY: the buffer is at least as long as the piece and nothing else uses it until its event has passed;
            // for the device's side, the caller's promise.
            unsafe { result::memcpy_dtoh_async(std::slice::from_raw_parts_mut(host, piece.len()), at, stream)? };
            self.mark(place, stream)?;
            self.buffers[place].wait()?;
            // SAFETY: the copy to the buffer has ended.
            unsafe { std::ptr::copy_nonoverlapping(host, piece.as_mut_ptr(), piece.len()) };
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Notes that the buffer is in use until `stream` has come this far.
    fn mark(&mut self, place: usize, stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: the event and the stream are alive.
        let marked = unsafe { result::event::record(self.buffers[place].free_again, stream) };
        if marked.is_err() {
            // A copy uses it, and nothing will tell when it ends.
            self.buffers.swap_remove(place);
        }
        marked
    }

    /// The place of a buffer of at least `bytes` bytes that no copy uses.
    fn take(&mut self, bytes: usize) -> Result<usize, DriverError> {
        let idle = self.buffers.iter().position(|b| b.bytes >= bytes && b.is_idle());
        if let Some(place) = idle {
            return Ok(place);
        }
        if self.buffers.len() < BUFFERS {
            self.buffers.push(Buffer::new(bytes)?);
            return Ok(self.buffers.len() - 1);
        }
        let place = self.next % BUFFERS;
        self.next += 1;
        self.buffers[place].wait()?;
        if self.buffers[place].bytes < bytes {
            let larger = Buffer::new(bytes)?;
            std::mem::replace(&mut self.buffers[place], larger).free();
        }
        Ok(place)
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
        // SAFETY: the event is alive; one that was never recorded counts as passed.
        unsafe { result::event::query(self.free_again) }.is_ok()
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
