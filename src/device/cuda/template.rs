//! Graphs from which executable ones are made.

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::context::Context;
use crate::Result;

/// A graph of the driver, owned by this value and destroyed with it.
#[derive(Debug)]
pub(super) struct Template {
    pub graph: sys::CUgraph,
    pub context: Arc<Context>,
}

// SAFETY: the driver lets any thread use a graph, one at a time, and a template cannot be shared: it is not `Sync`.
unsafe impl Send for Template {}

impl Template {
    pub fn empty(context: &Arc<Context>) -> Result<Self> {
        let mut graph = null_mut();
        // SAFETY: the call writes one handle.
        context.call("making a graph", || unsafe { sys::cuGraphCreate(&mut graph, 0) }.result())?;
        Ok(Self { graph, context: context.clone() })
    }

    /// Takes `graph` over.
    ///
    /// # Safety
    /// `graph` is a graph of `context` that nothing else destroys.
    pub unsafe fn owning(graph: sys::CUgraph, context: &Arc<Context>) -> Self {
        Self { graph, context: context.clone() }
    }

    /// An executable graph, the caller's to destroy. With conditional nodes, one at a time, which this must outlive.
    pub fn instantiate(&self) -> Result<sys::CUgraphExec, DriverError> {
        // SAFETY: this value owns the graph.
        unsafe { result::graph::instantiate(self.graph, sys::CUgraphInstantiate_flags(0)) }
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // A graph belongs to no context that must be current; only a lost one has lost its graphs.
        if self.context.faults.fatal.get().is_none() {
            // SAFETY: destroyed here alone, with its nodes and their bodies. Errors have nowhere to go.
            let _ = unsafe { result::graph::destroy(self.graph) };
        }
    }
}
