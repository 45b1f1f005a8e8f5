//! Fusion: rewrites of a graph that save passes over memory.
//!
//! Each rewrite is a file that opens with what it makes of what, why that is legal, what it saves, and what must have
//! run before it. Every rewrite keeps the numbers, except that intermediate results that are no longer stored are not
//! rounded to the storage type. [`fuse`] has the list.

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

pub(super) use self::concat::View;
use std::collections::HashMap;

use super::{Graph, Node, Stored, ValueId};
use crate::ops::{relu, sum, Op};

/// A graph after fusion.
#[derive(Clone, Debug)]
pub(super) struct Fused {
    pub graph: Graph,
    /// The first so many nodes depend on parameters and buffers only: they run once after these have been set.
    pub prepare: usize,
    /// For each value that is a slice of another one's channels, where it lies: see [`View`]. It has no memory of its
    /// own, and its root lives as long as any of its slices.
    pub views: Vec<Option<View>>,
}

impl Fused {
    /// The value in whose memory `v` lies: itself, unless it is a slice.
    pub fn root(&self, v: ValueId) -> ValueId {
        self.views[v.index()].map_or(v, |view| view.root)
    }
}

/// Who runs a fused graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runner {
    /// The CPU: all tensors are dense, every op is whole.
    Host,
    /// Kernels: images may be slices of the channels of others, batch norms may be in pieces.
    Kernels,
}

/// Applies every rewrite to `graph` that `runner` can carry out.
///
/// The order:
///
/// 1. `transition` matches the ops as they were built and as autodiff made them, so it comes before all others.
/// 2. `epilogue` gives convolutions their epilogues, and batch norms in training their ReLU, which `norms` looks for.
/// 3. `accumulate` removes the sums of gradients. `concat` needs to know what writes a gradient in the end.
///
/// Then, on kernels:
///
/// 4. `concat` makes slices of values. All later rewrites ask which values have memory of their own.
/// 5. `stem` pads inputs that convolutions alone read: while they still are the only readers.
/// 6. `norms` and `slices` take batch norms in training to pieces.
/// 7. `moments`, `signs` and `masks` move these pieces into the ops next to them; `masks` takes the masks of `signs`.
/// 8. `joint` joins the two backward passes that are left next to each other with the same loads.
/// 9. `recompute` repeats the forward passes that leave moments.
/// 10. `prologue` handles the batch norms of inference that `epilogue` could not place.
/// 11. `ends` takes block ends with pending operands and signs, and the convolutions that no other rewrite has changed
///     since.
pub(super) fn fuse(graph: &Graph, runner: Runner) -> Fused {
    let mut graph = graph.clone();
    transition::pool_first(&mut graph);
    let recompute = graph.recompute;
    let mut fused = epilogue::absorb(graph);
    accumulate::in_place(&mut fused.graph);
    fused.views = vec![None; fused.graph.values.len()];
    if runner == Runner::Kernels {
        fused.views = concat::in_place(&mut fused.graph);
        stem::pad_inputs(&mut fused);
        norms::split(&mut fused);
        slices::split(&mut fused);
        moments::leave(&mut fused.graph);
        signs::mask(&mut fused);
        masks::append(&mut fused);
        joint::gradients(&mut fused.graph);
        if recompute {
            recompute::bottlenecks(&mut fused);
        }
        prologue::load_norms(&mut fused);
        ends::load(&mut fused);
    }
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

/// Replaces values of `graph` by the values in whose memory they lie now.
fn rename(graph: &mut Graph, mut renamed: HashMap<ValueId, ValueId>) {
    for node in &mut graph.nodes {
        node.inputs.iter_mut().chain(&mut node.outputs).for_each(|v| *v = last_name(&mut renamed, *v));
    }
}

/// The last name of `v`. The gradients of a stage's blocks may all lie in one place, each in that of the next one, so
/// the names in between are updated.
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

/// How many ops and outputs read each value.
fn count_uses(graph: &Graph) -> Vec<usize> {
    let mut uses = vec![0; graph.values.len()];
    let reads = graph.nodes.iter().flat_map(|n| &n.inputs).chain(graph.outputs.iter().map(|(_, v)| v));
    reads.for_each(|v| uses[v.index()] += 1);
    uses
}
