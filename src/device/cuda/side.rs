//! Copies to the device on a second stream.

use std::sync::Arc;

use cudarc::driver::{result, sys, CudaStream};

use super::event::Event;
use super::memory::CudaMemory;
use crate::device::SideQueue;
use crate::{Error, Result};

/// A stream for copies to one memory, ordered with the device's stream by events.
#[derive(Debug)]
pub(super) struct Side {
    stream: Arc<CudaStream>,
    /// Recorded on the second stream, after the copies so far.
    filled: Event,
    /// For each place, recorded on the device's stream after its last use.
    released: [Event; 2],
    memory: Arc<CudaMemory>,
}

impl Side {
    /// A second stream for `memory`. Its copies come after the work that is on the device's stream now.
    pub fn new(memory: Arc<CudaMemory>) -> Result<Self> {
        let context = &memory.context;
        let stream = context.call("opening a stream for copies", || context.primary.new_stream())?;
        let event = || Event::new(context, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let (filled, released) = (event()?, [event()?, event()?]);
        let side = Self { stream, filled, released, memory };
        side.release(0)?;
        side.release(1)?;
        Ok(side)
    }

    fn released(&self, place: usize) -> Result<&Event> {
        self.released.get(place).ok_or_else(|| Error::invalid("place", format!("{place}, expected 0 or 1")))
    }
}

impl SideQueue for Side {
    fn write(&self, place: usize, offset: usize, src: &[u8]) -> Result<()> {
        let released = self.released(place)?;
        let wait = || released.hold_back(&self.stream);
        self.memory.context.call("copying to the device during its launches", wait)?;
        // Dropping `self` makes the device's stream wait for this one, before the memory is dropped.
        self.memory.copy_in(offset, src, &self.stream)
    }

    fn join(&self) -> Result<()> {
        let context = &self.memory.context;
        context.call("waiting for copies during launches", || {
            self.filled.record(&self.stream)?;
            self.filled.hold_back(&context.stream)
        })
    }

    fn release(&self, place: usize) -> Result<()> {
        let released = self.released(place)?;
        let context = &self.memory.context;
        context.call("marking the end of a run", || released.record(&context.stream))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The memory is freed in the order of the device's stream, which must wait for the copies under way. If it
        // cannot be told to, the host waits. Errors have nowhere to go; a lost context has lost its memory.
        if self.join().is_err() && self.memory.context.enter().is_ok() {
            // SAFETY: `self` keeps the stream alive.
            let _ = unsafe { result::stream::synchronize(self.stream.cu_stream()) };
        }
    }
}
