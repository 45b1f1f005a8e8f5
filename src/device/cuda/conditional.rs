//! Launches as a CUDA graph in which those behind a closed gate are not started: each run of launches behind one gate is
//! the body of an IF node.
//!
//! cudarc declares the node and its handle only where the machine that builds has CUDA 12.3 or later, so both are
//! declared here and looked up in the driver that runs. The layouts are those of `cuda.h`.

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::context::{parameters, Context, Function};
use crate::device::{conditions, Launch, View};
use crate::{Error, Result};

/// The functions of the driver that such a graph is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Api {
    create_handle: CreateHandle,
    add_node: AddNode,
}

/// `cuGraphConditionalHandleCreate`: handle, graph, context, the value when a replay begins, flags.
type CreateHandle = unsafe extern "C" fn(*mut u64, sys::CUgraph, sys::CUcontext, u32, u32) -> sys::CUresult;

/// `cuGraphAddNode`, the first of its name: node, graph, the nodes that it waits for and their number, what it is.
type AddNode = unsafe extern "C" fn(
    *mut sys::CUgraphNode,
    sys::CUgraph,
    *const sys::CUgraphNode,
    usize,
    *mut NodeParams,
) -> sys::CUresult;

/// `CUgraphNodeParams`.
#[repr(C)]
struct NodeParams {
    kind: u32,
    reserved0: [u32; 3],
    node: Node,
    reserved2: u64,
}

#[repr(C)]
union Node {
    /// What a node does not use must be zero.
    zeros: [u64; 29],
    kernel: KernelNode,
    condition: ConditionNode,
}

/// `CUDA_KERNEL_NODE_PARAMS_v3`.
#[repr(C)]
#[derive(Clone, Copy)]
struct KernelNode {
    function: sys::CUfunction,
    grid: [u32; 3],
    threads: [u32; 3],
    shared_bytes: u32,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
    /// Read where there is no function.
    kernel: *mut c_void,
    /// As above.
    context: sys::CUcontext,
}

/// `CUDA_CONDITIONAL_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ConditionNode {
    handle: u64,
    kind: u32,
    bodies: u32,
    /// Where the driver has put `bodies` graphs, its own, once the node is there.
    graphs: *mut sys::CUgraph,
    context: sys::CUcontext,
}

const _: () = assert!(size_of::<KernelNode>() == 72 && size_of::<ConditionNode>() == 32);
const _: () = assert!(size_of::<NodeParams>() == 256 && std::mem::offset_of!(NodeParams, node) == 16);

/// `CU_GRAPH_NODE_TYPE_KERNEL`.
const KERNEL: u32 = 0;
/// `CU_GRAPH_NODE_TYPE_CONDITIONAL`.
const CONDITIONAL: u32 = 13;
/// `CU_GRAPH_COND_TYPE_IF`.
const IF: u32 = 0;
/// `CU_GRAPH_COND_ASSIGN_DEFAULT`: every replay begins with the handle's first value.
const ASSIGN_DEFAULT: u32 = 1;
/// The first value: a node whose condition nothing has set runs its body, whose kernels look at their gate themselves.
const OPEN: u32 = 1;

impl Api {
    /// The first CUDA with all of it, as [`Driver::version`](super::driver::Driver::version) counts.
    pub const SINCE: i32 = 12_040;

    /// The driver's functions, if it has both.
    pub fn find(library: &libloading::Library) -> Option<Self> {
        // SAFETY: the symbols have these types in every driver that has them.
        unsafe {
            let create_handle = *library.get::<CreateHandle>(b"cuGraphConditionalHandleCreate").ok()?;
            let add_node = *library.get::<AddNode>(b"cuGraphAddNode").ok()?;
            Some(Self { create_handle, add_node })
        }
    }
}

/// A launch and its kernel, loaded.
pub(super) type Bound<'a> = (&'a Launch, Function);

/// A graph from which an executable one is made, and which outlives that: the handles of its nodes are its own, and it
/// cannot be copied.
#[derive(Debug)]
pub(super) struct Source {
    graph: sys::CUgraph,
    context: Arc<Context>,
}

// SAFETY: the driver allows the use of the handle from any thread, one at a time; only `drop` uses it once it is made.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

