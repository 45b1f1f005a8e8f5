//! What the backward pass keeps of the forward one.

use std::collections::BTreeSet;

use super::fuse::Fused;
use super::storage::Storage;
use super::{Graph, Origin, ValueId};

/// Bytes of the activations that are written up to the loss, or are inputs, and that an op after the loss reads. 0 in a
/// graph that has not been differentiated.
pub(super) fn saved_activation_bytes(fused: &Fused, storage: Storage) -> usize {
    let graph = &fused.graph;
    let Some(loss) = loss_node(graph) else { return 0 };
    // The value in whose memory `v` lies.
    let place = |v: ValueId| fused.root(v);
    let (forward, backward) = graph.nodes.split_at(loss + 1);
    let written: BTreeSet<ValueId> = forward.iter().flat_map(|n| &n.outputs).map(|&v| place(v)).collect();
    let is_activation = |v: ValueId| match graph.values[v.index()].origin {
        Origin::Input => true,
        Origin::Node => written.contains(&v),
        Origin::Parameter(_) | Origin::Buffer(_) | Origin::Gate(_) | Origin::LossScale => false,
    };
    let read: BTreeSet<ValueId> = backward.iter().flat_map(|n| &n.inputs).map(|&v| place(v)).collect();
    read.into_iter().filter(|&v| is_activation(v)).map(|v| storage.value_bytes(graph.ty(v))).sum()
}

/// The node that computes the loss: the last of the forward pass.
fn loss_node(graph: &Graph) -> Option<usize> {
    let loss = graph.loss?;
    graph.nodes.iter().position(|n| n.outputs.contains(&loss))
}
