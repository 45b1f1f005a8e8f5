//! Who masks each gradient and sums it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{GradientEpilogue, Norm, Pending, Plan, Signs};
use crate::graph::fuse::rectifier;
use crate::graph::{Graph, Node, Origin, Stored, ValueId};
use crate::ops::batch_norm::BatchNorm;
use crate::ops::load::Affine;
use crate::ops::norm::{self, Gradient};
use crate::ops::store::{Mask, Normalised};
use crate::ops::{conv2d, pool, relu, Call, Op, Write};

/// The sums of a batch norm's gradient.
#[derive(Clone, Copy)]
pub(super) struct NormSums {
    pub dy: ValueId,
    pub dyx: ValueId,
}

/// A plan with a place for everything.
pub(super) struct Placed {
    pub plan: Plan,
    /// What nodes that store gradients do on top.
    pub epilogues: HashMap<usize, GradientEpilogue>,
    /// The sums of each batch norm.
    pub sums: BTreeMap<usize, NormSums>,
    /// Gradients' own passes, each before a node.
    pub passes: HashMap<usize, Node>,
    pub removed: HashSet<usize>,
    /// Values that lie where others do.
    pub alias: HashMap<ValueId, ValueId>,
}

/// Decides for the end of each block and each batch norm of `plan`.
pub(super) fn gradients(graph: &mut Graph, plan: Plan) -> Placed {
    let mut placed = Placed {
        plan,
        epilogues: HashMap::new(),
        sums: BTreeMap::new(),
        passes: HashMap::new(),
        removed: HashSet::new(),
        alias: HashMap::new(),
    };
    placed.removed.extend(placed.plan.norms.all.values().filter_map(|n| Some(n.bias?.0)));
    placed.ends(graph);
    placed.norms(graph);
    placed
}

impl Placed {
    fn ends(&mut self, graph: &mut Graph) {
        let ends: Vec<Signs> = self.plan.ends.values().filter_map(|e| e.signs.clone()).collect();
        for Signs { bits, bwd, norms: keys, gate } in ends {
            let bn = self.plan.norms[keys.first].bn;
            let of = |key: usize| {
                let n = &self.plan.norms[key];
                Normalised { y: n.y, mean: n.moments.mean }
            };
            let mask = Mask::Signs { bits, first: of(keys.first), second: keys.second.map(of), gate };
            let sums = mask.form().sums().map(|_, ()| graph.add_value(bn.per_channel(), Origin::Node));
            let epilogue = GradientEpilogue { mask, sums, store: None };
            let Some(relu::Bwd { dy: dz, dx: Stored { value: ds, .. }, .. }) = rectifier(&graph.nodes[bwd]) else {
                continue;
            };
            self.removed.insert(bwd);
            if let Some(writer) = self.open_writer(graph, dz, bwd, true) {
                self.append(graph, writer, bwd, bn, dz, epilogue);
                self.alias.insert(ds, dz);
            } else {
                self.passes.insert(bwd, pass(bn, epilogue, dz, ds.into(), graph.nodes[bwd].gate));
            }
            for (key, dyx) in [(Some(keys.first), Some(sums.first)), (keys.second, sums.second)] {
                let (Some(key), Some(dyx)) = (key, dyx) else { continue };
                self.sums.insert(key, NormSums { dy: sums.dy, dyx });
                self.correct(key, ds);
            }
        }
    }

