//! Both gradients of a convolution in one launch: they read the same tensors.

use crate::graph::{Graph, Node, ValueId};
use crate::ops::{norm_conv, Op};

/// Joins the backward passes of every convolution next to batch norms in pieces.
pub(super) fn gradients(graph: &mut Graph) {
    let mut nodes: Vec<Node> = Vec::with_capacity(graph.nodes.len());
    for node in std::mem::take(&mut graph.nodes) {
        match nodes.last().and_then(|before| join(before, &node)) {
            Some(joint) => {
                nodes.pop();
                nodes.push(joint);
            }
            None => nodes.push(node),
        }
    }
    graph.nodes = nodes;
}

/// One node in place of `bwd_w` and `bwd_x`, if these are passes of one convolution with the same dy.
fn join(bwd_w: &Node, bwd_x: &Node) -> Option<Node> {
    let Op::NormConv(norm_conv::Node { conv, pass: norm_conv::Pass::BwdW { correction, prologue } }) = bwd_w.op else {
        return None;
    };
    let Op::NormConv(norm_conv::Node { conv: same, pass: norm_conv::Pass::BwdX { correction: of_x, epilogue } }) =
        bwd_x.op
    else {
        return None;
    };
    let numbers = correction.map_or(0, |c| 3 + usize::from(c.a));
    let (corrects, loads) = bwd_w.inputs[2..].split_at(numbers);
    let same_dy = bwd_w.inputs[0] == bwd_x.inputs[0] && *corrects == bwd_x.inputs[2..2 + numbers];
    if conv != same
        || bwd_w.gate != bwd_x.gate
        || correction != of_x
        || !same_dy
        || bwd_w.outputs.contains(&bwd_x.inputs[0])
    {
        return None;
    }
    let (g, w, x) = (bwd_x.inputs[0], bwd_x.inputs[1], bwd_w.inputs[1]);
    let parts: [&[ValueId]; 4] = [&[g, w, x], corrects, loads, &bwd_x.inputs[2 + numbers..]];
    let (mut outputs, mut writes) = (bwd_x.outputs.clone(), bwd_x.writes.clone());
    outputs.insert(1, bwd_w.outputs[0]);
    writes.insert(1, bwd_w.writes[0]);
    let op = Op::NormConv(norm_conv::Node { conv, pass: norm_conv::Pass::Bwd { correction, prologue, epilogue } });
    Some(Node { op, inputs: parts.concat(), outputs, writes, gate: bwd_x.gate })
}
