//! Who masks each gradient and sums it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Norm, Pending, Plan, Signs, Tail};
use crate::graph::{Graph, Node, Origin, ValueId};
use crate::ops::batch_norm::BatchNorm;
use crate::ops::norm::{self, Epilogue};
use crate::ops::{conv2d, pool, Op, Write};

/// A plan with a place for everything.
pub(super) struct Placed {
    pub plan: Plan,
    /// What nodes that store gradients do on top.
    pub tails: HashMap<usize, Tail>,
    /// The sums of each batch norm.
    pub sums: BTreeMap<usize, [ValueId; 2]>,
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
        tails: HashMap::new(),
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
            let bn = self.plan.norms[keys[0]].bn;
            let sums = numbers(graph, &bn, 1 + keys.len());
            let mut operands = vec![bits];
            keys.iter().for_each(|k| operands.extend([self.plan.norms[*k].y, self.plan.norms[*k].mean]));
            operands.extend(gate);
            let epilogue = Epilogue::Signs { norms: keys.len(), gated: gate.is_some() };
            let tail = Tail { epilogue, operands, sums: sums.clone(), store: None };
            let (dz, ds) = (graph.nodes[bwd].inputs[0], graph.nodes[bwd].outputs[0]);
            self.removed.insert(bwd);
            if let Some(writer) = self.open_writer(graph, dz, bwd, true) {
                self.append(graph, writer, bwd, bn, dz, tail);
                self.alias.insert(ds, dz);
            } else {
                self.passes.insert(bwd, pass(bn, tail, dz, (ds, Write::Overwrite), graph.nodes[bwd].gate));
            }
            for (i, &key) in keys.iter().enumerate() {
                self.sums.insert(key, [sums[0], sums[1 + i]]);
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
            let Norm { bn, relu, bwd, y, dy, dz, mean, scale, shift, a, settles, .. } = self.plan.norms[key];
            let sums = numbers(graph, &bn, 2);
            let shared = a.is_none();
            let epilogue = Epilogue::Affine { relu, scaled: shared };
            // A shared gradient is added to straight away: in its batch norm's place.
            let store = shared.then(|| (dy, graph.nodes[bwd].writes[0]));
            let tail = Tail { epilogue, operands: vec![y, scale, shift, mean], sums: sums.clone(), store };
            // The first batch norm of a concatenation overwrites the shared gradient, the others add to it after that.
            let added = shared && graph.nodes[bwd].writes[0] == Write::Accumulate;
            let index = &self.plan.index;
            let fits = |&w: &usize| match shared {
                true => {
                    let begun = !added || index.has_begun(dy, w);
                    let untouched = !settles || !self.is_touched(dy, w, bwd);
                    let node = &graph.nodes[w];
                    node.writes[0] == Write::Overwrite && node.gate == graph.nodes[bwd].gate && begun && untouched
                }
                false => index.keeps(dz, bwd, dy),
            };
            let writer = self.open_writer(graph, dz, bwd, relu || shared).filter(fits);
            let mut g = dz;
            if let Some(writer) = writer {
                self.append(graph, writer, bwd, bn, dz, tail);
            } else {
                let store = store.unwrap_or_else(|| (graph.add_value(bn.x(), Origin::Node), Write::Overwrite));
                g = store.0;
                self.passes.insert(bwd, pass(bn, tail, dz, store, graph.nodes[bwd].gate));
            }
            self.sums.insert(key, [sums[0], sums[1]]);
            if !shared {
                self.correct(key, g);
            }
        }
    }

    /// Whether a node from `first` on and before `last` reads or writes `v`, or corrects what a batch norm has left there
    /// while it loads it.
    fn is_touched(&self, v: ValueId, first: usize, last: usize) -> bool {
        let index = &self.plan.index;
        let left = self.plan.norms.of_gradient(v).filter(|n| n.a.is_some()).map(|n| n.dy);
        let readers = left.chain([v]).flat_map(|read| index.readers(read)).map(|&(reader, _)| reader);
        readers.chain(index.writers(v).iter().copied()).any(|i| (first..last).contains(&i))
    }

    /// The gradient of the input of the batch norm `key` is pending, `g` is stored.
    fn correct(&mut self, key: usize, g: ValueId) {
        let Norm { y, dy, a, b, c, .. } = self.plan.norms[key];
        self.plan.pending.insert(dy, Pending { g, y, a, b, c });
    }

    /// Lets `writer` do `tail` to the gradient `dz` that it leaves for `reader`. Where it is in a branch that may be dropped
    /// and `reader` is not, a pass does the same without it.
    fn append(&mut self, graph: &mut Graph, writer: usize, reader: usize, bn: BatchNorm, dz: ValueId, tail: Tail) {
        let gate = graph.nodes[writer].gate;
        if let Some(gate) = gate.filter(|_| gate != graph.nodes[reader].gate) {
            let closed = graph.opposite(gate);
            self.passes.insert(reader, pass(bn, tail.clone(), dz, (dz, Write::Overwrite), Some(closed)));
        }
        self.tails.insert(writer, tail);
    }

    /// The node that leaves the gradient `dz` which `reader` reads, if it can do more to it. With `alone` nobody else
    /// may read it.
    fn open_writer(&self, graph: &Graph, dz: ValueId, reader: usize, alone: bool) -> Option<usize> {
        let index = &self.plan.index;
        let writer = index.last_writer(dz, reader)?;
        let stores_gradient = matches!(
            graph.nodes[writer].op,
            Op::Conv2d(conv2d::Node { pass: conv2d::Pass::BwdX, .. })
                | Op::Pool(pool::Node { pass: pool::Pass::Bwd, .. })
        );
        // What a branch that may be dropped adds comes last, but it does not always come.
        let gate = graph.nodes[reader].gate;
        let reaches = gate.is_none() || gate == graph.nodes[writer].gate;
        let free = reaches && index.is_alone(dz) && !index.is_output(dz) && !self.tails.contains_key(&writer);
        (stores_gradient && free && (!alone || index.sole_reader(dz, writer, reader))).then_some(writer)
    }
}

fn numbers(graph: &mut Graph, bn: &BatchNorm, count: usize) -> Vec<ValueId> {
    (0..count).map(|_| graph.add_value(bn.per_channel(), Origin::Node)).collect()
}

/// The pass that masks and sums `dz` by itself.
fn pass(bn: BatchNorm, tail: Tail, dz: ValueId, (g, write): (ValueId, Write), gate: Option<ValueId>) -> Node {
    let op = Op::Norm(norm::Node { bn, pass: norm::Pass::Gradient(tail.epilogue) });
    let mut writes = vec![Write::Overwrite; 1 + tail.sums.len()];
    writes[0] = write;
    let inputs = std::iter::once(dz).chain(tail.operands).collect();
    Node { op, inputs, outputs: std::iter::once(g).chain(tail.sums).collect(), writes, gate }
}
