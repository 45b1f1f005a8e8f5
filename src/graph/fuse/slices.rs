//! Batch norms of slices of one concatenation in pieces: they share the moments and one gradient buffer.
//!
//! ```text
//! fwd  z_i = norm(y[..c_i]; relu)      ->  moments = measure(y), once for each channel  scale_i, shift_i = ..
//! bwd  dy[..c_i] += norm'(dz_i; relu)  ->  dy[..c_i] += a_i g_i  b[..c_i] += b_i  c[..c_i] += c_i
//!      dx = conv'(dy[part])                dx = conv'((dy + b y + c)[part])
//! ```
//!
//! Legal if every batch norm of the concatenation can be taken to pieces and they alone write its gradient.
//!
//! Saves what `norms` saves, for each of the batch norms: a layer of a DenseNet reads the concatenation once, and its
//! batch norm makes no pass over it. After `norms`, whose batch norms have tensors of their own.

use std::collections::BTreeSet;

use super::index::{Index, Reader};
use super::pieces::{slice, Numbers, Pair, Pieces};
use super::{block_end, Fused, Place};
use crate::graph::{Origin, Stored, ValueId};
use crate::ops::batch_norm;
use crate::ops::load::{Load, Operand};
use crate::ops::store::Moments;
use crate::ops::{Op, Write};
use crate::tensor::TensorType;

/// Splits the batch norms of each concatenation if all of them can be split.
pub(super) fn split(fused: &mut Fused) {
    let index = Index::new(&fused.graph, &fused.views);
    let mut pieces = Pieces::default();
    let roots: BTreeSet<ValueId> = fused.views.iter().flatten().map(|place| place.root).collect();
    for root in roots {
        if let Some((pairs, gradient)) = pairs(fused, &index, root) {
            split_all(fused, &index, &mut pieces, [root, gradient], &pairs);
        }
    }
    pieces.apply(&mut fused.graph);
}

/// The batch norms of slices of `root`, and the root of their gradients. `None` if another node adds to that gradient.
fn pairs(fused: &Fused, index: &Index, root: ValueId) -> Option<(Vec<Pair>, ValueId)> {
    let graph = &fused.graph;
    let mut pairs = Vec::new();
    for v in index.family(root) {
        for &Reader { node: i, .. } in index.readers(v) {
            let node = &graph.nodes[i];
            let train = matches!(&node.op, Op::BatchNorm(op) if matches!(op.pass, batch_norm::Pass::Train { .. }));
            if train && node.bind(batch_norm::Train::default()).x == v {
                pairs.push(Pair::find(graph, index, i)?);
            }
        }
    }
    let gradient = index.place(pairs.first()?.dy).root;
    let writers: BTreeSet<usize> = index.family(gradient).flat_map(|v| index.writers(v)).copied().collect();
    let expected: BTreeSet<usize> = pairs.iter().map(|p| p.bwd).collect();
    let same_place = pairs.iter().all(|p| {
        let (y, dy) = (index.place(p.y), index.place(p.dy));
        y.root == root && dy == Place { root: gradient, channel: y.channel }
    });
    // The first to write leaves all channels.
    let first = pairs.iter().find(|p| Some(&p.bwd) == writers.first())?;
    let covers = first.bn.spec().x[3] == graph.ty(root).shape.dims()[3]
        && pairs.iter().all(|p| (p.write == Write::Overwrite) == (p.fwd == first.fwd));
    let ends = |p: &Pair| index.readers(p.z).iter().any(|r| block_end(&graph.nodes[r.node]).is_some());
    let fits = graph.ty(root).shape.dims().len() == 4 && !pairs.iter().any(ends);
    (writers == expected && same_place && covers && fits).then_some((pairs, gradient))
}

/// Takes `pairs`, the batch norms of slices of `root`, whose gradient is `gradient`, to pieces.
fn split_all(fused: &mut Fused, index: &Index, pieces: &mut Pieces, [root, gradient]: [ValueId; 2], pairs: &[Pair]) {
    let channels = |fused: &Fused, v: ValueId| fused.graph.ty(v).shape.dims()[3];
    let all = TensorType::stat([channels(fused, root)]);
    let [mean, var, b, c] = std::array::from_fn(|_| fused.graph.add_value(all.clone(), Origin::Node));
    let numbers = |fused: &mut Fused, whole: ValueId, channel: usize, count: usize| {
        slice(fused, TensorType::stat([count]), Place { root: whole, channel })
    };
    for v in index.family(root) {
        let (at, count) = (index.place(v).channel, channels(fused, v));
        for &writer in index.writers(v) {
            let moments = Moments { mean: numbers(fused, mean, at, count), var: numbers(fused, var, at, count) };
            let Some(x) = fused.graph.ty(v).shape.nhwc() else { continue };
            pieces.measure(&fused.graph, writer, x, v, moments);
        }
    }
    for pair in pairs {
        let (at, count) = (index.place(pair.y).channel, pair.bn.spec().x[3]);
        let [mean, var, b, c] = [mean, var, b, c].map(|whole| numbers(fused, whole, at, count));
        let [b, c] = [b, c].map(|value| Stored { value, write: pair.write });
        let numbers = Numbers { moments: Moments { mean, var }, a: None, b, c, dbias: None };
        pieces.split(&mut fused.graph, pair, numbers);
    }
    // The readers of the gradient correct it.
    for g in index.family(gradient).filter(|&g| !index.readers(g).is_empty()) {
        let (at, count) = (index.place(g).channel, channels(fused, g));
        let ty = fused.graph.ty(g).clone();
        let y = slice(fused, ty, Place { root, channel: at });
        let [b, c] = [b, c].map(|whole| numbers(fused, whole, at, count));
        pieces.loads.insert(g, Operand { value: g, load: Load::Corrected { y, a: None, b, c } });
    }
}
