//! Events that keep the time at which the device reaches them.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{result, sys};

use super::context::Context;
use crate::Result;

/// An event of the context's stream.
#[derive(Debug)]
pub(super) struct Event {
    event: sys::CUevent,
    context: Arc<Context>,
}

impl Event {
    /// Puts a new event on the stream.
    pub fn record(context: &Arc<Context>) -> Result<Self> {
        let event = context.call("making an event", || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
        let event = Self { event, context: context.clone() };
        context.call("recording an event", || {
            // SAFETY: the event was made above in this context, and the stream is alive.
            unsafe { result::event::record(event.event, context.stream.cu_stream()) }
        })?;
        Ok(event)
    }

    /// The time from `start` to this event, which the device has both passed. The clock ticks about every half microsecond.
    pub fn since(&self, start: &Self) -> Result<Duration> {
        let elapsed = self.context.elapsed;
        let mut milliseconds = 0.0f32;
        self.context.call("reading the time of an event", || {
            // SAFETY: both events are alive and of one context; the call writes one float.
            unsafe { elapsed(&mut milliseconds, start.event, self.event) }.result()
        })?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: the handle is destroyed once; one that the device has not reached is freed when it does. Errors
            // have nowhere to go.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
