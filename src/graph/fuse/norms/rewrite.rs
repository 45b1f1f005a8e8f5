//! The rewrite itself: node by node, as was decided.

use std::collections::HashMap;

use super::place::Placed;
use super::{as_end, BlockEnd, Norm, Pending};
use crate::graph::{Graph, Node, Origin, ValueId};
use crate::ops::batch_norm::{self, BatchNorm};
use crate::ops::norm::{self, Correction, Prologue};
use crate::ops::{block_end, conv2d, norm_conv, norm_pool, pool, Op, Write};
use crate::{Error, Result};

/// Rewrites `graph` as `placed` says.
pub(super) fn rewrite(graph: &mut Graph, mut placed: Placed) {
    let nodes = std::mem::take(&mut graph.nodes);
    let mut rewritten = Vec::with_capacity(nodes.len());
    for (i, node) in nodes.into_iter().enumerate() {
        if let Some(pass) = placed.passes.remove(&i) {
            let pass = load_shared(graph, &placed, pass, &mut rewritten);
            rewritten.push(pass);
        }
        if !placed.removed.contains(&i) {
            let in_pieces = placed.plan.norms.of_backward(i).is_some();
            let node = if in_pieces { node } else { load_shared(graph, &placed, node, &mut rewritten) };
            rewritten.push(placed.rewritten(graph, i, node));
            rewritten.extend(placed.moments(graph, i, &rewritten[rewritten.len() - 1]));
            rewritten.extend(placed.settled(graph, i, rewritten[rewritten.len() - 1].gate));
        }
    }
    for node in &mut rewritten {
        node.inputs.iter_mut().chain(&mut node.outputs).for_each(|v| *v = last_place(&mut placed.alias, *v));
    }
    graph.nodes = rewritten;
}

/// Where `v` lies in the end. The gradients of a stage's blocks may all lie in one place, each in that of the next, so
/// what was found is noted for those on the way.
fn last_place(alias: &mut HashMap<ValueId, ValueId>, v: ValueId) -> ValueId {
    let mut last = v;
    while let Some(&place) = alias.get(&last) {
        last = place;
    }
    let mut at = v;
    while let Some(place) = alias.get_mut(&at).filter(|place| **place != last) {
        at = std::mem::replace(place, last);
    }
    last
}

/// Whether `node` corrects its first input while it loads.
fn corrects(node: &Node) -> bool {
    matches!(node.op, Op::Conv2d(conv2d::Node { pass: conv2d::Pass::BwdX | conv2d::Pass::BwdW, .. }))
}

/// A reader that cannot correct a pending gradient gets it corrected.
fn load_shared(graph: &mut Graph, placed: &Placed, mut node: Node, nodes: &mut Vec<Node>) -> Node {
    for at in 0..node.inputs.len() {
        let Some(&Pending { g, y, a: None, b, c }) = placed.plan.pending.get(&node.inputs[at]) else { continue };
        if at == 0 && corrects(&node) {
            continue;
        }
        let ty = graph.ty(g).clone();
        let Some(shape) = ty.shape.nhwc() else { continue };
        let dy = graph.add_value(ty, Origin::Node);
        nodes.push(overwrite(corrected(shape), vec![g, y, b, c], vec![dy], node.reads_under(at)));
        node.inputs[at] = dy;
    }
    node
}

