//! Ends of residual blocks that the next convolution computes while it loads.
//!
//! ```text
//! z, signs = sum(a, b; relu)  y, moments = conv(z, w)   ->  y, moments, z, signs = conv(a + b, w)
//! ```
//!
//! Legal for a convolution whose tiles load each element of z once ([`can_load_sum`](conv2d::Conv2d::can_load_sum)) and
//! that reads nothing else that is computed, so that it can run where the sum did.
//!
//! Saves reading z: N H W C elements. After `norms`, which leaves block ends with signs, and after `joint` and
//! `recompute`, which look at plain loads.
//!
//! The end of a block reads two tensors and stores one, which the next block's first convolution reads again. Where
//! that convolution loads each element once, it takes the two in place of the one, and stores what the rest of the
//! block and the backward pass read of it.

use super::index::{Index, Reader};
use super::Fused;
use crate::graph::{Graph, Node};
use crate::ops::conv2d::{self, End, Fwd};
use crate::ops::load::Load;
use crate::ops::store::Moments;
use crate::ops::{sum, Call, Op};

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
    let Op::Sum(sum::Node { form, relu: true, .. }) = node.op else { return None };
    let sum::Fwd { a, b, gate: None, y, signs: Some(_) } = node.bind(form) else { return None };
    let z = y.value;
    // Slices of other tensors may lie where 16-byte accesses do not fit.
    let aligned = [a.value, b.value, z].into_iter().all(|v| index.is_alone(v));
    let plain = [a, b].iter().all(|term| matches!(term.load, Load::AsIs | Load::Affine { relu: false, .. }));
    let takes = |r: &&Reader| {
        let Op::Conv2d(conv2d::Node { conv, pass }) = graph.nodes[r.node].op else { return false };
        pass == conv2d::Pass::Fwd(Fwd { moments: Some(Moments::default()), ..Fwd::default() })
            && conv.can_load_sum()
            && r.operand == "x"
            // What a branch that may be dropped does, it does for itself only.
            && graph.nodes[r.node].gate == node.gate
    };
    index.readers(z).iter().find(takes).filter(|_| aligned && plain).map(|r| r.node)
}

/// One node in place of `end` and `conv`.
fn join(end: &Node, conv: &Node) -> Node {
    let Op::Conv2d(conv2d::Node { conv: shape, pass: conv2d::Pass::Fwd(form) }) = conv.op else {
        unreachable!("`taker` knows the ops")
    };
    let Op::Sum(sum) = &end.op else { unreachable!("`taker` knows the ops") };
    let sum::Fwd { a, b, y: z, signs: Some(signs), .. } = end.bind(sum.form) else {
        unreachable!("`taker` asks for the signs")
    };
    let affine = |load| match load {
        Load::Affine { affine, .. } => Some(affine),
        _ => None,
    };
    let mut call = conv.bind(form);
    call.x.value = a.value;
    call.x.load = Load::Sum { own: affine(a.load), other: b.value, others: affine(b.load) };
    call.end = Some(End { z, signs });
    let op = Op::Conv2d(conv2d::Node { conv: shape, pass: conv2d::Pass::Fwd(call.form()) });
    Node::new(op, call, end.gate)
}
