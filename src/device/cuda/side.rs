//! Copies to the device on a second stream.

use std::sync::{Arc, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{sys, CudaStream};

use super::context::Context;
use super::memory::CudaMemory;
use crate::device::{Memory, SideQueue};
use crate::{Error, Result};

/// A stream for copies to one memory, ordered with the device's stream by events.
#[derive(Debug)]
pub(super) struct Side {
    stream: Arc<CudaStream>,
    /// Recorded on the second stream, after the copies so far.
    filled: Event,
    /// Recorded on the device's stream, after what last used each place.
    released: [Event; 2],
    memory: Arc<CudaMemory>,
}

impl Side {
    /// A second stream for `memory`, whose copies come after all that is on the device's stream now.
    pub fn new(memory: Arc<CudaMemory>) -> Result<Self> {
        let context = memory.context().clone();
        let (stream, events) = context.call("opening a stream for copies", || {
            let stream = context.primary.new_stream()?;
            Ok((stream, [Event::new(&context)?, Event::new(&context)?, Event::new(&context)?]))
        })?;
        let [filled, one, other] = events;
        let side = Self { stream, filled, released: [one, other], memory };
        side.release(0)?;
        side.release(1)?;
        Ok(side)
    }

    fn call(&self, what: &str, call: impl FnOnce(&Context) -> Result<(), DriverError>) -> Result<()> {
        let context = self.memory.context();
        context.call(what, || call(context))
    }
}

impl SideQueue for Side {
    fn write(&self, place: usize, offset: usize, src: &[u8]) -> Result<()> {
        self.memory.check("write to device memory", offset, src.len())?;
        let Some(released) = self.released.get(place) else {
            return Err(Error::invalid("place", format!("{place}, expected 0 or 1")));
        };
        let mut staging = self.memory.context().staging.lock().unwrap_or_else(PoisonError::into_inner);
        self.call("copying to the device beside its launches", |_| {
            released.hold_back(&self.stream)?;
            // SAFETY: the context is current, and the range is inside this memory, which lives until the copy has ended:
            // dropping `self` orders the device's stream, on which it is freed, behind this one.
            unsafe { staging.write(self.memory.address() + offset as u64, src, self.stream.cu_stream()) }
        })
    }

    fn join(&self) -> Result<()> {
        self.call("waiting for copies beside the launches", |context| {
            self.filled.record(&self.stream)?;
            self.filled.hold_back(&context.stream)
        })
    }

    fn release(&self, place: usize) -> Result<()> {
        let Some(released) = self.released.get(place) else {
            return Err(Error::invalid("place", format!("{place}, expected 0 or 1")));
        };
        self.call("marking the end of a run", |context| released.record(&context.stream))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The memory is freed in the order of the device's stream, so that one must wait for the copies under way. Where
        // it cannot be told to, the host waits. Errors have nowhere to go from here; a lost context has lost its memory.
        if self.join().is_err() && self.memory.context().enter().is_ok() {
            // SAFETY: the stream is alive.
            let _ = unsafe { result::stream::synchronize(self.stream.cu_stream()) };
        }
    }
}

/// An event without a time.
#[derive(Debug)]
struct Event {
    event: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: the driver allows the use of an event from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// The context is current.
    fn new(context: &Arc<Context>) -> Result<Self, DriverError> {
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        Ok(Self { event, context: context.clone() })
    }

    /// Marks where `stream` is now.
    fn record(&self, stream: &CudaStream) -> Result<(), DriverError> {
        // SAFETY: both are alive.
        unsafe { result::event::record(self.event, stream.cu_stream()) }
    }

    /// Lets `stream` wait for what was marked last.
    fn hold_back(&self, stream: &CudaStream) -> Result<(), DriverError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive.
        unsafe { result::stream::wait_event(stream.cu_stream(), self.event, flags) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: destroyed once; the driver keeps what waits for it going. Errors have nowhere to go.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