impl Placed {
    fn rewritten(&mut self, graph: &Graph, i: usize, node: Node) -> Node {
        match node.op.clone() {
            Op::Conv2d(conv) => self.conv(i, conv, node),
            Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Train { .. }, .. }) => self.affine(i, node),
            Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Bwd { .. }, .. }) => self.coefficients(i, node),
            Op::Pool(pool) => self.pool(i, pool, node),
            op if as_end(&op).is_some() => self.end(graph, i, node),
            _ => node,
        }
    }

    /// The batch norm whose pending activation is `z`.
    fn activation(&self, z: ValueId) -> Option<Norm> {
        self.plan.norms.of_activation(z).map(|key| self.plan.norms[key])
    }

    /// A convolution next to batch norms in pieces.
    fn conv(&mut self, i: usize, conv: conv2d::Node, node: Node) -> Node {
        let (activation, gradient) = match conv.pass {
            conv2d::Pass::Fwd(_) => (Some(node.inputs[0]), None),
            conv2d::Pass::BwdX => (None, Some(node.inputs[0])),
            conv2d::Pass::BwdW => (Some(node.inputs[1]), Some(node.inputs[0])),
            conv2d::Pass::BwdBias => return node,
        };
        let x = activation.and_then(|v| self.activation(v));
        let dy = gradient.and_then(|v| self.plan.pending.get(&v).copied());
        let moments = self.plan.moments.remove(&i);
        let tail = self.tails.remove(&i);
        if x.is_none() && dy.is_none() && moments.is_none() && tail.is_none() {
            return node;
        }
        let Node { mut inputs, mut outputs, mut writes, gate, .. } = node;
        let prologue = x.map(|n| Prologue { relu: n.relu });
        let correction = dy.map(|p| Correction { a: p.a.is_some() });
        let loads_x = x.map_or(Vec::new(), |n| vec![n.scale, n.shift]);
        let loads_dy =
            dy.map_or(Vec::new(), |p| [Some(p.y), p.a, Some(p.b), Some(p.c)].into_iter().flatten().collect());
        let at = usize::from(conv.pass == conv2d::Pass::BwdW);
        if let Some(n) = x {
            inputs[at] = n.y;
        }
        if let Some(p) = dy {
            inputs[0] = p.g;
        }
        let pass = match conv.pass {
            conv2d::Pass::Fwd(epilogue) => {
                inputs.splice(2..2, loads_x);
                outputs.extend(moments.into_iter().flatten());
                norm_conv::Pass::Fwd { prologue, epilogue, moments: moments.is_some() }
            }
            conv2d::Pass::BwdX => {
                inputs.extend(loads_dy);
                let epilogue = tail.as_ref().map(|t| t.epilogue);
                if let Some(tail) = tail {
                    inputs.extend(tail.operands);
                    (outputs[0], writes[0]) = tail.store.unwrap_or((outputs[0], writes[0]));
                    outputs.extend(tail.sums);
                }
                norm_conv::Pass::BwdX { correction, epilogue }
            }
            _ => {
                inputs.extend(loads_dy);
                inputs.extend(loads_x);
                norm_conv::Pass::BwdW { correction, prologue }
            }
        };
        writes.resize(outputs.len(), Write::Overwrite);
        Node { op: Op::NormConv(norm_conv::Node { conv: conv.conv, pass }), inputs, outputs, writes, gate }
    }

    /// In place of a batch norm: its scale and shift.
    fn affine(&self, i: usize, node: Node) -> Node {
        let Some(n) = self.plan.norms.get(i) else { return node };
        let op = Op::Norm(norm::Node { bn: n.bn, pass: norm::Pass::Affine });
        let inputs = vec![node.inputs[1], node.inputs[2], n.mean, n.var];
        overwrite(op, inputs, vec![n.scale, n.shift, node.outputs[3], node.outputs[4]], node.gate)
    }

    /// In place of its backward pass: the gradients of gamma and beta and what consumers of dy need.
    fn coefficients(&self, i: usize, node: Node) -> Node {
        let Some((key, n)) = self.plan.norms.of_backward(i) else { return node };
        let [dy_sum, dyx_sum] = self.sums[&key];
        let lazy = n.a.is_none();
        let op = Op::Norm(norm::Node { bn: n.bn, pass: norm::Pass::Coefficients { lazy, bias: n.bias.is_some() } });
        let mut outputs = vec![node.outputs[1], node.outputs[2]];
        outputs.extend([n.a, Some(n.b), Some(n.c), n.bias.map(|(_, grad)| grad)].into_iter().flatten());
        let mut writes = vec![Write::Overwrite; outputs.len()];
        if lazy && !n.settles {
            writes[2..].fill(node.writes[0]);
        }
        Node { op, inputs: vec![dy_sum, dyx_sum, node.inputs[2], n.mean, n.var], outputs, writes, gate: node.gate }
    }

    /// The pass that corrects the gradient of a sum where it lies, behind the coefficients of node `i`.
    fn settled(&self, graph: &Graph, i: usize, gate: Option<ValueId>) -> Option<Node> {
        let (_, n) = self.plan.norms.of_backward(i).filter(|(_, n)| n.settles)?;
        let node = corrected(graph.ty(n.dy).shape.nhwc()?);
        Some(overwrite(node, vec![n.dy, n.y, n.b, n.c], vec![n.dy], gate))
    }

    fn pool(&mut self, i: usize, pool: pool::Node, mut node: Node) -> Node {
        let tail = self.tails.remove(&i);
        let pass = match (pool.pass, self.activation(node.inputs[0]), tail) {
            (pool::Pass::Fwd, Some(n), _) => {
                node.inputs = vec![n.y, n.scale, n.shift];
                norm_pool::Pass::Fwd(Prologue { relu: n.relu })
            }
            (pool::Pass::Bwd, _, Some(tail)) => {
                node.inputs.extend(tail.operands);
                (node.outputs[0], node.writes[0]) = tail.store.unwrap_or((node.outputs[0], node.writes[0]));
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
    fn end(&self, graph: &Graph, i: usize, node: Node) -> Node {
        let (Some(end), Some(BlockEnd { relu, gate }), Some(shape)) =
            (self.plan.ends.get(&i), as_end(&node.op), graph.ty(node.outputs[0]).shape.nhwc())
        else {
            return node;
        };
        let norms = end.norms.map(|key| key.map(|key| self.plan.norms[key]));
        let mut inputs: Vec<ValueId> = (0..2).map(|at| norms[at].map_or(node.inputs[at], |n| n.y)).collect();
        norms.iter().flatten().for_each(|n| inputs.extend([n.scale, n.shift]));
        inputs.extend(gate.map(|at| node.inputs[at]));
        let mut outputs = vec![node.outputs[0]];
        outputs.extend(end.signs.as_ref().map(|signs| signs.bits));
        let op = block_end::Node {
            shape,
            affine: norms.map(|n| n.is_some()),
            activated: norms.map(|n| n.is_some_and(|n| n.relu)),
            gated: gate.is_some(),
            relu,
            signs: end.signs.is_some(),
        };
        overwrite(Op::BlockEnd(op), inputs, outputs, node.gate)
    }

    /// A pass for the moments of what `node` stores, where they are wanted and it has not left them itself.
    fn moments(&mut self, graph: &Graph, i: usize, node: &Node) -> Option<Node> {
        let moments = self.plan.moments.remove(&i)?;
        let bn = norm_of(graph, node.outputs[0]).ok()?;
        let op = Op::Norm(norm::Node { bn, pass: norm::Pass::Moments });
        Some(overwrite(op, vec![node.outputs[0]], moments.to_vec(), node.gate))
    }
}

/// `g + b y + c`.
fn corrected(shape: [usize; 4]) -> Op {
    let (affine, activated) = ([false, true], [false; 2]);
    Op::BlockEnd(block_end::Node { shape, affine, activated, gated: false, relu: false, signs: false })
}

/// A batch norm over `v`, for its moments: nothing else of it matters.
fn norm_of(graph: &Graph, v: ValueId) -> Result<BatchNorm> {
    let shape = graph.ty(v).shape.nhwc();
    let x = shape.ok_or_else(|| Error::invalid("batch_norm", "a tensor that is not images"))?;
    BatchNorm::new(batch_norm::Spec { x, eps: 1e-5, momentum: 0.1 })
}

fn overwrite(op: Op, inputs: Vec<ValueId>, outputs: Vec<ValueId>, gate: Option<ValueId>) -> Node {
    let writes = vec![Write::Overwrite; outputs.len()];
    Node { op, inputs, outputs, writes, gate }
}
