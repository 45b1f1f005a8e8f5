//! Fusion: rewrites of a graph that save passes over memory.
//!
//! Each rewrite is a file that opens with its diagram, its conditions, what it saves and what must run before it.
//! Results differ by rounding only: values that are no longer stored are not rounded to the storage type, folded and
//! split batch norms compute `y scale + shift`, and `transition` pools before it multiplies. [`fuse`] has the list.

mod accumulate;
mod concat;
mod ends;
mod epilogue;
mod index;
mod joint;
mod masks;
mod moments;
mod norms;
mod pieces;
mod prologue;
mod recompute;
mod signs;
mod slices;
mod stem;
mod transition;

pub(super) use self::concat::Place;
use std::collections::HashMap;

use super::{Graph, Node, Stored, ValueId};
use crate::ops::{relu, sum, Op};

/// A graph after fusion.
#[derive(Clone, Debug)]
pub(super) struct Fused {
    pub graph: Graph,
    /// The number of nodes at the start that depend only on parameters and buffers: they run once per load.
    pub prepare: usize,
    /// For each slice its place; `None` for values with memory of their own. A root lives as long as any of its slices.
    pub views: Vec<Option<Place>>,
}

impl Fused {
    /// The value in whose memory `v` lies: `v` itself, unless it is a slice.
    pub fn root(&self, v: ValueId) -> ValueId {
        self.views[v.index()].map_or(v, |view| view.root)
    }
}

/// What runs a fused graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runner {
    /// The CPU: all tensors are dense, all batch norms whole.
    Host,
    /// Kernels: images may be slices, batch norms may be in pieces.
    Kernels,
}

/// Applies to `graph` every rewrite that `runner` supports, in this order:
///
/// 1. `transition` matches the ops as they were built and differentiated, so it is first.
/// 2. `epilogue` gives convolutions their epilogues, and batch norms in training their ReLU, which `norms` looks for.
/// 3. `accumulate` removes the sums of gradients. `concat` must know the final writer of a gradient.
///
/// Only for kernels:
///
/// 4. `concat` makes slices. All later rewrites ask which values have memory of their own.
/// 5. `stem` pads inputs while only convolutions read them.
/// 6. `norms` and `slices` take batch norms in training to pieces.
/// 7. `moments`, `signs` and `masks` move the pieces into adjacent ops; `masks` also moves the masks of `signs`.
/// 8. `joint` joins adjacent backward passes with equal loads.
/// 9. `recompute` repeats forward passes with the loads that they have now.
/// 10. `prologue` handles the batch norms of inference that `epilogue` could not place.
/// 11. `ends` takes block ends with pending operands and signs, and convolutions that no later rewrite has changed.
pub(super) fn fuse(graph: &Graph, runner: Runner) -> Fused {
    let mut graph = graph.clone();
    transition::pool_first(&mut graph);
    let mut fused = epilogue::absorb(graph);
    accumulate::in_place(&mut fused.graph);
    if runner == Runner::Kernels {
        fused.views = concat::in_place(&mut fused.graph);
        stem::pad_inputs(&mut fused);
        norms::split(&mut fused);
        slices::split(&mut fused);
        moments::leave(&mut fused.graph);
        signs::mask(&mut fused);
        masks::append(&mut fused);
        joint::gradients(&mut fused.graph);
        if fused.graph.recompute {
            recompute::bottlenecks(&mut fused);
        }
        prologue::load_norms(&mut fused);
        ends::load(&mut fused);
    }
    fused.views.resize(fused.graph.values.len(), None);
    fused
}

/// The operands of `node` if it is the backward pass of a ReLU.
fn rectifier(node: &Node) -> Option<relu::Bwd<ValueId, Stored>> {
    match node.op {
        Op::Relu(relu::Node { pass: relu::Pass::Bwd, .. }) => Some(node.bind(relu::Bwd::default())),
        _ => None,
    }
}

/// The sum of `node` with its operands, if it can be the end of a residual block.
fn block_end(node: &Node) -> Option<(&sum::Node, sum::Fwd<ValueId, Stored>)> {
    match &node.op {
        Op::Sum(sum) if sum.share == 1.0 => Some((sum, node.bind(sum.form))),
        _ => None,
    }
}

/// Replaces adjacent nodes of `graph` by one where `join` makes one of them.
fn join_adjacent(graph: &mut Graph, join: impl Fn(&Node, &Node) -> Option<Node>) {
    let mut nodes: Vec<Node> = Vec::with_capacity(graph.nodes.len());
    for node in std::mem::take(&mut graph.nodes) {
        let joint = nodes.last().and_then(|before| join(before, &node));
        if joint.is_some() {
            nodes.pop();
        }
        nodes.push(joint.unwrap_or(node));
    }
    graph.nodes = nodes;
}

/// Replaces values of `graph` by the values in whose memory they lie now.
fn rename(graph: &mut Graph, mut renamed: HashMap<ValueId, ValueId>) {
    for node in &mut graph.nodes {
        node.inputs.iter_mut().chain(&mut node.outputs).for_each(|v| *v = last_name(&mut renamed, *v));
    }
}

/// The last name of `v`. The gradients of consecutive residual blocks may share one place and make a long chain of
/// names; updating the names on the way keeps the search linear.
fn last_name(renamed: &mut HashMap<ValueId, ValueId>, v: ValueId) -> ValueId {
    let mut last = v;
    while let Some(&next) = renamed.get(&last) {
        last = next;
    }
    let mut at = v;
    while let Some(next) = renamed.get_mut(&at).filter(|next| **next != last) {
        at = std::mem::replace(next, last);
    }
    last
}

/// The number of ops and outputs that read each value.
fn count_uses(graph: &Graph) -> Vec<usize> {
    let mut uses = vec![0; graph.values.len()];
    let reads = graph.nodes.iter().flat_map(|n| &n.inputs).chain(graph.outputs.iter().map(|(_, v)| v));
    reads.for_each(|v| uses[v.index()] += 1);
    uses
}
