//! Events on a stream, for ordering and timing.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{sys, CudaStream};

use super::context::Context;
use crate::Result;

/// An event of the context: alive until this is dropped.
#[derive(Debug)]
pub(super) struct Event {
    event: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: the driver lets any thread use an event.
unsafe impl Send for Event {}
// SAFETY: as above, also concurrently.
unsafe impl Sync for Event {}

impl Event {
    /// An event to wait for, which by default also keeps the time at which the device reaches it.
    pub fn new(context: &Arc<Context>, flags: sys::CUevent_flags) -> Result<Self> {
        let event = context.call("making an event", || result::event::create(flags))?;
        Ok(Self { event, context: context.clone() })
    }

    /// Moves the event to the end of `stream`.
    pub fn record(&self, stream: &CudaStream) -> Result<(), DriverError> {
        // SAFETY: this type and the stream's keep both handles alive.
        unsafe { result::event::record(self.event, stream.cu_stream()) }
    }

    /// Makes `stream` wait for the event.
    pub fn hold_back(&self, stream: &CudaStream) -> Result<(), DriverError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: this type and the stream's keep both handles alive.
        unsafe { result::stream::wait_event(stream.cu_stream(), self.event, flags) }
    }

    /// The time from `start` to this event, both timed and passed. The clock ticks about every half microsecond.
    pub fn since(&self, start: &Self) -> Result<Duration> {
        let mut milliseconds = 0.0f32;
        self.context.call("reading the time of an event", || {
            // SAFETY: this type keeps both handles alive; the call writes one float, or fails.
            unsafe { (self.context.elapsed)(&mut milliseconds, start.event, self.event) }.result()
        })?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: destroyed here alone; the driver keeps an event until the device has passed it and nothing waits
            // for it. Errors have nowhere to go.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
