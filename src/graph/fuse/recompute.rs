//! Less memory for more work: the outputs of bottlenecks are computed again in the backward pass instead of kept.
//!
//! A bottleneck here is a 1x1 convolution whose batch norm was taken to pieces. Its input is there anyway. The second run
//! is the same launches, so that it leaves the same bits; its moments go nowhere, and no running statistic moves.

use std::collections::HashSet;

use super::index::Index;
use super::Fused;
use crate::graph::{Node, Origin, ValueId};
use crate::ops::{norm_conv, Op, Write};
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
        let Op::NormConv(norm_conv::Node { conv, pass: norm_conv::Pass::Fwd { prologue, epilogue, moments: true } }) =
            node.op
        else {
            continue;
        };
        let (x, y) = (node.inputs[0], node.outputs[0]);
        let Some(&(first, _)) = index.readers(y).iter().find(|&&(reader, _)| reader > loss) else { continue };
        // A sum of blocks would need the one before it.
        let pointwise = conv.spec().kernel == [1, 1] && !epilogue.residual;
        if !pointwise || dropped.contains(&x) || index.writers(y).len() > 1 || !index.is_alone(y) {
            continue;
        }
        dropped.insert(y);
        let (inputs, gate) = (node.inputs.clone(), node.gate);
        let copy = graph.add_value(conv.y(), Origin::Node);
        let [mean, var] = [0; 2].map(|_| graph.add_value(TensorType::stat([conv.spec().k]), Origin::Node));
        let op =
            Op::NormConv(norm_conv::Node { conv, pass: norm_conv::Pass::Fwd { prologue, epilogue, moments: true } });
        again.push((
            first,
            Node { op, inputs, outputs: vec![copy, mean, var], writes: vec![Write::Overwrite; 3], gate },
        ));
        for &(reader, at) in index.readers(y).iter().filter(|&&(reader, _)| reader > loss) {
            graph.nodes[reader].inputs[at] = copy;
        }
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