impl Source {
    /// The graph of `launches`, one after the other. Fails where this driver and this device have no such nodes.
    ///
    /// The launch that sets the conditions comes right before the first that is behind a gate.
    pub fn new(context: &Arc<Context>, launches: &[Bound]) -> Result<Self> {
        let api = context.conditional.as_ref();
        let api = api.map_err(|reason| Error::unsupported("conditional graph nodes", reason.as_str()))?;
        let setter = context.function(conditions::kernel())?;
        context.enter()?;
        let source = Self::empty(context)?;
        let gate = |(launch, _): &Bound| launch.gate().map(View::address);
        let first = launches.iter().position(|bound| gate(bound).is_some()).unwrap_or(launches.len());
        let (before, behind) = launches.split_at(first);
        // A handle belongs to one node, so a gate has one for each of its runs.
        let handle = |run: &[Bound]| run[0].0.gate().map(|gate| Ok((gate.clone(), source.handle(api)?))).transpose();
        let runs: Vec<&[Bound]> = behind.chunk_by(|a, b| gate(a) == gate(b)).collect();
        let handles = runs.iter().map(|run| handle(run)).collect::<Result<Vec<_>>>()?;
        let set: Vec<(View, u64)> = handles.iter().flatten().cloned().collect();
        // SAFETY: the handles are this graph's, and each gets its node below.
        let set = unsafe { conditions::launches(&set) };

        let mut main = Chain { api, context, graph: source.graph, last: None };
        before.iter().try_for_each(|bound| main.launch(bound))?;
        set.iter().try_for_each(|launch| main.launch(&(launch, setter)))?;
        for (run, handle) in runs.iter().zip(&handles) {
            match handle {
                None => run.iter().try_for_each(|bound| main.launch(bound))?,
                Some((_, handle)) => {
                    let mut body = main.branch(*handle)?;
                    run.iter().try_for_each(|bound| body.launch(bound))?;
                }
            }
        }
        Ok(source)
    }

    fn empty(context: &Arc<Context>) -> Result<Self> {
        let mut graph = null_mut();
        // SAFETY: the call writes one handle.
        unsafe { sys::cuGraphCreate(&mut graph, 0) }.result().map_err(|e| failed(context, e))?;
        Ok(Self { graph, context: context.clone() })
    }

    /// A new condition of this graph.
    fn handle(&self, api: &Api) -> Result<u64> {
        let mut handle = 0;
        let context = self.context.primary.cu_ctx();
        // SAFETY: the graph and the context are alive; the call writes one handle.
        let made = unsafe { (api.create_handle)(&mut handle, self.graph, context, OPEN, ASSIGN_DEFAULT) };
        made.result().map_err(|e| failed(&self.context, e))?;
        Ok(handle)
    }

    /// The executable graph; there may be one at a time.
    pub fn instantiate(&self) -> Result<sys::CUgraphExec> {
        // SAFETY: the graph is alive.
        let executable = unsafe { result::graph::instantiate(self.graph, sys::CUgraphInstantiate_flags(0)) };
        executable.map_err(|e| failed(&self.context, e))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: destroyed once, with its nodes and their bodies. Errors have nowhere to go.
            let _ = unsafe { result::graph::destroy(self.graph) };
        }
    }
}

fn failed(context: &Context, error: DriverError) -> Error {
    context.faults.error("making a graph with conditional nodes", error)
}

/// Nodes of a graph, each of which waits for the one before.
struct Chain<'a> {
    api: &'a Api,
    context: &'a Context,
    graph: sys::CUgraph,
    last: Option<sys::CUgraphNode>,
}

impl<'a> Chain<'a> {
    fn launch(&mut self, &(launch, function): &Bound) -> Result<()> {
        let kernel = launch.kernel();
        let mut gate = 0;
        let mut params = parameters(launch, &mut gate);
        let mut node = Node { zeros: [0; 29] };
        node.kernel = KernelNode {
            function: function.raw(),
            grid: launch.grid(),
            threads: [kernel.threads, 1, 1],
            shared_bytes: kernel.shared_bytes,
            params: params.as_mut_ptr(),
            extra: null_mut(),
            kernel: null_mut(),
            context: null_mut(),
        };
        self.add(KERNEL, node).map(|_| ())
    }

    /// Adds a node that runs its body where the condition is set; the body is empty.
    fn branch(&mut self, handle: u64) -> Result<Chain<'a>> {
        let mut node = Node { zeros: [0; 29] };
        let context = self.context.primary.cu_ctx();
        node.condition = ConditionNode { handle, kind: IF, bodies: 1, graphs: null_mut(), context };
        let node = self.add(CONDITIONAL, node)?;
        // SAFETY: the node is conditional, and the driver has put its one body where it says.
        let graph = unsafe { *node.condition.graphs };
        Ok(Chain { graph, last: None, ..*self })
    }

    /// Adds a node behind the last; returns what the driver has made of its description.
    fn add(&mut self, kind: u32, node: Node) -> Result<Node> {
        let mut params = NodeParams { kind, reserved0: [0; 3], node, reserved2: 0 };
        let mut added = null_mut();
        let after = self.last.as_ref().map_or(null(), std::ptr::from_ref);
        let count = usize::from(self.last.is_some());
        // SAFETY: the graph is alive and `after` are so many nodes of it. The description is that of the kind; what it
        // points to lives until the call, which copies it, returns. The launch's maker promised the rest.
        let result = unsafe { (self.api.add_node)(&mut added, self.graph, after, count, &mut params) };
        result.result().map_err(|e| failed(self.context, e))?;
        self.last = Some(added);
        Ok(params.node)
    }
}
