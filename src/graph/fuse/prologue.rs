//! Batch norms on running statistics that no convolution before them could take: whoever reads the result applies them
//! while it loads.

use super::index::Index;
use super::Fused;
use crate::graph::{Graph, Node, Origin, ValueId};
use crate::ops::norm::Prologue;
use crate::ops::{batch_norm, conv2d, norm_conv, norm_pool, pool, Op, Write};

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
        let Node { inputs, outputs, .. } = fused.graph.nodes[i].clone();
        if index.is_output(outputs[0])
            || !index.is_alone(outputs[0])
            || !index.readers(outputs[0]).iter().all(|&r| can_load(&fused.graph, r))
        {
            continue;
        }
        let mut number = || fused.graph.add_value(bn.per_channel(), Origin::Node);
        let numbers = [number(), number()];
        for &(reader, _) in index.readers(outputs[0]) {
            load(&mut fused.graph.nodes[reader], inputs[0], numbers, Prologue { relu });
        }
        let op = Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Fold { bias: false, share: 1.0 } });
        folds.push(Node {
            op,
            inputs: inputs[1..].to_vec(),
            outputs: numbers.to_vec(),
            writes: vec![Write::Overwrite; 2],
            gate: None,
        });
        *removed = true;
    }
    fused.prepare += folds.len();
    let kept = std::mem::take(&mut fused.graph.nodes).into_iter().zip(removed).filter(|(_, gone)| !gone);
    fused.graph.nodes = folds.into_iter().chain(kept.map(|(node, _)| node)).collect();
    fused.views.resize(fused.graph.values.len(), None);
}

/// Whether `reader` can apply a batch norm to this input.
fn can_load(graph: &Graph, (reader, at): (usize, usize)) -> bool {
    let loads = matches!(
        graph.nodes[reader].op,
        Op::Conv2d(conv2d::Node { pass: conv2d::Pass::Fwd(_), .. })
            | Op::Pool(pool::Node { pass: pool::Pass::Fwd, .. })
    );
    loads && at == 0
}

/// Lets `node` read `x` through `numbers`, scale and shift.
fn load(node: &mut Node, x: ValueId, numbers: [ValueId; 2], prologue: Prologue) {
    node.inputs[0] = x;
    match node.op {
        Op::Conv2d(conv2d::Node { conv, pass: conv2d::Pass::Fwd(epilogue) }) => {
            let pass = norm_conv::Pass::Fwd { prologue: Some(prologue), epilogue, moments: false };
            node.op = Op::NormConv(norm_conv::Node { conv, pass });
            node.inputs.splice(2..2, numbers);
        }
        Op::Pool(pool::Node { pool, .. }) => {
            node.op = Op::NormPool(norm_pool::Node { pool, pass: norm_pool::Pass::Fwd(prologue) });
            node.inputs.extend(numbers);
        }
        _ => unreachable!("`can_load` knows the ops that load"),
    }
}
