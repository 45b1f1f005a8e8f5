//! Ends of residual blocks that the next convolution computes while it loads.
//!
//! The end of a block reads two tensors and stores one, which the next block's first convolution reads again. Where that
//! convolution loads each element once, it takes the two in place of the one, and stores what the rest of the block and
//! the backward pass read of it.

use super::index::Index;
use super::Fused;
use crate::graph::{Graph, Node};
use crate::ops::norm_conv::{self, allows_end};
use crate::ops::{block_end, conv2d, Op, Write};

/// Moves the end of every block of `fused` into the convolution behind it that can take it.
pub(super) fn load(fused: &mut Fused) {
    let index = Index::new(&fused.graph, &fused.views);
    let ends: Vec<(usize, usize)> =
        (0..fused.graph.nodes.len()).filter_map(|i| Some((i, taker(&fused.graph, &index, i)?))).collect();
    // The convolution reads nothing else that is computed, so it can run where the end did.
    let mut gone = vec![false; fused.graph.nodes.len()];
    for &(end, conv) in &ends {
        let joined = join(&fused.graph.nodes[end], &fused.graph.nodes[conv]);
        fused.graph.nodes[end] = joined;
        gone[conv] = true;
    }
    let mut gone = gone.into_iter();
    fused.graph.nodes.retain(|_| !gone.next().unwrap_or(false));
}

/// The first convolution that can take the end of a block of node `i`, if there is one.
fn taker(graph: &Graph, index: &Index, i: usize) -> Option<usize> {
    let node = &graph.nodes[i];
    let Op::BlockEnd(block_end::Node { activated: [false, false], gated: false, relu: true, signs: true, .. }) =
        node.op
    else {
        return None;
    };
    let z = node.outputs[0];
    // Slices of other tensors may lie where 16-byte accesses do not fit.
    let aligned = node.inputs[..2].iter().chain([&z]).all(|&v| index.is_alone(v));
    let takes = |&&(reader, at): &&(usize, usize)| {
        let Op::NormConv(norm_conv::Node { conv, pass }) = graph.nodes[reader].op else { return false };
        pass == norm_conv::Pass::Fwd { prologue: None, epilogue: conv2d::Epilogue::default(), moments: true }
            && allows_end(&conv)
            && at == 0
            // What a branch that may be dropped does, it does for itself only.
            && graph.nodes[reader].gate == node.gate
    };
    index.readers(z).iter().find(takes).filter(|_| aligned).map(|&(reader, _)| reader)
}

/// One node in place of `end` and `conv`.
fn join(end: &Node, conv: &Node) -> Node {
    let (Op::BlockEnd(block_end::Node { affine, .. }), Op::NormConv(norm_conv::Node { conv: shape, .. })) =
        (&end.op, &conv.op)
    else {
        unreachable!("`taker` knows the ops")
    };
    let op = Op::NormConv(norm_conv::Node { conv: *shape, pass: norm_conv::Pass::FwdEnd { affine: *affine } });
    let mut inputs = vec![end.inputs[0], conv.inputs[1], end.inputs[1]];
    inputs.extend(&end.inputs[2..]);
    let outputs: Vec<_> = conv.outputs.iter().chain(&end.outputs).copied().collect();
    let writes = vec![Write::Overwrite; outputs.len()];
    Node { op, inputs, outputs, writes, gate: end.gate }
}
