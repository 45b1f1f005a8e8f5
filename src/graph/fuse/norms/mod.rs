//! Batch norms in training without passes over memory of their own.
//!
//! A batch norm is taken to [pieces](crate::ops::norm). Whoever stores its input leaves the moments; the activation is
//! never stored, it is *pending*: whoever reads it (a convolution, a pooling, the end of a block) applies scale, shift
//! and ReLU while it loads. Backward, the op that stores the gradient of the activation masks it and leaves the two sums,
//! and the gradient of the input is pending: a convolution's backward passes apply the correction while they load.
//! Where the op that stores a gradient cannot do its part, a [`norm::Pass::Gradient`] does; where a reader cannot load
//! what is pending, the batch norm stays whole.
//!
//! The input is a convolution's output of its own, or a sum that others read too: then the gradient is corrected in place,
//! once it has been added to what others contribute. Or it is a slice of a concatenation (`shared`), of which all batch
//! norms share the moments and add up their gradients.

mod place;
mod rewrite;
mod shared;

use std::collections::{BTreeMap, HashMap};

use super::index::Index;
use super::{Fused, View};
use crate::graph::{Graph, Origin, ValueId};
use crate::ops::batch_norm::{self, BatchNorm};
use crate::ops::norm::{self, Epilogue};
use crate::ops::{add, conv2d, join, pool, relu, Op, Write};
use crate::tensor::TensorType;

/// A batch norm that is taken to pieces.
#[derive(Clone, Copy)]
struct Norm {
    bn: BatchNorm,
    relu: bool,
    /// Its backward node.
    bwd: usize,
    /// Its input and the gradient of that; the activation and its gradient.
    y: ValueId,
    dy: ValueId,
    z: ValueId,
    dz: ValueId,
    mean: ValueId,
    var: ValueId,
    scale: ValueId,
    shift: ValueId,
    /// The numbers of the correction; without `a` the gradient of the input is added to what others contribute.
    a: Option<ValueId>,
    b: ValueId,
    c: ValueId,
    /// Whether a pass corrects that sum as soon as b and c are known.
    settles: bool,
    /// Where y has a bias, the node that computes its gradient, and that: it follows from the sums.
    bias: Option<(usize, ValueId)>,
}

/// The end of a residual block with a pending operand.
struct End {
    /// For each operand the batch norm behind it, where that is pending.
    norms: [Option<usize>; 2],
    /// In place of the ReLU's backward node, where that stores the gradient of some of these.
    signs: Option<Signs>,
}

/// How the gradient of a block's end goes back through its ReLU.
#[derive(Clone)]
struct Signs {
    bits: ValueId,
    /// The backward node of the ReLU.
    bwd: usize,
    /// The batch norms whose sums are left.
    norms: Vec<usize>,
    /// The gate of the first of them, where that is in a branch that may be dropped.
    gate: Option<ValueId>,
}

/// What the op that stores a gradient does to it on top.
#[derive(Clone)]
struct Tail {
    epilogue: Epilogue,
    operands: Vec<ValueId>,
    sums: Vec<ValueId>,
    /// Where it is stored, and how, if not as before.
    store: Option<(ValueId, Write)>,
}

/// A pending gradient: `a g + b y + c`.
#[derive(Clone, Copy)]
struct Pending {
    g: ValueId,
    y: ValueId,
    a: Option<ValueId>,
    b: ValueId,
    c: ValueId,
}

/// Ends by their addition.
type Ends = BTreeMap<usize, End>;

/// The batch norms that are taken to pieces, by their forward node.
#[derive(Default)]
struct Norms {
    all: BTreeMap<usize, Norm>,
    by_backward: HashMap<usize, usize>,
    by_activation: HashMap<ValueId, usize>,
    /// An end of a block may leave one gradient for two of them.
    by_gradient: HashMap<ValueId, Vec<usize>>,
}

impl Norms {
    fn insert(&mut self, key: usize, norm: Norm) {
        self.by_backward.insert(norm.bwd, key);
        self.by_activation.insert(norm.z, key);
        self.by_gradient.entry(norm.dz).or_default().push(key);
        self.all.insert(key, norm);
    }

