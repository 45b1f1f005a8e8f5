//! Batch norms in training without passes over memory of their own.
//!
//! A batch norm after a convolution is taken to [pieces](crate::ops::norm). The convolution leaves the moments of what it
//! stores; the activation is never stored, it is *pending*: whoever reads it (a convolution, a pooling, the end of a
//! block) applies scale, shift and ReLU while it loads. Backward, the op that stores the gradient of the activation masks
//! it and leaves the two sums, and the gradient of the convolution's output is pending: the convolution's backward
//! passes apply the correction while they load. Where the op that stores a gradient cannot do its part, a
//! [`norm::Pass::Gradient`] does; where a reader cannot load what is pending, the batch norm stays whole.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::index::Index;
use crate::graph::{Graph, Node, Origin, ValueId};
use crate::ops::batch_norm::{self, BatchNorm};
use crate::ops::norm::{self, Correction, Epilogue, Prologue};
use crate::ops::{add, block_end, conv2d, norm_conv, norm_pool, pool, relu, Op, Write};
use crate::tensor::TensorType;

/// A batch norm that is taken to pieces.
#[derive(Clone, Copy)]
struct Norm {
    bn: BatchNorm,
    relu: bool,
    /// Its backward node, and the convolution before it.
    bwd: usize,
    conv: usize,
    /// The convolution's output and its gradient; the activation and its gradient.
    y: ValueId,
    dy: ValueId,
    z: ValueId,
    dz: ValueId,
    mean: ValueId,
    var: ValueId,
    scale: ValueId,
    shift: ValueId,
    /// a, b and c of the correction.
    correction: [ValueId; 3],
}

/// The end of a residual block with a pending operand.
struct End {
    /// For each operand the batch norm behind it, where that is pending.
    norms: [Option<usize>; 2],
    /// The backward node of the ReLU, and the signs that it needs, where there is a ReLU.
    relu: Option<(usize, ValueId)>,
}

/// What the op that stores a gradient does to it on top.
struct Tail {
    epilogue: Epilogue,
    operands: Vec<ValueId>,
    sums: Vec<ValueId>,
}

/// Norms by their forward node, ends by their addition.
type Norms = BTreeMap<usize, Norm>;
type Ends = BTreeMap<usize, End>;

/// Takes every batch norm of `graph` to pieces that can be.
pub(super) fn split(graph: &mut Graph) {
    let index = Index::new(graph);
    let mut norms: Norms = (0..graph.nodes.len()).filter_map(|i| Some((i, find_norm(graph, &index, i)?))).collect();
    let ends = find_ends(graph, &index, &mut norms);
    let mut rewriter = Rewriter {
        graph,
        index,
        norms,
        ends,
        tails: HashMap::new(),
        gradients: BTreeMap::new(),
        passes: HashMap::new(),
        removed: HashSet::new(),
        alias: HashMap::new(),
    };
    rewriter.place_ends();
    rewriter.place_norms();
    rewriter.rewrite();
}

