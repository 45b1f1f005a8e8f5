//! Batch norms of slices of one concatenation.
//!
//! All batch norms of a DenseNet's block normalise a channel with the same moments, which its producer leaves.
//! Backward, each adds `a_i g_i` to the block's gradient and b_i and c_i to two numbers a channel; what is read of the
//! gradient is corrected once, by its reader: no pass over the concatenation for any of them.

use super::{as_end, slice, Norm, Pair, Pending, Plan};
use crate::graph::fuse::index::Reader;
use crate::graph::fuse::{Fused, View};
use crate::graph::{Origin, ValueId};
use crate::ops::batch_norm;
use crate::ops::load::Affine;
use crate::ops::store::Moments;
use crate::ops::{Op, Write};
use crate::tensor::TensorType;

/// Adds the batch norms of every concatenation in `fused` to `plan`, where all of one can be taken to pieces.
pub(super) fn find(fused: &mut Fused, plan: &mut Plan) {
    let mut roots: Vec<ValueId> = fused.views.iter().flatten().map(|view| view.root).collect();
    roots.sort_unstable();
    roots.dedup();
    for root in roots {
        if let Some((pairs, gradient)) = pairs(fused, plan, root) {
            add(fused, plan, root, gradient, pairs);
        }
    }
}

/// The batch norms of slices of `root` by their forward nodes, and the value whose memory their gradients are added in.
/// `None` where there is none, or something else happens to that gradient.
fn pairs(fused: &Fused, plan: &Plan, root: ValueId) -> Option<(Vec<(usize, Pair)>, ValueId)> {
    let (graph, index) = (&fused.graph, &plan.index);
    let mut pairs = Vec::new();
    for v in index.family(root) {
        for &Reader { node: i, .. } in index.readers(v) {
            let norm = matches!(
                graph.nodes[i].op,
                Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Train { .. }, .. })
            );
            if norm && graph.nodes[i].bind(batch_norm::Train::default()).x == v {
                pairs.push((i, plan.find_pair(graph, i)?));
            }
        }
    }
    let gradient = index.place(pairs.first()?.1.dy).root;
    let mut writers: Vec<usize> = index.family(gradient).flat_map(|v| index.writers(v).to_vec()).collect();
    writers.sort_unstable();
    let mut expected: Vec<usize> = pairs.iter().map(|(_, p)| p.bwd).collect();
    expected.sort_unstable();
    let same_place = pairs.iter().all(|(_, p)| {
        let (y, dy) = (index.place(p.y), index.place(p.dy));
        y.root == root && dy == View { root: gradient, channel: y.channel }
    });
    // The first to write leaves all channels.
    let first = pairs.iter().find(|(_, p)| p.bwd == writers[0])?;
    let covers = first.1.bn.spec().x[3] == graph.ty(root).shape.dims()[3]
        && pairs.iter().all(|(i, p)| (p.write == Write::Overwrite) == (*i == first.0));
    let ends = |p: &Pair| index.readers(p.z).iter().any(|r| as_end(&graph.nodes[r.node]).is_some());
    let fits = graph.ty(root).shape.dims().len() == 4 && !pairs.iter().any(|(_, p)| ends(p));
    (writers == expected && same_place && covers && fits).then_some((pairs, gradient))
}

fn add(fused: &mut Fused, plan: &mut Plan, root: ValueId, gradient: ValueId, pairs: Vec<(usize, Pair)>) {
    let channels = |fused: &Fused, v: ValueId| fused.graph.ty(v).shape.dims()[3];
    let all = TensorType::stat([channels(fused, root)]);
    let [mean, var, b, c] = std::array::from_fn(|_| fused.graph.add_value(all.clone(), Origin::Node));
    let numbers = |fused: &mut Fused, whole: ValueId, channel: usize, count: usize| {
        slice(fused, TensorType::stat([count]), View { root: whole, channel })
    };
    // Whoever stores channels leaves their moments.
    let stored: Vec<(usize, ValueId)> = plan
        .index
        .family(root)
        .flat_map(|v| plan.index.writers(v).iter().map(move |&w| (w, v)).collect::<Vec<_>>())
        .collect();
    for (writer, v) in stored {
        let (at, count) = (plan.index.place(v).channel, channels(fused, v));
        let moments = Moments { mean: numbers(fused, mean, at, count), var: numbers(fused, var, at, count) };
        plan.moments.insert(writer, (v, moments));
    }
    for (i, Pair { bn, relu, bwd, y, dy, write, z, dz }) in pairs {
        let (at, count) = (plan.index.place(y).channel, bn.spec().x[3]);
        let [mean, var, b, c] = [mean, var, b, c].map(|whole| numbers(fused, whole, at, count));
        let mut number = || fused.graph.add_value(bn.per_channel(), Origin::Node);
        let (moments, affine) = (Moments { mean, var }, Affine { scale: number(), shift: number() });
        let (a, in_place, bias) = (None, false, None);
        plan.norms.insert(i, Norm { bn, relu, bwd, y, dy, write, z, dz, moments, affine, a, b, c, in_place, bias });
    }
    // Whoever reads the gradient corrects it.
    let family: Vec<ValueId> = plan.index.family(gradient).collect();
    for g in family {
        if plan.index.readers(g).is_empty() {
            continue;
        }
        let (at, count) = (plan.index.place(g).channel, channels(fused, g));
        let ty = fused.graph.ty(g).clone();
        let y = slice(fused, ty, View { root, channel: at });
        let [b, c] = [b, c].map(|whole| numbers(fused, whole, at, count));
        plan.pending.insert(g, Pending { g, y, a: None, b, c });
    }
}
