//! Batch norms on running statistics that `epilogue` could not place: their readers apply them while they load.
//!
//! ```text
//! z = norm(x)  y = conv(z, w)   ->  y = conv(x * scale + shift, w)
//! ```
//!
//! Legal if every reader of z is a convolution or a pooling that reads it as its x, and z is no output.
//!
//! Saves writing and reading z: 2 N H W C elements. After `epilogue`, which places batch norms at no cost.

use super::index::Index;
use super::pieces::Pieces;
use super::Fused;
use crate::graph::{Node, Origin};
use crate::ops::batch_norm::{self, Fold, Infer};
use crate::ops::load::{Affine, Load, Operand};
use crate::ops::{pool, Op};

/// Moves every such batch norm into its readers.
pub(super) fn load_norms(fused: &mut Fused) {
    let index = Index::new(&fused.graph, &fused.views);
    let (mut folds, mut pieces) = (Vec::new(), Pieces::default());
    for i in fused.prepare..fused.graph.nodes.len() {
        let node = &fused.graph.nodes[i];
        let Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Infer { relu } }) = node.op else { continue };
        let Infer { x, gamma, beta, running_mean, running_var, y } = node.bind(Infer::default());
        let (y, mut readers) = (y.value, index.readers(y.value).iter());
        let can_load = readers.all(|r| r.operand == "x" && is_forward(&fused.graph.nodes[r.node]));
        if index.is_output(y) || !index.is_alone(y) || !can_load {
            continue;
        }
        let mut number = || fused.graph.add_value(bn.per_channel(), Origin::Node);
        let affine @ Affine { scale, shift } = Affine { scale: number(), shift: number() };
        pieces.loads.insert(y, Operand { value: x, load: Load::Affine { affine, relu } });
        pieces.replaced.insert(i, Vec::new());
        let (scale, shift) = (scale.into(), shift.into());
        let call = Fold { gamma, beta, running_mean, running_var, bias: None, scale, shift };
        folds.push(Node::new(Op::BatchNorm(bn.fold(false, 1.0)), call, None));
    }
    pieces.apply(&mut fused.graph);
    fused.prepare += folds.len();
    fused.graph.nodes.splice(..0, folds);
}

/// True for the forward pass of a convolution or a pooling.
fn is_forward(node: &Node) -> bool {
    node.as_conv_fwd().is_some() || matches!(node.op, Op::Pool(pool::Node { pass: pool::Pass::Fwd(_), .. }))
}
