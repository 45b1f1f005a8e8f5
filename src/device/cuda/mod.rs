//! NVIDIA GPUs, through cudarc.
//!
//! One context, one stream, and modules that are loaded at the first launch of one of their kernels. Everything that a
//! device hands out keeps its [`Context`] alive. The last to be dropped unloads the modules and closes the stream.

mod conditional;
mod context;
mod driver;
mod errors;
mod event;
mod faults;
mod graph;
mod images;
mod memory;
mod nodes;
mod side;
mod staging;
mod template;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cudarc::driver::{result, sys};

use self::context::Context;
use self::event::Event;
use self::graph::CudaGraph;
use self::images::Images;
use self::memory::CudaMemory;
use self::side::Side;
use super::{embedded, Arch, Backend, DeviceId, Launch, Memory, Replay, SideQueue};
use crate::{Error, Result};

pub(super) use self::driver::{Driver, GpuInfo};

/// The kernels of this build.
const IMAGES: Images = Images {
    entries: embedded::ENTRIES,
    fatbins: embedded::FATBINS,
    targets: embedded::TARGETS,
    toolkit: embedded::TOOLKIT,
};

/// A GPU, on its own stream or another library's.
#[derive(Debug)]
struct Cuda(Arc<Context>);

/// The device `ordinal` on a stream of its own.
pub(super) fn open(ordinal: usize) -> Result<Arc<dyn Backend>> {
    // SAFETY: no stream is given.
    Ok(Arc::new(Cuda(unsafe { Context::open(ordinal, None, IMAGES)? })))
}

/// The device `ordinal` on another library's stream.
///
/// # Safety
/// `stream` is a valid stream that outlives the device and everything made from it.
pub(super) unsafe fn open_on_stream(ordinal: usize, stream: u64) -> Result<Arc<dyn Backend>> {
    // SAFETY: everything made from the device keeps the context alive, so by the contract `stream` outlives it.
    Ok(Arc::new(Cuda(unsafe { Context::open(ordinal, Some(stream), IMAGES)? })))
}

/// How a recording on the device `ordinal` skips the launches behind a closed gate, in words.
pub(super) fn skipping(ordinal: usize) -> Result<String> {
    // SAFETY: no stream is given.
    Ok(skips(&unsafe { Context::open(ordinal, None, IMAGES)? }))
}

fn skips(context: &Arc<Context>) -> String {
    match CudaGraph::probe(context) {
        Ok(()) => "conditional graph nodes skip the launches of a closed block".into(),
        Err(why) => format!("the launches of a closed block return at once, without conditional graph nodes: {why}"),
    }
}

// SAFETY: `CudaMemory` names the context; `Context::loaded`, through which every launch goes, checks that. Launches,
// replays and the freeing of memory are in the order of one stream, and a `CudaGraph` owns its launches.
unsafe impl Backend for Cuda {
    fn kind(&self) -> &'static str {
        "cuda"
    }

    fn name(&self) -> String {
        self.0.gpu.name.clone()
    }

    fn arch(&self) -> Arch {
        self.0.arch
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Memory>> {
        Ok(Arc::new(CudaMemory::new(&self.0, bytes)?))
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let context = &self.0;
        let loaded = context.loaded(launch)?;
        context.enter()?;
        loaded.enqueue(&context.stream)?;
        if context.synchronous {
            return context.synchronize(&faults::label(launch));
        }
        context.faults.launched(launch, 1);
        Ok(())
    }

    fn record(&self, launches: &Arc<[Launch]>) -> Result<Option<Box<dyn Replay>>> {
        if launches.is_empty() || self.0.synchronous {
            return Ok(None);
        }
        Ok(Some(Box::new(CudaGraph::new(&self.0, launches)?)))
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        let (free, _) = self.0.call("asking for free memory", result::mem_get_info)?;
        Ok(Some(free))
    }

    fn synchronize(&self) -> Result<()> {
        self.0.synchronize("waiting for the device")
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        let context = &self.0;
        let event = || Event::new(context, sys::CUevent_flags::CU_EVENT_DEFAULT);
        let (start, end) = (event()?, event()?);
        let record = |event: &Event| context.call("recording an event", || event.record(&context.stream));
        record(&start)?;
        work()?;
        record(&end)?;
        self.synchronize()?;
        end.since(&start)
    }

    fn failure(&self) -> Option<Error> {
        self.0.faults.fatal.get().cloned()
    }
}

// SAFETY: the driver allocated the bytes in the context for this value alone, and its methods check every range.
unsafe impl Memory for CudaMemory {
    fn device(&self) -> Option<DeviceId> {
        Some(self.context.id)
    }

    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn write(&self, offset: usize, src: &[u8]) -> Result<()> {
        self.copy_in(offset, src, &self.context.stream)
    }

    fn zero(&self, offset: usize, bytes: usize) -> Result<()> {
        let to = self.range("zeroing device memory", offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let stream = self.context.stream.cu_stream();
        // SAFETY: `call` makes the context current; `to` is `bytes` bytes of this memory, by `range`.
        self.context.call("zeroing device memory", || unsafe { result::memset_d8_async(to, 0, bytes, stream) })
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()> {
        let from = self.range("read of device memory", offset, dst.len())?;
        let mut staging = self.context.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `call` makes the context current; `from` is `dst.len()` bytes of this memory, by `range`.
        let read = || unsafe { staging.read(dst, from, &self.context.stream) };
        self.context.call("copying from the device", read)
    }

    fn side_queue(self: Arc<Self>) -> Result<Option<Box<dyn SideQueue>>> {
        // On a caller's stream all work is promised to that stream; a synchronous device does one thing at a time.
        if self.context.foreign || self.context.synchronous {
            return Ok(None);
        }
        Ok(Some(Box::new(Side::new(self)?)))
    }
}
