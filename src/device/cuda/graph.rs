//! Launches recorded as a CUDA graph.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::conditional;
use super::context::{Context, Loaded};
use super::memory::CudaMemory;
use super::template::Template;
use crate::device::{conditions, Launch, Replay, View};
use crate::Result;

/// Launches as an executable graph, which it keeps alive.
#[derive(Debug)]
pub(super) struct CudaGraph {
    /// Locked, as the driver does not lock it.
    executable: Mutex<Executable>,
    launches: Arc<[Launch]>,
    context: Arc<Context>,
}

/// An executable graph, owned by this value and destroyed with it.
#[derive(Debug)]
struct Executable {
    graph: sys::CUgraphExec,
    /// Owns the conditions of the graph's nodes, if it has such nodes.
    template: Option<Template>,
    context: Arc<Context>,
}

// SAFETY: the driver lets any thread use the handle, one at a time; this cannot be shared, as it is not `Sync`.
unsafe impl Send for Executable {}

impl CudaGraph {
    /// A graph of `launches`, at least one; runs nothing. Conditional nodes skip the launches behind a closed gate. If
    /// such nodes fail for any reason, these launches start and return at once.
    pub fn new(context: &Arc<Context>, launches: &Arc<[Launch]>) -> Result<Self> {
        // Loading is not allowed while a stream captures.
        let loaded = launches.iter().map(|launch| context.loaded(launch)).collect::<Result<Vec<Loaded>>>()?;
        let gated = launches.iter().any(|launch| launch.gate().is_some());
        let skipping = gated.then(|| Executable::conditional(context, &loaded).ok()).flatten();
        let executable = skipping.map_or_else(|| Executable::captured(context, &loaded), Ok)?;
        Ok(Self { executable: Mutex::new(executable), launches: launches.clone(), context: context.clone() })
    }

    /// Makes a graph with a conditional node; fails if [`new`](Self::new) would do without such nodes.
    pub fn probe(context: &Arc<Context>) -> Result<()> {
        let gate = View::whole(Arc::new(CudaMemory::new(context, 4)?));
        // SAFETY: it is not launched, so the handle is not used.
        let launches = unsafe { conditions::launches(&[(gate.clone(), 0)]) };
        let launch = launches[0].clone().gated(gate);
        Executable::conditional(context, &[context.loaded(&launch)?]).map(drop)
    }
}

impl Executable {
    fn conditional(context: &Arc<Context>, launches: &[Loaded]) -> Result<Self> {
        let template = conditional::template(context, launches)?;
        let graph = context.call(conditional::MAKING, || template.instantiate())?;
        Ok(Self { graph, template: Some(template), context: context.clone() })
    }

    fn captured(context: &Arc<Context>, launches: &[Loaded]) -> Result<Self> {
        let template = capture(context, launches)?;
        let graph = context.call("capturing a graph", || template.instantiate())?;
        Ok(Self { graph, template: None, context: context.clone() })
    }
}

/// Captures `launches` on a stream of its own: the caller's stream is left alone, and a null stream cannot be captured.
fn capture(context: &Arc<Context>, launches: &[Loaded]) -> Result<Template> {
    context.enter()?;
    let failed = |e| context.faults.error("capturing a graph", e);
    let stream = context.primary.new_stream().map_err(failed)?;
    stream.begin_capture(sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(failed)?;
    let enqueued = launches.iter().try_for_each(|loaded| loaded.enqueue(&stream));
    // The capture must end, or the stream could not be destroyed. A launch that was refused does not end it.
    // SAFETY: the stream is alive and captures.
    let graph = unsafe { result::stream::end_capture(stream.cu_stream()) };
    // SAFETY: the capture made the graph, in this context, for its caller to destroy.
    let template = graph.map(|graph| unsafe { Template::owning(graph, context) });
    enqueued?;
    template.map_err(failed)
}

impl Replay for CudaGraph {
    fn replay(&self) -> Result<()> {
        let executable = self.executable.lock().unwrap_or_else(PoisonError::into_inner);
        self.context.call("replaying a graph", || {
            // SAFETY: `executable` owns the graph, locked against other threads; the context keeps its stream alive.
            unsafe { result::graph::launch(executable.graph, self.context.stream.cu_stream()) }
        })?;
        self.context.faults.launched(&self.launches[0], self.launches.len());
        Ok(())
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        if self.template.is_some() {
            // A replay under way may need the template: no document rules that out.
            let _ = self.context.synchronize("ending a graph");
        }
        // SAFETY: destroyed here alone, before its template; a replay under way ends first. Errors have nowhere to go.
        let _ = unsafe { result::graph::exec_destroy(self.graph) };
    }
}
