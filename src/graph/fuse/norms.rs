//! Batch norms in training in pieces: nobody stores the activation or the gradient of the input.
//!
//! ```text
//! fwd  z = norm(y; relu)  u = conv(z)   ->  moments = measure(y)  scale, shift = scale(moments)
//!                                           u = conv(y * scale + shift; relu)
//! bwd  dy = norm'(dz; relu)             ->  g, sums = gradient(dz; masked)  a, b, c = coefficients(sums)
//!      dx = conv'(dy)                       dx = conv'(a g + b y + c)
//! ```
//!
//! Legal if every reader of z (a convolution, a pooling, the end of a block) can apply scale, shift and ReLU while it
//! loads, and
//!
//! * y is the output of a convolution that nobody else reads, and that convolution's backward passes alone read dy; or
//! * y is a sum with more readers (pre-activation): g is then scaled and added to dy, which the other readers'
//!   gradients share, and one pass adds `b y + c` in place.
//!
//! Saves writing and reading z and dy. With `moments`, `signs` and `masks`, the measuring and the gradient's pass cost
//! nothing either: together 8 accesses per element of y. After `concat`: slices of concatenations are left to `slices`.

use super::index::{Index, Reader};
use super::pieces::{corrected, Numbers, Pair, Pieces};
use super::{block_end, Fused};
use crate::graph::{Graph, Origin, ValueId};
use crate::ops::conv2d::{self, Pass};
use crate::ops::load::{Load, Operand};
use crate::ops::store::Moments;
use crate::ops::{sum, Op, Write};

/// Splits every batch norm that meets these conditions; `slices` handles concatenations.
pub(super) fn split(fused: &mut Fused) {
    let index = Index::new(&fused.graph, &fused.views);
    let graph = &mut fused.graph;
    let mut pieces = Pieces::default();
    for i in 0..graph.nodes.len() {
        let Some(pair) = Pair::find(graph, &index, i) else { continue };
        let &[writer] = index.writers(pair.y) else { continue };
        let alone = index.is_alone(pair.y) && index.is_alone(pair.dy);
        // One batch norm's moments are enough.
        if !alone || pieces.measures.contains_key(&writer) || shares_gradient(graph, &index, &pieces, pair.z) {
            continue;
        }
        let (bias_node, dbias) = bias_gradient(graph, &index, pair.dy).unzip();
        let own = is_own(graph, &index, &pair, writer, bias_node);
        if !own && graph.ty(pair.y).shape.dims().len() != 4 {
            continue;
        }
        let mut number = || graph.add_value(pair.bn.per_channel(), Origin::Node);
        let moments = Moments { mean: number(), var: number() };
        let (a, b, c) = (own.then(&mut number), number(), number());
        pieces.measure(graph, writer, pair.bn.spec().x, pair.y, moments);
        let numbers = Numbers { moments, a, b: b.into(), c: c.into(), dbias: dbias.filter(|_| own) };
        pieces.split(graph, &pair, numbers);
        if own {
            pieces.replaced.extend(bias_node.map(|node| (node, Vec::new())));
        } else {
            let gradient = Operand { value: pair.dy, load: Load::Corrected { y: pair.y, a: None, b, c } };
            let pass = corrected(graph, gradient, pair.dy, graph.nodes[pair.bwd].gate);
            pieces.replaced.entry(pair.bwd).or_default().push(pass);
        }
    }
    pieces.apply(&mut fused.graph);
}

/// True if `z` is added, without a ReLU, to another activation in pieces. Both have one gradient, whose producer can
/// leave the sums of one batch norm.
fn shares_gradient(graph: &Graph, index: &Index, pieces: &Pieces, z: ValueId) -> bool {
    index.readers(z).iter().any(|r| match block_end(&graph.nodes[r.node]) {
        Some((&sum::Node { relu: false, .. }, end)) => {
            [end.a.value, end.b.value].iter().any(|&term| term != z && pieces.loads.contains_key(&term))
        }
        _ => false,
    })
}

/// The node that computes the gradient of a bias from `dy`, and that gradient.
fn bias_gradient(graph: &Graph, index: &Index, dy: ValueId) -> Option<(usize, ValueId)> {
    index.readers(dy).iter().find_map(|r| match graph.nodes[r.node].op {
        Op::Conv2d(conv2d::Node { pass: Pass::BwdBias(form), .. }) => {
            Some((r.node, graph.nodes[r.node].bind(form).dbias.value))
        }
        _ => None,
    })
}

/// True if the batch norm `pair` alone reads the output of `writer`, a convolution, and the backward passes of that
/// convolution and of its bias, node `bias`, alone read the gradient.
fn is_own(graph: &Graph, index: &Index, pair: &Pair, writer: usize, bias: Option<usize>) -> bool {
    let Op::Conv2d(conv2d::Node { conv, pass }) = graph.nodes[writer].op else { return false };
    let plain = [false, true].map(Pass::fwd).contains(&pass) && pair.write == Write::Overwrite;
    let private = index.readers(pair.y).iter().all(|r| r.node == pair.fwd || r.node == pair.bwd);
    let corrects = |r: &Reader| match graph.nodes[r.node].op {
        Op::Conv2d(conv2d::Node { conv: of, pass: Pass::BwdX(_) | Pass::BwdW(_) }) => r.operand == "dy" && of == conv,
        _ => bias == Some(r.node),
    };
    let corrected = index.writers(pair.dy) == [pair.bwd] && index.readers(pair.dy).iter().all(corrects);
    plain && private && corrected && !index.is_output(pair.y)
}
