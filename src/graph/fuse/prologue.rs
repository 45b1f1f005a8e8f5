//! Batch norms on running statistics that no convolution before them could take: their readers apply them as they load.
//!
//! ```text
//! z = norm(x)  y = conv(z, w)   ->  y = conv(x * scale + shift, w)
//! ```
//!
//! Legal if every reader of z is a convolution or a pooling that reads it as its x, and z is no output.
//!
//! Saves writing and reading z: 2 N H W C elements. After `epilogue`, which places those behind a convolution at no
//! cost.

use super::index::{Index, Reader};
use super::Fused;
use crate::graph::{Graph, Node, Origin, ValueId};
use crate::ops::batch_norm::{self, Fold, Infer};
use crate::ops::load::{Affine, Load, Operand};
use crate::ops::{conv2d, pool, Call, Op};

/// Moves every batch norm that it can into the ops that read it.
pub(super) fn load_norms(fused: &mut Fused) {
    let index = Index::new(&fused.graph, &fused.views);
    let mut folds = Vec::new();
    let mut removed = vec![false; fused.graph.nodes.len()];
    for (i, removed) in removed.iter_mut().enumerate().skip(fused.prepare) {
        let Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Infer { relu } }) = fused.graph.nodes[i].op
        else {
            continue;
        };
        let Infer { x, gamma, beta, running_mean, running_var, y } = fused.graph.nodes[i].bind(Infer::default());
        let y = y.value;
        if index.is_output(y) || !index.is_alone(y) || !index.readers(y).iter().all(|r| can_load(&fused.graph, r)) {
            continue;
        }
        let mut number = || fused.graph.add_value(bn.per_channel(), Origin::Node);
        let (scale, shift) = (number(), number());
        for reader in index.readers(y) {
            load(&mut fused.graph.nodes[reader.node], x, Affine { scale, shift }, relu);
        }
        let (scale, shift) = (scale.into(), shift.into());
        let call = Fold { gamma, beta, running_mean, running_var, bias: None, scale, shift };
        folds.push(Node::new(Op::BatchNorm(bn.fold(false, 1.0)), call, None));
        *removed = true;
    }
    fused.prepare += folds.len();
    let kept = std::mem::take(&mut fused.graph.nodes).into_iter().zip(removed).filter(|(_, gone)| !gone);
    fused.graph.nodes = folds.into_iter().chain(kept.map(|(node, _)| node)).collect();
    fused.views.resize(fused.graph.values.len(), None);
}

/// Whether `reader` can apply a batch norm to this input.
fn can_load(graph: &Graph, reader: &Reader) -> bool {
    let loads = matches!(
        graph.nodes[reader.node].op,
        Op::Conv2d(conv2d::Node { pass: conv2d::Pass::Fwd(_), .. })
            | Op::Pool(pool::Node { pass: pool::Pass::Fwd(_), .. })
    );
    loads && reader.operand == "x"
}

/// Lets `node` read `x` through `affine` and a ReLU.
fn load(node: &mut Node, x: ValueId, affine: Affine<ValueId>, relu: bool) {
    match node.op {
        Op::Conv2d(conv2d::Node { conv, pass: conv2d::Pass::Fwd(form) }) => {
            let mut call = node.bind(form);
            call.x.value = x;
            call.x.load = Load::Affine { affine, relu };
            let op = Op::Conv2d(conv2d::Node { conv, pass: conv2d::Pass::Fwd(call.form()) });
            *node = Node::new(op, call, node.gate);
        }
        Op::Pool(pool::Node { pool, pass: pool::Pass::Fwd(form) }) => {
            let call = pool::Fwd { x: Operand { value: x, load: Load::Affine { affine, relu } }, ..node.bind(form) };
            let op = Op::Pool(pool::Node { pool, pass: pool::Pass::Fwd(call.form()) });
            *node = Node::new(op, call, node.gate);
        }
        _ => unreachable!("`can_load` knows the ops that load"),
    }
}