    /// The same for each batch norm that is not at the end of a block with a ReLU.
    fn norms(&mut self, graph: &mut Graph) {
        for key in self.plan.norms.all.keys().copied().collect::<Vec<_>>() {
            if self.sums.contains_key(&key) {
                continue;
            }
            let Norm { bn, relu, bwd, y, dy, write, dz, moments, affine, a, in_place, .. } = self.plan.norms[key];
            let shared = a.is_none();
            let Affine { scale, shift } = affine;
            let mask = Mask::Affine { y, scale, shift, mean: moments.mean, relu, scaled: shared };
            let sums = mask.form().sums().map(|_, ()| graph.add_value(bn.per_channel(), Origin::Node));
            // A shared gradient is added to straight away: in its batch norm's place.
            let store = shared.then_some(Stored { value: dy, write });
            let epilogue = GradientEpilogue { mask, sums, store };
            // The first batch norm of a concatenation overwrites the shared gradient, the others add to it after that.
            let added = shared && write == Write::Accumulate;
            let index = &self.plan.index;
            let fits = |&w: &usize| match shared {
                true => {
                    let begun = !added || index.has_begun(dy, w);
                    let untouched = !in_place || !self.is_touched(dy, w, bwd);
                    let node = &graph.nodes[w];
                    node.write(dz) == Some(Write::Overwrite) && node.gate == graph.nodes[bwd].gate && begun && untouched
                }
                false => index.keeps(dz, bwd, dy),
            };
            let writer = self.open_writer(graph, dz, bwd, relu || shared).filter(fits);
            let mut g = dz;
            if let Some(writer) = writer {
                self.append(graph, writer, bwd, bn, dz, epilogue);
            } else {
                let store = store.unwrap_or_else(|| graph.add_value(bn.x(), Origin::Node).into());
                g = store.value;
                self.passes.insert(bwd, pass(bn, epilogue, dz, store, graph.nodes[bwd].gate));
            }
            self.sums.insert(key, NormSums { dy: sums.dy, dyx: sums.first });
            if !shared {
                self.correct(key, g);
            }
        }
    }

    /// Whether a node from `first` on and before `last` reads or writes `v`, or corrects what a batch norm has left
    /// there while it loads it.
    fn is_touched(&self, v: ValueId, first: usize, last: usize) -> bool {
        let index = &self.plan.index;
        let left = self.plan.norms.of_gradient(v).filter(|n| n.a.is_some()).map(|n| n.dy);
        let readers = left.chain([v]).flat_map(|read| index.readers(read)).map(|r| r.node);
        readers.chain(index.writers(v).iter().copied()).any(|i| (first..last).contains(&i))
    }

    /// The gradient of the input of the batch norm `key` is pending, `g` is stored.
    fn correct(&mut self, key: usize, g: ValueId) {
        let Norm { y, dy, a, b, c, .. } = self.plan.norms[key];
        self.plan.pending.insert(dy, Pending { g, y, a, b, c });
    }

    /// Lets `writer` do `epilogue` to the gradient `dz` that it leaves for `reader`. Where it is in a branch that may
    /// be dropped and `reader` is not, a pass does the same without it.
    fn append(
        &mut self,
        graph: &mut Graph,
        writer: usize,
        reader: usize,
        bn: BatchNorm,
        dz: ValueId,
        epilogue: GradientEpilogue,
    ) {
        let gate = graph.nodes[writer].gate;
        if let Some(gate) = gate.filter(|_| gate != graph.nodes[reader].gate) {
            let closed = graph.inverse(gate);
            self.passes.insert(reader, pass(bn, epilogue, dz, dz.into(), Some(closed)));
        }
        self.epilogues.insert(writer, epilogue);
    }

    /// The node that leaves the gradient `dz` which `reader` reads, if it can do more to it. With `alone` nobody else
    /// may read it.
    fn open_writer(&self, graph: &Graph, dz: ValueId, reader: usize, alone: bool) -> Option<usize> {
        let index = &self.plan.index;
        let writer = index.last_writer(dz, reader)?;
        let stores_gradient = matches!(
            graph.nodes[writer].op,
            Op::Conv2d(conv2d::Node { pass: conv2d::Pass::BwdX(_), .. })
                | Op::Pool(pool::Node { pass: pool::Pass::Bwd(_), .. })
        );
        // What a branch that may be dropped adds comes last, but it does not always come.
        let gate = graph.nodes[reader].gate;
        let reaches = gate.is_none() || gate == graph.nodes[writer].gate;
        let free = reaches && index.is_alone(dz) && !index.is_output(dz) && !self.epilogues.contains_key(&writer);
        (stores_gradient && free && (!alone || index.sole_reader(dz, writer, reader))).then_some(writer)
    }
}

/// The pass that masks and sums `dz` by itself.
fn pass(bn: BatchNorm, epilogue: GradientEpilogue, dz: ValueId, g: Stored, gate: Option<ValueId>) -> Node {
    let call = Gradient { dz, mask: epilogue.mask, g, sums: epilogue.sums.map(|_, v| v.into()) };
    let op = Op::Norm(norm::Node { bn, pass: norm::Pass::Gradient(call.form()) });
    Node::new(op, call, gate)
}
