//! Less memory for more work: the backward pass computes the outputs of bottlenecks again.
//!
//! ```text
//! y = conv(x, w)  ..  f(y)  ..  g(y)   ->  y = conv(x, w)  ..  f(y)  ..  y' = conv(x, w)  g(y')     g: backward
//! ```
//!
//! Saves keeping y between the passes, and costs another forward pass of the convolution. After `norms`, whose loads it
//! copies. Only on request ([`Graph::recompute`](crate::graph::Graph::recompute)).
//!
//! A bottleneck is a 1x1 convolution whose batch norm is in pieces. Its input is kept in any case. The second run has
//! the launches of the first, so y' has the bits of y; its moments are not read, and running statistics do not change.

use std::collections::{HashMap, HashSet};

use super::index::Index;
use super::Fused;
use crate::graph::{Node, Origin, ValueId};
use crate::ops::conv2d::Pass;
use crate::tensor::TensorType;

/// Computes the output of every bottleneck again before the backward pass reads it.
pub(super) fn bottlenecks(fused: &mut Fused) {
    let graph = &mut fused.graph;
    let index = Index::new(graph, &fused.views);
    let Some(loss) = graph.loss_node() else { return };
    // The second runs, by the node before which they run.
    let mut again: HashMap<usize, Vec<Node>> = HashMap::new();
    let mut dropped: HashSet<ValueId> = HashSet::new();
    for i in 0..loss {
        let Some((conv, mut call)) = graph.nodes[i].as_conv_fwd() else { continue };
        let (gate, x, y) = (graph.nodes[i].gate, call.x.value, call.y.value);
        let Some(first) = index.readers(y).iter().find(|r| r.node > loss).map(|r| r.node) else { continue };
        let in_pieces = call.moments.is_some() && call.end.is_none();
        // With a residual, the block end before it would have to be kept.
        let pointwise = conv.spec().kernel == [1, 1] && call.epilogue.residual.is_none();
        if !in_pieces || !pointwise || dropped.contains(&x) || index.writers(y).len() > 1 || !index.is_alone(y) {
            continue;
        }
        dropped.insert(y);
        call.y = graph.add_value(conv.y(), Origin::Node).into();
        let mut number = |_, _| graph.add_value(TensorType::stat([conv.spec().k]), Origin::Node).into();
        call.moments = call.moments.map(|moments| moments.map(&mut number));
        for reader in index.readers(y).iter().filter(|r| r.node > loss) {
            graph.nodes[reader.node].inputs[reader.at] = call.y.value;
        }
        again.entry(first).or_default().push(Node::conv2d(conv, Pass::Fwd(call), gate));
    }
    let nodes = std::mem::take(&mut graph.nodes).into_iter().enumerate();
    graph.nodes = nodes.flat_map(|(i, node)| again.remove(&i).unwrap_or_default().into_iter().chain([node])).collect();
}
