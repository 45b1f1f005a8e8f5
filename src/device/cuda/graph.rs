//! Launches put into a CUDA graph once.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::conditional::{Bound, Source};
use super::context::Context;
use super::memory::CudaMemory;
use crate::device::recording::Replay;
use crate::device::{conditions, Launch, View};
use crate::Result;

/// An executable graph. Whoever holds it keeps the launches' memory alive.
#[derive(Debug)]
pub(super) struct Graph {
    /// The driver does not lock it.
    executable: Mutex<Executable>,
    /// Dropped behind the executable, whose conditions it owns.
    source: Option<Source>,
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
    /// Makes a graph of `launches`, at least one, without running them. What is behind a closed gate is skipped by
    /// conditional nodes, or where those fail for whatever reason by the launches themselves.
    pub fn new(context: &Arc<Context>, launches: &[Launch]) -> Result<Self> {
        // Loading is not allowed while a stream captures.
        let bound = |launch| Ok((launch, context.function(Launch::kernel(launch))?));
        let bound = launches.iter().map(bound).collect::<Result<Vec<Bound>>>()?;
        let gated = launches.iter().any(|launch| launch.gate().is_some());
        let skipping = if gated { conditional(context, &bound).ok() } else { None };
        let (executable, source) = match skipping {
            Some((executable, source)) => (executable, Some(source)),
            None => (capture(context, &bound)?, None),
        };
        Ok(Self {
            executable: Mutex::new(Executable(executable)),
            source,
            first: launches[0].clone(),
            launches: launches.len(),
            context: context.clone(),
        })
    }

    /// Makes a graph with a conditional node; fails where [`new`](Self::new) would have to do without.
    pub fn probe(context: &Arc<Context>) -> Result<()> {
        let gate = View::whole(Arc::new(CudaMemory::new(context, 4)?));
        // SAFETY: it is not launched, so the handle is not used.
        let launches = unsafe { conditions::launches(&[(gate.clone(), 0)]) };
        let launch = launches[0].clone().gated(gate);
        let (executable, _source) = conditional(context, &[(&launch, context.function(launch.kernel())?)])?;
        // SAFETY: the handle is destroyed once, before its source is.
        context.call("destroying a graph", || unsafe { result::graph::exec_destroy(executable) })
    }
}

fn conditional(context: &Arc<Context>, launches: &[Bound]) -> Result<(sys::CUgraphExec, Source)> {
    let source = Source::new(context, launches)?;
    Ok((source.instantiate()?, source))
}

/// Captures `launches` on a stream of its own, so that the caller's stream is left alone and may be the null stream, which
/// cannot be captured.
fn capture(context: &Arc<Context>, launches: &[Bound]) -> Result<sys::CUgraphExec> {
    context.enter()?;
    let failed = |e| context.faults.error("capturing a graph", e);
    let stream = context.primary.new_stream().map_err(failed)?;
    stream.begin_capture(sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(failed)?;
    let put = |&(launch, function): &Bound| {
        context.enqueue(function, launch, &stream).map_err(|e| context.launch_failed(launch, e))
    };
    let enqueued = launches.iter().try_for_each(put);
    // The capture ends in any case, or the stream could not be destroyed.
    // SAFETY: the stream captures.
    let graph = unsafe { result::stream::end_capture(stream.cu_stream()) };
    if let (Err(_), Ok(graph)) = (&enqueued, &graph) {
        // A launch that was refused does not end the capture: there is a graph, of the launches before it.
        // SAFETY: the graph was made above and nothing else has it. Errors have nowhere to go beside the first.
        let _ = unsafe { result::graph::destroy(*graph) };
    }
    enqueued?;
    let graph = graph.map_err(failed)?;
    // SAFETY: the graph was made above; the executable is a copy of its own.
    unsafe {
        let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
        let _ = result::graph::destroy(graph);
        executable.map_err(failed)
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
        if self.source.is_some() {
            // Nothing says that a replay under way does without the source.
            let _ = self.context.synchronize("ending a graph");
        }
        let executable = self.executable.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the handle is destroyed once; a replay under way ends first. Errors have nowhere to go.
        let _ = unsafe { result::graph::exec_destroy(executable.0) };
    }
}