/// The batch norm whose forward node is `i`, if it can be taken to pieces.
fn find_norm(graph: &mut Graph, index: &Index, i: usize) -> Option<Norm> {
    let node = &graph.nodes[i];
    let Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Train { relu } }) = node.op else { return None };
    let (y, z, mean) = (node.inputs[0], node.outputs[0], node.outputs[1]);
    let &[conv] = index.writers(y) else { return None };
    let Op::Conv2d(conv2d::Node { conv: shape, pass: conv2d::Pass::Fwd(epilogue) }) = graph.nodes[conv].op else {
        return None;
    };
    let &[(bwd, 3)] = index.readers(mean) else { return None };
    let backward = &graph.nodes[bwd];
    let (dz, dy) = (backward.inputs[0], backward.outputs[0]);
    let plain = epilogue == conv2d::Epilogue::default() && backward.writes[0] == Write::Overwrite;
    let private = index.readers(y).iter().all(|&(reader, _)| reader == i || reader == bwd) && !index.is_output(y);
    let is_gradient_of_conv = |&(reader, at): &(usize, usize)| match graph.nodes[reader].op {
        Op::Conv2d(conv2d::Node { conv, pass: conv2d::Pass::BwdX | conv2d::Pass::BwdW }) => at == 0 && conv == shape,
        _ => false,
    };
    let corrected = index.writers(dy) == [bwd] && index.readers(dy).iter().all(is_gradient_of_conv);
    if !plain || !private || !corrected || !takes_pending(graph, index, z, relu, bwd) {
        return None;
    }
    let mut number = || graph.add_value(bn.per_channel(), Origin::Node);
    let [mean, var, scale, shift, a, b, c] = std::array::from_fn(|_| number());
    Some(Norm { bn, relu, bwd, conv, y, dy, z, dz, mean, var, scale, shift, correction: [a, b, c] })
}

/// Whether all readers of the activation `z` can load it pending.
fn takes_pending(graph: &Graph, index: &Index, z: ValueId, relu: bool, bwd: usize) -> bool {
    let (mut ends, mut others) = (0, 0);
    let all = index.readers(z).iter().all(|&(reader, at)| match &graph.nodes[reader].op {
        Op::Conv2d(conv2d::Node { pass: conv2d::Pass::Fwd(_), .. })
        | Op::Pool(pool::Node { pass: pool::Pass::Fwd, .. }) => {
            others += 1;
            at == 0
        }
        Op::Conv2d(conv2d::Node { pass: conv2d::Pass::BwdW, .. }) => at == 1,
        Op::Add(_) => {
            ends += 1;
            !relu
        }
        _ => reader == bwd,
    });
    all && index.writers(z).len() == 1 && !index.is_output(z) && (ends == 0 || (ends == 1 && others == 0))
}

/// The ends of blocks that load pending operands. A batch norm whose block's end cannot is taken from `norms`.
fn find_ends(graph: &mut Graph, index: &Index, norms: &mut Norms) -> Ends {
    let mut ends = Ends::new();
    for i in 0..graph.nodes.len() {
        let Op::Add(add::Node { relu, .. }) = graph.nodes[i].op else { continue };
        let operands = [graph.nodes[i].inputs[0], graph.nodes[i].inputs[1]];
        let mut pending = operands.map(|v| norms.iter().find(|(_, n)| n.z == v).map(|(&key, _)| key));
        if pending == [None; 2] {
            continue;
        }
        let y = graph.nodes[i].outputs[0];
        if let (false, [Some(_), Some(second)]) = (relu, pending) {
            // The gradient's epilogue takes the sums of one.
            norms.remove(&second);
            pending[1] = None;
        }
        let bwd = find_relu(graph, index, y).filter(|&bwd| {
            let ds = graph.nodes[bwd].outputs[0];
            pending.iter().flatten().all(|key| {
                let norm = &norms[key];
                norm.dz == ds && index.last_writer(ds, norm.bwd) == Some(bwd)
            })
        });
        let signs = match (bwd, graph.ty(y).shape.nhwc()) {
            (Some(bwd), Some([n, h, w, c])) if relu => {
                let ty = TensorType::byte([n, h, w, norm::sign_bytes(c)]);
                Some((bwd, graph.add_value(ty, Origin::Node)))
            }
            _ => None,
        };
        if relu && signs.is_none() {
            pending.iter().flatten().for_each(|key| drop(norms.remove(key)));
        } else {
            ends.insert(i, End { norms: pending, relu: signs });
        }
    }
    ends
}

/// The backward node of the ReLU that gave `y`.
fn find_relu(graph: &Graph, index: &Index, y: ValueId) -> Option<usize> {
    let is_bwd = |&&(reader, at): &&(usize, usize)| {
        at == 1 && matches!(graph.nodes[reader].op, Op::Relu(relu::Node { pass: relu::Pass::Bwd, .. }))
    };
    index.readers(y).iter().find(is_bwd).map(|&(reader, _)| reader)
}

