//! Graphs that do not start the launches behind a closed gate: each run of them is the body of an IF node.

use std::ptr::{null, null_mut};
use std::sync::Arc;

use cudarc::driver::sys;

use super::context::{Context, Loaded};
use super::nodes::{self, Api, ConditionNode, NodeParams, Payload};
use super::template::Template;
use crate::device::{conditions, View};
use crate::{Error, Result};

/// The call, as errors name it.
pub(super) const MAKING: &str = "making a graph with conditional nodes";

/// The graph of `launches`, one after the other. Fails if this driver and device have no such nodes.
///
/// The launches that set the conditions come right before the first gated launch.
pub(super) fn template(context: &Arc<Context>, launches: &[Loaded]) -> Result<Template> {
    let api = context.conditional.as_ref();
    let api = api.map_err(|reason| Error::unsupported("conditional graph nodes", reason.as_str()))?;
    context.function(conditions::kernel())?;
    let template = Template::empty(context)?;
    let gate = |loaded: &Loaded| loaded.launch.gate().map(View::address);
    let first = launches.iter().position(|loaded| gate(loaded).is_some()).unwrap_or(launches.len());
    let (before, behind) = launches.split_at(first);
    // A handle belongs to one node, so a gate has one for each of its runs.
    let handle = |gate: &View| Ok((gate.clone(), handle(api, &template)?));
    let runs: Vec<&[Loaded]> = behind.chunk_by(|a, b| gate(a) == gate(b)).collect();
    let handles = runs.iter().map(|run| run[0].launch.gate().map(handle).transpose()).collect::<Result<Vec<_>>>()?;
    let set: Vec<(View, u64)> = handles.iter().flatten().cloned().collect();
    // SAFETY: the handles are this graph's, and each gets its node below.
    let set = unsafe { conditions::launches(&set) };

    let mut main = Chain { api, template: &template, graph: template.graph, last: None };
    before.iter().try_for_each(|loaded| main.launch(loaded))?;
    set.iter().try_for_each(|launch| main.launch(&context.loaded(launch)?))?;
    for (run, handle) in runs.iter().zip(&handles) {
        let mut body = handle.as_ref().map(|(_, handle)| main.branch(*handle)).transpose()?;
        let chain = body.as_mut().unwrap_or(&mut main);
        run.iter().try_for_each(|loaded| chain.launch(loaded))?;
    }
    Ok(template)
}

/// A new condition of the graph.
fn handle(api: &Api, template: &Template) -> Result<u64> {
    let (mut handle, context) = (0, &template.context);
    context.call(MAKING, || {
        let (owner, first, flags) = (context.primary.cu_ctx(), nodes::OPEN, nodes::ASSIGN_DEFAULT);
        // SAFETY: the template owns the graph and keeps its context alive; the call writes one handle.
        unsafe { (api.create_handle)(&mut handle, template.graph, owner, first, flags) }.result()
    })?;
    Ok(handle)
}

/// Nodes that wait for one another: of the template's graph, or of a body in it. `last` is one of them.
struct Chain<'a> {
    api: &'a Api,
    template: &'a Template,
    graph: sys::CUgraph,
    last: Option<sys::CUgraphNode>,
}

impl<'a> Chain<'a> {
    fn launch(&mut self, loaded: &Loaded) -> Result<()> {
        let kernel = loaded.launch.kernel();
        loaded.with(|function, arguments| {
            let mut node = Payload { zeros: [0; 29] };
            node.kernel.function = function;
            node.kernel.grid = loaded.launch.grid();
            node.kernel.threads = [kernel.threads, 1, 1];
            node.kernel.shared_bytes = kernel.shared_bytes;
            node.kernel.params = arguments.as_mut_ptr();
            // SAFETY: a kernel's node; `with` gives a function and arguments for it that are valid during this call.
            unsafe { self.add(nodes::KERNEL, node) }.map(|_| ())
        })
    }

    /// Adds a node that runs its body if its condition is set, and returns the empty body.
    fn branch(&mut self, handle: u64) -> Result<Chain<'a>> {
        let mut node = Payload { zeros: [0; 29] };
        let context = self.template.context.primary.cu_ctx();
        node.condition = ConditionNode { handle, kind: nodes::IF, bodies: 1, graphs: null_mut(), context };
        // SAFETY: a condition's node; its context is alive, and the driver sets `graphs`.
        let node = unsafe { self.add(nodes::CONDITIONAL, node)? };
        // SAFETY: the node is a condition's, and the driver has put its one body there.
        let graph = unsafe { *node.condition.graphs };
        Ok(Chain { graph, last: None, ..*self })
    }

    /// Adds a node behind the last, and returns its description as the driver left it.
    ///
    /// # Safety
    /// `node` describes a node of kind `kind`, and its handles and pointers are valid during the call.
    unsafe fn add(&mut self, kind: u32, node: Payload) -> Result<Payload> {
        let mut params = NodeParams { kind, reserved0: [0; 3], node, reserved2: 0 };
        let mut added = null_mut();
        let after = self.last.as_ref().map_or(null(), std::ptr::from_ref);
        let count = usize::from(self.last.is_some());
        self.template.context.call(MAKING, || {
            // SAFETY: the template owns the graph; `after` is `count` nodes of it. The rest is this function's
            // contract, and the call copies what the description points to.
            unsafe { (self.api.add_node)(&mut added, self.graph, after, count, &mut params) }.result()
        })?;
        self.last = Some(added);
        Ok(params.node)
    }
}
