//! The gradient of a batch norm without a pass: the op that stores dz masks it and leaves the sums.
//!
//! ```text
//! dz = conv'(du)  g, sums = gradient(dz; masked)                ->  g, sums = conv'(du; masked)
//! dz = conv'(du)  dy += scale * g, sums = gradient(dz; masked)  ->  dy, sums += conv'(du; masked, scaled)
//! ```
//!
//! Legal for the data gradient of a convolution or a pooling, if nothing else reads dz (or, without a mask, nothing
//! changes it: g lies where dz does), and nothing touches dy in between. Where the op is in a branch that may be
//! dropped and the batch norm is not, the pass stays for the runs without the branch.
//!
//! Saves writing and reading dz: 3 accesses per element. After `signs`, because this rewrite also moves the masks that
//! `signs` makes.

use std::collections::HashMap;

use super::index::Index;
use super::{rename, Fused};
use crate::graph::{Graph, Node, Stored, ValueId};
use crate::ops::conv2d::{self, BwdX, Pass};
use crate::ops::store::Mask;
use crate::ops::{norm, pool, Call, Op, Write};

/// Moves every masked gradient of `fused` into the op before it that can take it.
pub(super) fn append(fused: &mut Fused) {
    let index = Index::new(&fused.graph, &fused.views);
    let graph = &mut fused.graph;
    let mut renamed = HashMap::new();
    let mut gone = vec![false; graph.nodes.len()];
    for (i, gone) in gone.iter_mut().enumerate() {
        let Some(call) = gradient(&graph.nodes[i]) else { continue };
        let Some(writer) = writer(graph, &index, i, &call) else { continue };
        let Some(joined) = join(&graph.nodes[writer], &call) else { continue };
        if !call.mask.is_scaled() && call.g.value != call.dz {
            renamed.insert(call.g.value, call.dz);
        }
        let gate = graph.nodes[writer].gate;
        match gate.filter(|_| gate != graph.nodes[i].gate) {
            Some(gate) => graph.nodes[i].gate = Some(graph.inverse(gate)),
            None => *gone = true,
        }
        graph.nodes[writer] = joined;
    }
    graph.remove(gone);
    rename(graph, renamed);
}

/// The operands of `node`, if it is a pass that masks a gradient.
fn gradient(node: &Node) -> Option<norm::Gradient<ValueId, Stored>> {
    match node.op {
        Op::Norm(norm::Node { pass: norm::Pass::Gradient(form), .. }) => Some(node.bind(form)),
        _ => None,
    }
}

/// The node that stores dz of `call`, the operands of node `i`, if it may store g instead.
fn writer(graph: &Graph, index: &Index, i: usize, call: &norm::Gradient<ValueId, Stored>) -> Option<usize> {
    let &norm::Gradient { dz, mask, g, .. } = call;
    let writer = index.last_writer(dz, i)?;
    let (gate, writer_gate) = (graph.nodes[i].gate, graph.nodes[writer].gate);
    // A droppable branch adds its gradient last, and only in runs that keep it.
    let reaches = gate.is_none() || gate == writer_gate;
    let free = reaches && index.is_alone(dz) && !index.is_output(dz);
    let fits = match mask {
        Mask::Affine { scaled: true, .. } => {
            // The first batch norm of a concatenation overwrites the shared gradient, the others add to it after that.
            let begun = g.write == Write::Overwrite || index.has_begun(g.value, writer);
            let untouched = !index.is_alone(g.value) || !is_touched(graph, index, g.value, writer..i);
            let overwrites = graph.nodes[writer].write(dz) == Some(Write::Overwrite);
            overwrites && gate == writer_gate && begun && untouched && index.sole_reader(dz, writer, i)
        }
        Mask::Affine { relu: false, .. } => index.keeps(dz, i, g.value),
        Mask::Affine { .. } | Mask::Signs { .. } => index.sole_reader(dz, writer, i),
    };
    (free && fits).then_some(writer)
}

/// True if one of `nodes` reads or writes `v`, or reads a gradient that a batch norm leaves in `v`.
fn is_touched(graph: &Graph, index: &Index, v: ValueId, nodes: std::ops::Range<usize>) -> bool {
    let moved = index.readers(v).iter().filter_map(|r| gradient(&graph.nodes[r.node]));
    let moved = moved.filter(|call| call.dz == v && !call.mask.is_scaled()).map(|call| call.g.value);
    let readers = moved.chain([v]).flat_map(|read| index.readers(read)).map(|r| r.node);
    readers.chain(index.writers(v).iter().copied()).any(|i| nodes.contains(&i))
}

/// `node` extended by the mask and sums of `call`; `None` if there is no such kernel.
fn join(node: &Node, call: &norm::Gradient<ValueId, Stored>) -> Option<Node> {
    let store = call.mask.is_scaled().then_some(call.g);
    let (mask, sums) = (Some(call.mask), Some(call.sums));
    match node.op {
        Op::Conv2d(conv2d::Node { conv, pass: Pass::BwdX(form @ BwdX { mask: None, .. }) }) => {
            let bwd = node.bind(form);
            let bwd = BwdX { dx: store.unwrap_or(bwd.dx), mask, sums, ..bwd };
            Some(Node::conv2d(conv, Pass::BwdX(bwd), node.gate))
        }
        Op::Pool(pool::Node { pool, pass: pool::Pass::Bwd(form @ pool::Bwd { mask: None, .. }) }) => {
            let bwd = node.bind(form);
            let bwd = pool::Bwd { dx: store.unwrap_or(bwd.dx), mask, sums, ..bwd };
            Some(Node::new(Op::Pool(pool::Node { pool, pass: pool::Pass::Bwd(bwd.form()) }), bwd, node.gate))
        }
        _ => None,
    }
}