    fn remove(&mut self, key: usize) -> Option<Norm> {
        let norm = self.all.remove(&key)?;
        self.by_backward.remove(&norm.bwd);
        self.by_activation.remove(&norm.z);
        self.by_gradient.entry(norm.dz).or_default().retain(|&other| other != key);
        Some(norm)
    }

    fn get(&self, key: usize) -> Option<&Norm> {
        self.all.get(&key)
    }

    /// The one whose backward node is `bwd`, with its key.
    fn of_backward(&self, bwd: usize) -> Option<(usize, &Norm)> {
        let &key = self.by_backward.get(&bwd)?;
        Some((key, &self.all[&key]))
    }

    /// The key of the one whose activation is `z`.
    fn of_activation(&self, z: ValueId) -> Option<usize> {
        self.by_activation.get(&z).copied()
    }

    /// Those whose activation's gradient is `dz`.
    fn of_gradient(&self, dz: ValueId) -> impl Iterator<Item = &Norm> {
        self.by_gradient.get(&dz).into_iter().flatten().map(|key| &self.all[key])
    }
}

impl std::ops::Index<usize> for Norms {
    type Output = Norm;

    fn index(&self, key: usize) -> &Norm {
        &self.all[&key]
    }
}

/// What is decided about a graph before it is rewritten.
struct Plan {
    index: Index,
    norms: Norms,
    ends: Ends,
    /// The nodes whose first output's moments are wanted: mean and variance.
    moments: BTreeMap<usize, [ValueId; 2]>,
    /// The pending gradients by the values that they replace.
    pending: BTreeMap<ValueId, Pending>,
}

/// Takes every batch norm of `fused` to pieces that can be.
pub(super) fn split(fused: &mut Fused) {
    let index = Index::new(&fused.graph, &fused.views);
    let mut plan =
        Plan { index, norms: Norms::default(), ends: Ends::new(), moments: BTreeMap::new(), pending: BTreeMap::new() };
    shared::find(fused, &mut plan);
    for i in 0..fused.graph.nodes.len() {
        let found = plan.find_own(&mut fused.graph, i).or_else(|| plan.find_sum(&mut fused.graph, i));
        if let Some((writer, norm)) = found {
            plan.moments.insert(writer, [norm.mean, norm.var]);
            plan.norms.insert(i, norm);
        }
    }
    plan.find_ends(&mut fused.graph);
    let placed = place::gradients(&mut fused.graph, plan);
    rewrite::rewrite(&mut fused.graph, placed);
    fused.views.resize(fused.graph.values.len(), None);
}

/// A batch norm in training with its backward node.
struct Pair {
    bn: BatchNorm,
    relu: bool,
    bwd: usize,
    y: ValueId,
    dy: ValueId,
    z: ValueId,
    dz: ValueId,
}

