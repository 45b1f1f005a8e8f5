//! Less memory for more work: the outputs of bottlenecks are computed again in the backward pass instead of kept.
//!
//! ```text
//! y = conv(x, w)  ..  f(y)  ..  g(y)   ->  y = conv(x, w)  ..  f(y)  ..  y' = conv(x, w)  g(y')     g: backward
//! ```
//!
//! Saves keeping y between the passes, and costs its forward pass once more. After `norms`: it copies the loads. On
//! request only ([`Graph::recompute`](crate::graph::Graph::recompute)).
//!
//! A bottleneck here is a 1x1 convolution whose batch norm was taken to pieces. Its input is there anyway. The second
//! run is the same launches, so that it leaves the same bits; its moments go nowhere, and no running statistic moves.

use std::collections::HashSet;

use super::index::Index;
use super::Fused;
use crate::graph::{Node, Origin, ValueId};
use crate::ops::conv2d::{self, Fwd, Pass};
use crate::ops::Op;
use crate::tensor::TensorType;

/// Computes the output of every bottleneck again before the backward pass reads it.
pub(super) fn bottlenecks(fused: &mut Fused) {
    let graph = &mut fused.graph;
    let index = Index::new(graph, &fused.views);
    let Some(loss) = graph.nodes.iter().position(|n| n.outputs.first() == graph.loss.as_ref()) else { return };
    let mut again: Vec<(usize, Node)> = Vec::new();
    let mut dropped: HashSet<ValueId> = HashSet::new();
    for i in 0..loss {
        let node = &graph.nodes[i];
        let Op::Conv2d(conv2d::Node { conv, pass: Pass::Fwd(form @ Fwd { moments: Some(_), end: None, .. }) }) =
            node.op
        else {
            continue;
        };
        let (mut call, gate) = (node.bind(form), node.gate);
        let (x, y) = (call.x.value, call.y.value);
        let Some(first) = index.readers(y).iter().find(|r| r.node > loss).map(|r| r.node) else { continue };
        // A sum of blocks would need the one before it.
        let pointwise = conv.spec().kernel == [1, 1] && call.epilogue.residual.is_none();
        if !pointwise || dropped.contains(&x) || index.writers(y).len() > 1 || !index.is_alone(y) {
            continue;
        }
        dropped.insert(y);
        call.y = graph.add_value(conv.y(), Origin::Node).into();
        let mut number = |_, _| graph.add_value(TensorType::stat([conv.spec().k]), Origin::Node).into();
        call.moments = call.moments.map(|moments| moments.map(&mut number));
        for reader in index.readers(y).iter().filter(|r| r.node > loss) {
            graph.nodes[reader.node].inputs[reader.at] = call.y.value;
        }
        again.push((first, Node::new(Op::Conv2d(conv2d::Node { conv, pass: Pass::Fwd(form) }), call, gate)));
    }
    again.sort_by_key(|&(before, _)| before);
    let mut again = again.into_iter().peekable();
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for (i, node) in std::mem::take(&mut graph.nodes).into_iter().enumerate() {
        while let Some((_, copy)) = again.next_if(|&(before, _)| before == i) {
            nodes.push(copy);
        }
        nodes.push(node);
    }
    graph.nodes = nodes;
    fused.views.resize(fused.graph.values.len(), None);
}
