//! Batch norms on running statistics that `epilogue` could not place: their readers apply them while they load.
//!
//! ```text
//! z = norm(x)  y = conv(z, w)   ->  y = conv(x * scale + shift, w)
//! ```
//!
//! Legal if every reader of z is a convolution or a pooling that reads it as its x, and z is no output.
//!
//! Saves writing and reading z: 2 N H W C elements. After `epilogue`, which places batch norms behind a convolution at
//! no cost.

use super::index::Index;
use super::Fused;
use crate::graph::{Node, Origin, ValueId};
use crate::ops::batch_norm::{self, Fold, Infer};
use crate::ops::load::{Affine, Load, Operand};
use crate::ops::{conv2d, pool, Call, Op};

/// Moves every such batch norm into its readers.
pub(super) fn load_norms(fused: &mut Fused) {
    let index = Index::new(&fused.graph, &fused.views);
    let mut folds = Vec::new();
    let mut removed = vec![false; fused.graph.nodes.len()];
    for (i, removed) in removed.iter_mut().enumerate().skip(fused.prepare) {
        let node = &fused.graph.nodes[i];
        let Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Infer { relu } }) = node.op else { continue };
        let Infer { x, gamma, beta, running_mean, running_var, y } = node.bind(Infer::default());
        let (y, mut readers) = (y.value, index.readers(y.value).iter());
        let can_load = readers.all(|r| r.operand == "x" && loading(&fused.graph.nodes[r.node], x.into()).is_some());
        if index.is_output(y) || !index.is_alone(y) || !can_load {
            continue;
        }
        let mut number = || fused.graph.add_value(bn.per_channel(), Origin::Node);
        let affine @ Affine { scale, shift } = Affine { scale: number(), shift: number() };
        for reader in index.readers(y) {
            let x = Operand { value: x, load: Load::Affine { affine, relu } };
            let node = &mut fused.graph.nodes[reader.node];
            *node = loading(node, x).unwrap_or_else(|| unreachable!("checked above"));
        }
        let (scale, shift) = (scale.into(), shift.into());
        let call = Fold { gamma, beta, running_mean, running_var, bias: None, scale, shift };
        folds.push(Node::new(Op::BatchNorm(bn.fold(false, 1.0)), call, None));
        *removed = true;
    }
    fused.prepare += folds.len();
    fused.graph.remove(removed);
    fused.graph.nodes.splice(..0, folds);
}

/// A convolution's or pooling's forward pass with another x; `None` for other nodes.
fn loading(node: &Node, x: Operand<ValueId>) -> Option<Node> {
    if let Some((conv, call)) = node.as_conv_fwd() {
        return Some(Node::conv2d(conv, conv2d::Pass::Fwd(conv2d::Fwd { x, ..call }), node.gate));
    }
    let Op::Pool(pool::Node { pool, pass: pool::Pass::Fwd(form) }) = node.op else { return None };
    let call = pool::Fwd { x, ..node.bind(form) };
    Some(Node::new(Op::Pool(pool::Node { pool, pass: pool::Pass::Fwd(call.form()) }), call, node.gate))
}