impl Plan {
    /// The batch norm of node `i`, if all readers of the activation can load it pending.
    fn find_pair(&self, graph: &Graph, i: usize) -> Option<Pair> {
        let node = &graph.nodes[i];
        let Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Train { relu } }) = node.op else {
            return None;
        };
        let (y, z) = (node.inputs[0], node.outputs[0]);
        let &[(bwd, 3)] = self.index.readers(node.outputs[1]) else { return None };
        let (dz, dy) = (graph.nodes[bwd].inputs[0], graph.nodes[bwd].outputs[0]);
        self.takes_pending(graph, z, bwd).then_some(Pair { bn, relu, bwd, y, dy, z, dz })
    }

    /// The batch norm of node `i` after a convolution whose output nobody else reads, and that convolution's node.
    fn find_own(&self, graph: &mut Graph, i: usize) -> Option<(usize, Norm)> {
        let Pair { bn, relu, bwd, y, dy, z, dz } = self.find_pair(graph, i)?;
        let index = &self.index;
        let &[conv] = index.writers(y) else { return None };
        let Op::Conv2d(conv2d::Node { conv: shape, pass: conv2d::Pass::Fwd(epilogue) }) = graph.nodes[conv].op else {
            return None;
        };
        let with_bias = conv2d::Epilogue { shift: true, ..conv2d::Epilogue::default() };
        let plain = [conv2d::Epilogue::default(), with_bias].contains(&epilogue)
            && graph.nodes[bwd].writes[0] == Write::Overwrite;
        let alone = index.is_alone(y) && index.is_alone(dy) && !index.is_output(y);
        let private = index.readers(y).iter().all(|&(reader, _)| reader == i || reader == bwd);
        let of_bias = |&&(reader, _): &&(usize, usize)| {
            matches!(graph.nodes[reader].op, Op::Conv2d(conv2d::Node { pass: conv2d::Pass::BwdBias, .. }))
        };
        let bias = index.readers(dy).iter().find(of_bias).map(|&(reader, _)| (reader, graph.nodes[reader].outputs[0]));
        let corrected = index.writers(dy) == [bwd]
            && index
                .readers(dy)
                .iter()
                .all(|&r| is_gradient_of(graph, shape, r) || bias.is_some_and(|(node, _)| node == r.0));
        if !plain || !alone || !private || !corrected || self.norms.get(i).is_some() {
            return None;
        }
        let mut number = || graph.add_value(bn.per_channel(), Origin::Node);
        let [mean, var, scale, shift, a, b, c] = std::array::from_fn(|_| number());
        let a = Some(a);
        Some((conv, Norm { bn, relu, bwd, y, dy, z, dz, mean, var, scale, shift, a, b, c, settles: false, bias }))
    }

    /// The batch norm of node `i` whose input others may read too, and the node that stores that.
    fn find_sum(&self, graph: &mut Graph, i: usize) -> Option<(usize, Norm)> {
        let Pair { bn, relu, bwd, y, dy, z, dz } = self.find_pair(graph, i)?;
        let index = &self.index;
        let &[writer] = index.writers(y) else { return None };
        let alone = index.is_alone(y) && index.is_alone(dy) && graph.nodes[writer].outputs[0] == y;
        // One batch norm's moments are enough.
        let first = self.norms.get(i).is_none() && !self.moments.contains_key(&writer);
        if !alone || !first || graph.ty(y).shape.dims().len() != 4 {
            return None;
        }
        let mut number = || graph.add_value(bn.per_channel(), Origin::Node);
        let [mean, var, scale, shift, b, c] = std::array::from_fn(|_| number());
        Some((
            writer,
            Norm { bn, relu, bwd, y, dy, z, dz, mean, var, scale, shift, a: None, b, c, settles: true, bias: None },
        ))
    }

    /// Whether all readers of the activation `z` can load it pending.
    fn takes_pending(&self, graph: &Graph, z: ValueId, bwd: usize) -> bool {
        let index = &self.index;
        let mut ends = 0;
        let all = index.readers(z).iter().all(|&(reader, at)| match &graph.nodes[reader].op {
            Op::Conv2d(conv2d::Node { pass: conv2d::Pass::Fwd(_), .. })
            | Op::Pool(pool::Node { pass: pool::Pass::Fwd, .. }) => at == 0,
            Op::Conv2d(conv2d::Node { pass: conv2d::Pass::BwdW, .. }) => at == 1,
            op if as_end(op).is_some() => {
                ends += 1;
                true
            }
            _ => reader == bwd,
        });
        let only = index.writers(z).len() == 1 && index.is_alone(z) && !index.is_output(z);
        all && only && ends <= 1
    }

    /// Finds the ends of blocks that load pending operands.
    fn find_ends(&mut self, graph: &mut Graph) {
        for i in 0..graph.nodes.len() {
            let Some(BlockEnd { relu, gate }) = as_end(&graph.nodes[i].op) else { continue };
            let operands = [graph.nodes[i].inputs[0], graph.nodes[i].inputs[1]];
            let mut norms = operands.map(|v| self.norms.of_activation(v));
            if let (false, [Some(_), Some(second)]) = (relu, norms) {
                // The gradient's epilogue takes the sums of one.
                self.keep_whole(second);
                norms[1] = None;
            }
            if norms == [None; 2] {
                continue;
            }
            let gate = gate.map(|at| graph.nodes[i].inputs[at]);
            let signs = if relu { self.find_signs(graph, graph.nodes[i].outputs[0], norms, gate) } else { None };
            self.ends.insert(i, End { norms, signs });
        }
    }

    /// How the gradient of `y`, the end of a block whose operands are `norms`, goes back through the ReLU; `None` where
    /// that says nothing about any of these. With a gate the second operand may be dropped.
    fn find_signs(
        &self,
        graph: &mut Graph,
        y: ValueId,
        norms: [Option<usize>; 2],
        gate: Option<ValueId>,
    ) -> Option<Signs> {
        let (bwd, [n, h, w, c]) = (self.find_relu(graph, y)?, graph.ty(y).shape.nhwc()?);
        let ds = graph.nodes[bwd].outputs[0];
        let is_masked = |key: &usize| {
            let n = &self.norms[*key];
            let stored = n.dz == ds && self.index.last_writer(ds, n.bwd) == Some(bwd);
            // The convolutions read it where the batch norms' backward passes did.
            !n.relu && n.a.is_some() && stored && self.index.keeps(ds, n.bwd, n.dy)
        };
        let [first, second] = norms.map(|key| key.filter(is_masked));
        let gate = gate.filter(|_| second.is_some());
        let norms: Vec<usize> =
            if gate.is_some() { [second, first] } else { [first, second] }.into_iter().flatten().collect();
        if norms.is_empty() || !self.index.is_alone(ds) {
            return None;
        }
        let bits = graph.add_value(TensorType::byte([n, h, w, norm::sign_bytes(c)]), Origin::Node);
        Some(Signs { bits, bwd, norms, gate })
    }

    fn keep_whole(&mut self, key: usize) {
        let Some(norm) = self.norms.remove(key) else { return };
        for writer in self.index.writers(norm.y) {
            if self.moments.get(writer) == Some(&[norm.mean, norm.var]) {
                self.moments.remove(writer);
            }
        }
    }

    /// The backward node of the ReLU that gave `y`.
    fn find_relu(&self, graph: &Graph, y: ValueId) -> Option<usize> {
        let is_bwd = |&&(reader, at): &&(usize, usize)| {
            at == 1 && matches!(graph.nodes[reader].op, Op::Relu(relu::Node { pass: relu::Pass::Bwd, .. }))
        };
        self.index.readers(y).iter().find(is_bwd).map(|&(reader, _)| reader)
    }
}

