//! Launches captured once into a CUDA graph.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::context::{Context, Function};
use crate::device::recording::Replay;
use crate::device::Launch;
use crate::Result;

/// An executable graph. Whoever holds it keeps the launches' memory alive.
#[derive(Debug)]
pub(super) struct Graph {
    /// The driver does not lock it.
    executable: Mutex<Executable>,
    /// Stands for the graph in errors.
    first: Launch,
    launches: usize,
    context: Arc<Context>,
}

#[derive(Debug)]
struct Executable(sys::CUgraphExec);

// SAFETY: the driver allows the use of the handle from any thread, one at a time.
unsafe impl Send for Executable {}

impl Graph {
    /// Captures `launches`, at least one, on a stream of its own, so that the caller's stream is left alone and may be
    /// the null stream, which cannot be captured.
    pub fn capture(context: &Arc<Context>, launches: &[Launch]) -> Result<Self> {
        // Loading is not allowed while a stream captures.
        let functions = launches.iter().map(|l| context.function(l.kernel())).collect::<Result<Vec<_>>>()?;
        context.enter()?;
        let failed = |e| context.faults.error("capturing a graph", e);
        let stream = context.primary.new_stream().map_err(failed)?;
        stream.begin_capture(sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(failed)?;
        let put = |(launch, &function): (&Launch, &Function)| {
            context.enqueue(function, launch, &stream).map_err(|e| context.launch_failed(launch, e))
        };
        let enqueued = launches.iter().zip(&functions).try_for_each(put);
        // The capture ends in any case, or the stream could not be destroyed.
        // SAFETY: the stream captures.
        let graph = unsafe { result::stream::end_capture(stream.cu_stream()) };
        enqueued?;
        let graph = graph.map_err(failed)?;
        // SAFETY: the graph was made above; the executable is a copy of its own.
        let executable = unsafe {
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            executable
        };
        Ok(Self {
            executable: Mutex::new(Executable(executable.map_err(failed)?)),
            first: launches[0].clone(),
            launches: launches.len(),
            context: context.clone(),
        })
    }
}

impl Replay for Graph {
    fn replay(&self) -> Result<()> {
        let executable = self.executable.lock().unwrap_or_else(PoisonError::into_inner);
        self.context.call("replaying a graph", || {
            // SAFETY: the graph and the stream are alive, and the lock keeps other threads away.
            unsafe { result::graph::launch(executable.0, self.context.stream.cu_stream()) }
        })?;
        self.context.faults.launched(&self.first, self.launches);
        Ok(())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        let executable = self.executable.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the handle is destroyed once; a replay under way ends first. Errors have nowhere to go.
        let _ = unsafe { result::graph::exec_destroy(executable.0) };
    }
}
