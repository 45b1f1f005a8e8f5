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
mod norms;
mod prologue;
mod recompute;
mod stem;
mod transition;

pub(super) use self::concat::View;
use super::{Graph, Node, Stored, ValueId};
use crate::ops::{relu, Op};

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
/// 6. `norms` takes batch norms to pieces.
/// 7. `joint` joins the two backward passes that `norms` has left next to each other with the same loads.
/// 8. `recompute` repeats the forward passes that `norms` has made.
/// 9. `prologue` handles the batch norms of inference that `epilogue` could not place.
/// 10. `ends` takes block ends with pending operands and signs, as `norms` leaves them, and the convolutions that
///     nobody else has changed since.
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

/// How many ops and outputs read each value.
fn count_uses(graph: &Graph) -> Vec<usize> {
    let mut uses = vec![0; graph.values.len()];
    let reads = graph.nodes.iter().flat_map(|n| &n.inputs).chain(graph.outputs.iter().map(|(_, v)| v));
    reads.for_each(|v| uses[v.index()] += 1);
    uses
}
