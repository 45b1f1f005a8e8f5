//! NVIDIA GPUs, through cudarc.
//!
//! One context, one stream, modules loaded when a kernel of theirs is first launched. Everything that a device hands out
//! keeps its [`Context`] alive, which unloads the modules and closes the stream when the last of it is dropped.

mod conditional;
mod context;
pub(crate) mod driver;
mod errors;
mod event;
mod faults;
mod graph;
mod memory;
mod side;
mod staging;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use self::context::{Context, Images};
use self::event::Event;
use self::graph::Graph;
use self::memory::CudaMemory;
use super::recording::Replay;
use super::{embedded, Arch, Backend, Device, Launch, Memory};
use crate::{Error, Result};

/// The kernels of this build.
fn embedded_images() -> Images {
    Images {
        entries: embedded::ENTRIES,
        fatbins: embedded::FATBINS,
        targets: embedded::TARGETS,
        toolkit: embedded::TOOLKIT,
    }
}

/// A GPU, or a foreign stream of one.
#[derive(Debug)]
struct Cuda(Arc<Context>);

/// The device `ordinal` on a stream of its own.
pub(super) fn open(ordinal: usize) -> Result<Device> {
    // SAFETY: no stream is given.
    let context = unsafe { Context::open(ordinal, None, embedded_images())? };
    Ok(Device::Kernels(Arc::new(Cuda(context))))
}

/// The device `ordinal` on another library's stream.
///
/// # Safety
/// `stream` is a valid stream that outlives the device and everything made of it.
pub(super) unsafe fn open_on_stream(ordinal: usize, stream: u64) -> Result<Device> {
    // SAFETY: the caller's promise.
    let context = unsafe { Context::open(ordinal, Some(stream), embedded_images())? };
    Ok(Device::Kernels(Arc::new(Cuda(context))))
}

/// How a recording on the device `ordinal` leaves out what is behind a closed gate, in words.
pub(super) fn skipping(ordinal: usize) -> Result<String> {
    // SAFETY: no stream is given.
    Ok(skips(&unsafe { Context::open(ordinal, None, embedded_images())? }))
}

fn skips(context: &Arc<Context>) -> String {
    match Graph::probe(context) {
        Ok(()) => "conditional graph nodes skip the launches of a closed block".into(),
        Err(error) => {
            format!("the launches of a closed block return at once, without conditional graph nodes: {error}")
        }
    }
}

impl Backend for Cuda {
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
        let function = context.function(launch.kernel())?;
        context.enter()?;
        context.enqueue(function, launch, &context.stream).map_err(|e| context.launch_failed(launch, e))?;
        if context.synchronous {
            return context.synchronize(&faults::label(launch));
        }
        context.faults.launched(launch, 1);
        Ok(())
    }

    fn record(&self, launches: &[Launch]) -> Result<Option<Box<dyn Replay>>> {
        if launches.is_empty() || self.0.synchronous {
            return Ok(None);
        }
        Ok(Some(Box::new(Graph::new(&self.0, launches)?)))
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        let (free, _) = self.0.call("asking for free memory", cudarc::driver::result::mem_get_info)?;
        Ok(Some(free))
    }

    fn synchronize(&self) -> Result<()> {
        self.0.synchronize("waiting for the device")
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        let start = Event::record(&self.0)?;
        work()?;
        let end = Event::record(&self.0)?;
        self.synchronize()?;
        end.since(&start)
    }

    fn failure(&self) -> Option<Error> {
        self.0.faults.fatal().cloned()
    }
}
