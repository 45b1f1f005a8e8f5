//! Block ends that the next convolution computes while it loads.
//!
//! ```text
//! z, signs = sum(a, b; relu)  y, moments = conv(z, w)   ->  y, moments, z, signs = conv(a + b, w)
//! ```
//!
//! Legal for a convolution whose tiles load each element of z once ([`can_load_sum`](conv2d::Conv2d::can_load_sum)). It
//! then runs in place of the sum: its other operands are parameters. It also stores z and the signs for other readers.
//!
//! Saves reading z: N H W C elements. After `norms`, which leaves block ends with signs, and after `joint` and
//! `recompute`, which look at plain loads.

use super::index::{Index, Reader};
use super::Fused;
use crate::graph::{Graph, Node};
use crate::ops::conv2d::{self, End, Fwd, Pass};
use crate::ops::load::{Load, Operand};
use crate::ops::store::Moments;
use crate::ops::{sum, Op};

/// Moves every block end of `fused` into a convolution that reads it, if one can take it.
pub(super) fn load(fused: &mut Fused) {
    let index = Index::new(&fused.graph, &fused.views);
    let ends: Vec<(usize, usize)> =
        (0..fused.graph.nodes.len()).filter_map(|i| Some((i, taker(&fused.graph, &index, i)?))).collect();
    let mut gone = vec![false; fused.graph.nodes.len()];
    for (end, conv) in ends {
        fused.graph.nodes[end] = join(&fused.graph.nodes[end], &fused.graph.nodes[conv]);
        gone[conv] = true;
    }
    fused.graph.remove(gone);
}

/// The first convolution that can take the block end of node `i`.
fn taker(graph: &Graph, index: &Index, i: usize) -> Option<usize> {
    let node = &graph.nodes[i];
    let Op::Sum(sum::Node { form, relu: true, .. }) = node.op else { return None };
    let sum::Fwd { a, b, gate: None, y, signs: Some(_) } = node.bind(form) else { return None };
    let z = y.value;
    // A slice may be misaligned for 16-byte accesses.
    let aligned = [a.value, b.value, z].into_iter().all(|v| index.is_alone(v));
    let plain = [a, b].iter().all(|term| matches!(term.load, Load::AsIs | Load::Affine { relu: false, .. }));
    let takes = |r: &&Reader| {
        let Op::Conv2d(conv2d::Node { conv, pass }) = graph.nodes[r.node].op else { return false };
        pass == Pass::Fwd(Fwd { moments: Some(Moments::default()), ..Fwd::default() })
            && conv.can_load_sum()
            && r.operand == "x"
            // A convolution in a droppable branch cannot compute a block end outside it.
            && graph.nodes[r.node].gate == node.gate
    };
    index.readers(z).iter().find(takes).filter(|_| aligned && plain).map(|r| r.node)
}

/// One node in place of `end` and `conv`.
fn join(end: &Node, conv: &Node) -> Node {
    let (Some((conv, call)), Op::Sum(sum)) = (conv.as_conv_fwd(), &end.op) else {
        unreachable!("`taker` checks the ops")
    };
    let sum::Fwd { a, b, y: z, signs: Some(signs), .. } = end.bind(sum.form) else {
        unreachable!("`taker` asks for signs")
    };
    let affine = |load| match load {
        Load::Affine { affine, .. } => Some(affine),
        _ => None,
    };
    let load = Load::Sum { own: affine(a.load), other: b.value, others: affine(b.load) };
    let x = Operand { value: a.value, load };
    Node::conv2d(conv, Pass::Fwd(Fwd { x, end: Some(End { z, signs }), ..call }), end.gate)
}
