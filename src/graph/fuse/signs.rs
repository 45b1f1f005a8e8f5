//! The ReLU at the end of a residual block, backward, and the gradients of the batch norms in front of it in one pass.
//!
//! ```text
//! fwd  z = sum(y1 * scale1 + shift1, y2 ..; relu)  ->  z, signs = sum(..)
//! bwd  ds = relu'(dz, z)                           ->  ds, sums = gradient(dz; masked by signs)
//!      g1, sums1 = gradient(ds, y1)
//!      g2, sums2 = gradient(ds, y2)
//! ```
//!
//! Legal if the batch norms have no ReLU of their own and nothing changes ds before the last reader of g1 and g2, which
//! then lie where it does. With a gate, the sums of the branch that may be dropped are computed only in runs that keep
//! the branch.
//!
//! Saves reading z for one bit an element, reading ds, and writing g1 and g2. After `norms`, whose gradients it joins.

use std::collections::HashMap;

use super::index::Index;
use super::pieces::piece;
use super::{block_end, rectifier, rename, Fused};
use crate::graph::{Graph, Node, Origin, Stored, ValueId};
use crate::ops::load::{Affine, Load, Operand};
use crate::ops::norm::{self, Gradient};
use crate::ops::store::{sign_bytes, Mask, Normalised, Sums};
use crate::ops::{relu, sum, Call, Op};
use crate::tensor::TensorType;

/// Joins the gradients at each block end that meets the conditions.
pub(super) fn mask(fused: &mut Fused) {
    let index = Index::new(&fused.graph, &fused.views);
    let graph = &mut fused.graph;
    let mut renamed = HashMap::new();
    let mut gone = vec![false; graph.nodes.len()];
    for i in 0..graph.nodes.len() {
        let Some(MaskedEnd { bwd, first, second, gate }) = find(graph, &index, i) else { continue };
        let Some((sum, end)) = block_end(&graph.nodes[i]) else { continue };
        let Some(relu::Bwd { dy: dz, dx: ds, .. }) = rectifier(&graph.nodes[bwd]) else { continue };
        let Some([n, h, w, c]) = graph.ty(ds.value).shape.nhwc() else { continue };
        let (sum, of) = (sum.clone(), |norm: &Norm| Normalised { y: norm.y, mean: norm.mean });
        let bits = graph.add_value(TensorType::byte([n, h, w, sign_bytes(c)]), Origin::Node);
        let end = sum::Fwd { signs: Some(bits.into()), ..end };
        graph.nodes[i] = Node::new(Op::Sum(sum::Node { form: end.form(), ..sum }), end, graph.nodes[i].gate);
        let mask = Mask::Signs { bits, first: of(&first), second: second.as_ref().map(of), gate };
        let sums = Sums { dy: first.sums.dy, first: first.sums.first, second: second.as_ref().map(|n| n.sums.first) };
        let call = Gradient { dz, mask, g: ds.value.into(), sums };
        graph.nodes[bwd] = piece([n, h, w, c], norm::Pass::Gradient(call.form()), call, graph.nodes[bwd].gate);
        for norm in [Some(first), second].into_iter().flatten() {
            gone[norm.node] = true;
            renamed.insert(norm.g, ds.value);
            if norm.sums.dy.value != sums.dy.value {
                renamed.insert(norm.sums.dy.value, sums.dy.value);
            }
        }
    }
    graph.remove(gone);
    rename(graph, renamed);
}

/// The end of a block whose gradients can be joined.
struct MaskedEnd {
    /// The backward node of its ReLU.
    bwd: usize,
    first: Norm,
    second: Option<Norm>,
    /// The gate of the first, if that is in a branch that may be dropped.
    gate: Option<ValueId>,
}

/// A batch norm in front of the end of a block, and its `Gradient`.
struct Norm {
    node: usize,
    y: ValueId,
    mean: ValueId,
    g: ValueId,
    sums: Sums<Stored>,
}

/// The block end that node `i` computes. With a gate its second operand may be dropped.
fn find(graph: &Graph, index: &Index, i: usize) -> Option<MaskedEnd> {
    let (&sum::Node { relu: true, .. }, end) = block_end(&graph.nodes[i])? else { return None };
    let z = end.y.value;
    let of_z = |i: usize| rectifier(&graph.nodes[i]).filter(|relu| relu.y == z).map(|relu| (i, relu.dx.value));
    let (bwd, ds) = index.readers(z).iter().find_map(|r| of_z(r.node))?;
    let [a, b] = [end.a, end.b].map(|term| norm(graph, index, term, bwd, ds));
    let gate = end.gate.filter(|_| b.is_some());
    let mut found = if gate.is_some() { [b, a] } else { [a, b] }.into_iter().flatten();
    let (first, second) = (found.next()?, found.next());
    index.is_alone(ds).then_some(MaskedEnd { bwd, first, second, gate })
}

/// The batch norm of the block's operand `term`, if its gradient is exactly `ds`, as node `bwd` stores it.
fn norm(graph: &Graph, index: &Index, term: Operand<ValueId>, bwd: usize, ds: ValueId) -> Option<Norm> {
    let Load::Affine { affine: Affine { scale: own, .. }, .. } = term.load else { return None };
    index.readers(ds).iter().find_map(|r| {
        let Op::Norm(norm::Node { pass: norm::Pass::Gradient(form), .. }) = graph.nodes[r.node].op else { return None };
        let Gradient { mask, g, sums, .. } = graph.nodes[r.node].bind(form);
        let Mask::Affine { y, scale, mean, relu: false, scaled: false, .. } = mask else { return None };
        let stays = index.last_writer(ds, r.node) == Some(bwd) && index.keeps(ds, r.node, g.value);
        (scale == own && stays).then_some(Norm { node: r.node, y, mean, g: g.value, sums })
    })
}