/// An addition at the end of a block.
struct BlockEnd {
    relu: bool,
    /// Where among its inputs the gate of the second operand is, if that may be dropped.
    gate: Option<usize>,
}

/// `op` as the end of a block, if it can be one.
fn as_end(op: &Op) -> Option<BlockEnd> {
    match *op {
        Op::Add(add::Node { relu, .. }) => Some(BlockEnd { relu, gate: None }),
        Op::Join(join::Node { relu, keep: join::Keep::Gated, .. }) => Some(BlockEnd { relu, gate: Some(2) }),
        _ => None,
    }
}

/// Whether `reader` is a backward pass of the convolution `shape` that reads this as its dy.
fn is_gradient_of(graph: &Graph, shape: conv2d::Conv2d, (reader, at): (usize, usize)) -> bool {
    match graph.nodes[reader].op {
        Op::Conv2d(conv2d::Node { conv, pass: conv2d::Pass::BwdX | conv2d::Pass::BwdW }) => at == 0 && conv == shape,
        _ => false,
    }
}

/// A value for a number of each channel of `root`, or of the slice `view` of it.
fn slice(fused: &mut Fused, ty: TensorType, view: View) -> ValueId {
    let value = fused.graph.add_value(ty, Origin::Node);
    fused.views.resize(fused.graph.values.len(), None);
    fused.views[value.index()] = Some(view);
    value
}