struct Rewriter<'g> {
    graph: &'g mut Graph,
    index: Index,
    norms: Norms,
    ends: Ends,
    /// What nodes that store gradients do on top.
    tails: HashMap<usize, Tail>,
    /// For each batch norm the gradient as it is stored, and its two sums.
    gradients: BTreeMap<usize, (ValueId, [ValueId; 2])>,
    /// Gradients' own passes, before or in place of a node.
    passes: HashMap<usize, Node>,
    removed: HashSet<usize>,
    /// Values that lie where others do.
    alias: HashMap<ValueId, ValueId>,
}

impl Rewriter<'_> {
    fn numbers(&mut self, bn: &BatchNorm, count: usize) -> Vec<ValueId> {
        (0..count).map(|_| self.graph.add_value(bn.per_channel(), Origin::Node)).collect()
    }

    /// Decides for the end of each block who masks its gradient and sums it.
    fn place_ends(&mut self) {
        for (keys, bwd, signs) in
            self.ends.values().filter_map(|e| e.relu.map(|(bwd, signs)| (e.norms, bwd, signs))).collect::<Vec<_>>()
        {
            let keys: Vec<usize> = keys.into_iter().flatten().collect();
            let bn = self.norms[&keys[0]].bn;
            let sums = self.numbers(&bn, 1 + keys.len());
            let mut operands = vec![signs];
            keys.iter().for_each(|k| operands.extend([self.norms[k].y, self.norms[k].mean]));
            let tail = Tail { epilogue: Epilogue::Signs { norms: keys.len() }, operands, sums: sums.clone() };
            let (dz, ds) = (self.graph.nodes[bwd].inputs[0], self.graph.nodes[bwd].outputs[0]);
            self.removed.insert(bwd);
            if let Some(writer) = self.open_writer(dz, bwd, true) {
                self.tails.insert(writer, tail);
                self.alias.insert(ds, dz);
            } else {
                self.passes.insert(bwd, gradient_pass(bn, tail, dz, ds));
            }
            for (i, &key) in keys.iter().enumerate() {
                self.gradients.insert(key, (ds, [sums[0], sums[1 + i]]));
            }
        }
    }

    /// The same for each batch norm that is not at the end of a block with a ReLU.
    fn place_norms(&mut self) {
        for key in self.norms.keys().copied().collect::<Vec<_>>() {
            if self.gradients.contains_key(&key) {
                continue;
            }
            let Norm { bn, relu, bwd, y, dz, mean, scale, shift, .. } = self.norms[&key];
            let sums = self.numbers(&bn, 2);
            let epilogue = Epilogue::Affine { relu, scaled: false };
            let tail = Tail { epilogue, operands: vec![y, scale, shift, mean], sums: sums.clone() };
            let mut g = dz;
            if let Some(writer) = self.open_writer(dz, bwd, relu) {
                self.tails.insert(writer, tail);
            } else {
                g = self.graph.add_value(bn.x(), Origin::Node);
                self.passes.insert(bwd, gradient_pass(bn, tail, dz, g));
            }
            self.gradients.insert(key, (g, [sums[0], sums[1]]));
        }
    }

    /// The node that leaves the gradient `dz` which `reader` reads, if it can do more to it. With `alone` nobody else
    /// may read it.
    fn open_writer(&self, dz: ValueId, reader: usize, alone: bool) -> Option<usize> {
        let writer = self.index.last_writer(dz, reader)?;
        let stores_gradient = matches!(
            self.graph.nodes[writer].op,
            Op::Conv2d(conv2d::Node { pass: conv2d::Pass::BwdX, .. })
                | Op::Pool(pool::Node { pass: pool::Pass::Bwd, .. })
        );
        let open = stores_gradient && !self.tails.contains_key(&writer) && !self.index.is_output(dz);
        (open && (!alone || self.index.sole_reader(dz, writer, reader))).then_some(writer)
    }

    fn rewrite(mut self) {
        let nodes = std::mem::take(&mut self.graph.nodes);
        let mut rewritten = Vec::with_capacity(nodes.len());
        for (i, node) in nodes.into_iter().enumerate() {
            rewritten.extend(self.passes.remove(&i));
            if !self.removed.contains(&i) {
                rewritten.push(self.rewritten(i, node));
            }
        }
        for node in &mut rewritten {
            for v in node.inputs.iter_mut().chain(&mut node.outputs) {
                while let Some(&place) = self.alias.get(v) {
                    *v = place;
                }
            }
        }
        self.graph.nodes = rewritten;
    }

    fn rewritten(&mut self, i: usize, node: Node) -> Node {
        match node.op.clone() {
            Op::Conv2d(conv) => self.conv(i, conv, node),
            Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Train { .. }, .. }) => self.affine(i, node),
            Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Bwd { .. }, .. }) => self.coefficients(i, node),
            Op::Pool(pool) => self.pool(i, pool, node),
            Op::Add(_) => self.end(i, node),
            _ => node,
        }
    }

    fn find(&self, is: impl Fn(&Norm) -> bool) -> Option<Norm> {
        self.norms.values().find(|n| is(n)).copied()
    }

    /// A convolution next to batch norms in pieces.
    fn conv(&mut self, i: usize, conv: conv2d::Node, node: Node) -> Node {
        let (pending, corrected) = match conv.pass {
            conv2d::Pass::Fwd(_) => (Some(node.inputs[0]), None),
            conv2d::Pass::BwdX => (None, Some(node.inputs[0])),
            conv2d::Pass::BwdW => (Some(node.inputs[1]), Some(node.inputs[0])),
            conv2d::Pass::BwdBias => return node,
        };
        let x = pending.and_then(|v| self.find(|n| n.z == v));
        let dy = corrected.and_then(|v| self.norms.iter().find(|(_, n)| n.dy == v)).map(|(&key, &n)| (key, n));
        let after = self.find(|n| n.conv == i);
        let tail = self.tails.remove(&i);
        if x.is_none() && dy.is_none() && after.is_none() && tail.is_none() {
            return node;
        }
        let Node { mut inputs, mut outputs, mut writes, .. } = node;
        let prologue = x.map(|n| Prologue { relu: n.relu });
        let correction = dy.map(|_| Correction { a: true });
        let loads_x = x.map_or(Vec::new(), |n| vec![n.scale, n.shift]);
        let mut loads_dy = Vec::new();
        if let Some((key, n)) = dy {
            inputs[0] = self.gradients[&key].0;
            loads_dy.push(n.y);
            loads_dy.extend(n.correction);
        }
        let pass = match conv.pass {
            conv2d::Pass::Fwd(epilogue) => {
                if let Some(n) = x {
                    inputs[0] = n.y;
                }
                inputs.splice(2..2, loads_x);
                outputs.extend(after.iter().flat_map(|n| [n.mean, n.var]));
                norm_conv::Pass::Fwd { prologue, epilogue, moments: after.is_some() }
            }
            conv2d::Pass::BwdX => {
                inputs.extend(loads_dy);
                let epilogue = tail.as_ref().map(|t| t.epilogue);
                if let Some(tail) = tail {
                    inputs.extend(tail.operands);
                    outputs.extend(tail.sums);
                }
                norm_conv::Pass::BwdX { correction, epilogue }
            }
            _ => {
                if let Some(n) = x {
                    inputs[1] = n.y;
                }
                inputs.extend(loads_dy);
                inputs.extend(loads_x);
                norm_conv::Pass::BwdW { correction, prologue }
            }
        };
        writes.resize(outputs.len(), Write::Overwrite);
        Node { op: Op::NormConv(norm_conv::Node { conv: conv.conv, pass }), inputs, outputs, writes }
    }

    /// In place of a batch norm: its scale and shift.
    fn affine(&self, i: usize, node: Node) -> Node {
        let Some(n) = self.norms.get(&i) else { return node };
        let op = Op::Norm(norm::Node { bn: n.bn, pass: norm::Pass::Affine });
        let inputs = vec![node.inputs[1], node.inputs[2], n.mean, n.var];
        overwrite(op, inputs, vec![n.scale, n.shift, node.outputs[3], node.outputs[4]])
    }

    /// In place of its backward pass: the gradients of gamma and beta and what consumers of dy need.
    fn coefficients(&self, i: usize, node: Node) -> Node {
        let Some((key, n)) = self.norms.iter().find(|(_, n)| n.bwd == i) else { return node };
        let [dy_sum, dyx_sum] = self.gradients[key].1;
        let op = Op::Norm(norm::Node { bn: n.bn, pass: norm::Pass::Coefficients { lazy: false } });
        let inputs = vec![dy_sum, dyx_sum, node.inputs[2], n.mean, n.var];
        let mut outputs = vec![node.outputs[1], node.outputs[2]];
        outputs.extend(n.correction);
        overwrite(op, inputs, outputs)
    }

    fn pool(&mut self, i: usize, pool: pool::Node, mut node: Node) -> Node {
        let tail = self.tails.remove(&i);
        let x = self.find(|n| n.z == node.inputs[0]);
        let pass = match (pool.pass, x, tail) {
            (pool::Pass::Fwd, Some(n), _) => {
                node.inputs = vec![n.y, n.scale, n.shift];
                norm_pool::Pass::Fwd(Prologue { relu: n.relu })
            }
            (pool::Pass::Bwd, _, Some(tail)) => {
                node.inputs.extend(tail.operands);
                node.outputs.extend(tail.sums);
                norm_pool::Pass::Bwd(tail.epilogue)
            }
            _ => return node,
        };
        node.op = Op::NormPool(norm_pool::Node { pool: pool.pool, pass });
        node.writes.resize(node.outputs.len(), Write::Overwrite);
        node
    }

    /// The end of a block that loads pending operands.
    fn end(&self, i: usize, node: Node) -> Node {
        let (Some(end), Some(shape)) = (self.ends.get(&i), self.graph.ty(node.outputs[0]).shape.nhwc()) else {
            return node;
        };
        let norms = end.norms.map(|key| key.map(|key| self.norms[&key]));
        let mut inputs: Vec<ValueId> = (0..2).map(|at| norms[at].map_or(node.inputs[at], |n| n.y)).collect();
        norms.iter().flatten().for_each(|n| inputs.extend([n.scale, n.shift]));
        let mut outputs = vec![node.outputs[0]];
        outputs.extend(end.relu.map(|(_, signs)| signs));
        let affine = norms.map(|n| n.is_some());
        let (relu, signs) = (end.relu.is_some(), end.relu.is_some());
        overwrite(Op::BlockEnd(block_end::Node { shape, affine, relu, signs }), inputs, outputs)
    }
}

/// The pass that masks and sums `dz` by itself and leaves `g`.
fn gradient_pass(bn: BatchNorm, tail: Tail, dz: ValueId, g: ValueId) -> Node {
    let op = Op::Norm(norm::Node { bn, pass: norm::Pass::Gradient(tail.epilogue) });
    let inputs = std::iter::once(dz).chain(tail.operands).collect();
    overwrite(op, inputs, std::iter::once(g).chain(tail.sums).collect())
}

fn overwrite(op: Op, inputs: Vec<ValueId>, outputs: Vec<ValueId>) -> Node {
    let writes = vec![Write::Overwrite; outputs.len()];
    Node { op, inputs, outputs, writes }
}
