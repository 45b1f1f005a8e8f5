//! The rewrite itself: node by node, as was decided.

use std::collections::HashMap;

use super::place::{NormSums, Placed};
use super::{as_end, Norm, Pending};
use crate::graph::{Graph, Node, Origin, Stored, ValueId};
use crate::ops::batch_norm::{self, BatchNorm, Bwd, Train};
use crate::ops::conv2d::{self, Pass};
use crate::ops::load::{Affine, Load, Operand};
use crate::ops::norm::{self, Coefficients, Measure, Scale};
use crate::ops::{pool, sum, Call, Op, Write};
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
            rewritten.push(placed.rewritten(i, node));
            rewritten.extend(placed.moments(graph, i, &rewritten[rewritten.len() - 1]));
            rewritten.extend(placed.corrected_in_place(graph, i, rewritten[rewritten.len() - 1].gate));
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
    matches!(node.op, Op::Conv2d(conv2d::Node { pass: Pass::BwdX(_) | Pass::BwdW(_), .. }))
}

/// A reader that cannot correct a pending gradient gets it corrected.
fn load_shared(graph: &mut Graph, placed: &Placed, mut node: Node, nodes: &mut Vec<Node>) -> Node {
    for at in 0..node.inputs.len() {
        let Some(&pending @ Pending { g, a: None, .. }) = placed.plan.pending.get(&node.inputs[at]) else { continue };
        if at == 0 && corrects(&node) {
            continue;
        }
        let dy = graph.add_value(graph.ty(g).clone(), Origin::Node);
        nodes.push(corrected(graph, pending, dy, node.reads_under(at)));
        node.inputs[at] = dy;
    }
    node
}

impl Placed {
    fn rewritten(&mut self, i: usize, node: Node) -> Node {
        match node.op.clone() {
            Op::Conv2d(conv) => self.conv(i, conv, node),
            Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Train { .. }, .. }) => self.affine(i, node),
            Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Bwd(form), .. }) => {
                self.coefficients(i, form, node)
            }
            Op::Pool(pool) => self.pool(i, pool, node),
            Op::Sum(_) => self.end(i, node),
            _ => node,
        }
    }

    /// The batch norm whose pending activation is `z`.
    fn activation(&self, z: ValueId) -> Option<Norm> {
        self.plan.norms.of_activation(z).map(|key| self.plan.norms[key])
    }

    /// A convolution next to batch norms in pieces.
    fn conv(&mut self, i: usize, conv: conv2d::Node, node: Node) -> Node {
        let mut pass = node.bind(conv.pass);
        match &mut pass {
            Pass::Fwd(call) => {
                self.load_activation(&mut call.x);
                call.moments = self.plan.moments.remove(&i).map(|(_, moments)| moments.map(|_, v| v.into()));
            }
            Pass::BwdX(call) => {
                self.load_gradient(&mut call.dy);
                if let Some(epilogue) = self.epilogues.remove(&i) {
                    call.dx = epilogue.store.unwrap_or(call.dx);
                    call.mask = Some(epilogue.mask);
                    call.sums = Some(epilogue.sums.map(|_, v| v.into()));
                }
            }
            Pass::BwdW(call) => {
                self.load_gradient(&mut call.dy);
                self.load_activation(&mut call.x);
            }
            Pass::Bwd(_) | Pass::BwdBias(_) => {}
        }
        Node::new(Op::Conv2d(conv2d::Node { conv: conv.conv, pass: pass.form() }), pass, node.gate)
    }

    /// Loads `x` through its batch norm, if it is a pending activation.
    fn load_activation(&self, x: &mut Operand<ValueId>) {
        if let Some(Norm { y, affine, relu, .. }) = self.activation(x.value) {
            *x = Operand { value: y, load: Load::Affine { affine, relu } };
        }
    }

    /// Corrects `dy` while it is loaded, if it is a pending gradient.
    fn load_gradient(&self, dy: &mut Operand<ValueId>) {
        if let Some(&Pending { g, y, a, b, c }) = self.plan.pending.get(&dy.value) {
            *dy = Operand { value: g, load: Load::Corrected { y, a, b, c } };
        }
    }

    /// In place of a batch norm: its scale and shift.
    fn affine(&self, i: usize, node: Node) -> Node {
        let Some(n) = self.plan.norms.get(i) else { return node };
        let Train { gamma, beta, running_mean, running_var, .. } = node.bind(Train::default());
        let (moments, scale, shift) = (n.moments, n.affine.scale.into(), n.affine.shift.into());
        let call = Scale { gamma, beta, moments, scale, shift, running_mean, running_var };
        Node::new(Op::Norm(norm::Node { bn: n.bn, pass: norm::Pass::Scale }), call, node.gate)
    }

    /// In place of its backward pass: the gradients of gamma and beta and what consumers of dy need.
    fn coefficients(&self, i: usize, form: Bwd, node: Node) -> Node {
        let Some((key, n)) = self.plan.norms.of_backward(i) else { return node };
        let NormSums { dy, dyx } = self.sums[&key];
        let lazy = n.a.is_none();
        let write = if lazy && !n.in_place { n.write } else { Write::Overwrite };
        let Bwd { gamma, dgamma, dbeta, .. } = node.bind(form);
        let call = Coefficients {
            dy_sum: dy,
            dyx_sum: dyx,
            gamma,
            moments: n.moments,
            dgamma,
            dbeta,
            a: n.a.map(Stored::from),
            b: Stored { value: n.b, write },
            c: Stored { value: n.c, write },
            dbias: n.bias.map(|(_, grad)| grad.into()),
        };
        let op = Op::Norm(norm::Node { bn: n.bn, pass: norm::Pass::Coefficients(call.form()) });
        Node::new(op, call, node.gate)
    }

    /// The pass that corrects the gradient of a sum where it lies, behind the coefficients of node `i`.
    fn corrected_in_place(&self, graph: &Graph, i: usize, gate: Option<ValueId>) -> Option<Node> {
        let (_, n) = self.plan.norms.of_backward(i).filter(|(_, n)| n.in_place)?;
        let pending = Pending { g: n.dy, y: n.y, a: None, b: n.b, c: n.c };
        Some(corrected(graph, pending, n.dy, gate))
    }

    /// A pooling next to batch norms in pieces.
    fn pool(&mut self, i: usize, pool::Node { pool, pass }: pool::Node, node: Node) -> Node {
        match pass {
            pool::Pass::Fwd(form) => {
                let mut call = node.bind(form);
                self.load_activation(&mut call.x);
                Node::new(Op::Pool(pool::Node { pool, pass: pool::Pass::Fwd(call.form()) }), call, node.gate)
            }
            pool::Pass::Bwd(form) => {
                let mut call = node.bind(form);
                if let Some(epilogue) = self.epilogues.remove(&i) {
                    call.dx = epilogue.store.unwrap_or(call.dx);
                    call.mask = Some(epilogue.mask);
                    call.sums = Some(epilogue.sums.map(|_, v| v.into()));
                }
                Node::new(Op::Pool(pool::Node { pool, pass: pool::Pass::Bwd(call.form()) }), call, node.gate)
            }
        }
    }

    /// The end of a block that loads pending operands.
    fn end(&self, i: usize, node: Node) -> Node {
        let (Some(end), Some((sum, call))) = (self.plan.ends.get(&i), as_end(&node)) else { return node };
        let loaded = |term: Operand<ValueId>, norm: Option<usize>| match norm.map(|key| &self.plan.norms[key]) {
            Some(n) => normalised(n.y, n.affine, n.relu),
            None => term,
        };
        let (a, b) = (loaded(call.a, end.norms[0]), loaded(call.b, end.norms[1]));
        let call = sum::Fwd { a, b, signs: end.signs.as_ref().map(|signs| signs.bits.into()), ..call };
        Node::new(Op::Sum(sum::Node { form: call.form(), ..sum.clone() }), call, node.gate)
    }

    /// A pass for the moments of what `node` stores, where they are wanted and it has not left them itself.
    fn moments(&mut self, graph: &Graph, i: usize, node: &Node) -> Option<Node> {
        let (y, moments) = self.plan.moments.remove(&i)?;
        let op = Op::Norm(norm::Node { bn: norm_of(graph, y).ok()?, pass: norm::Pass::Measure });
        Some(Node::new(op, Measure { y, moments: moments.map(|_, v| v.into()) }, node.gate))
    }
}

/// A value that is loaded through a batch norm.
fn normalised(value: ValueId, affine: Affine<ValueId>, relu: bool) -> Operand<ValueId> {
    Operand { value, load: Load::Affine { affine, relu } }
}

/// `dy = g + b y + c`.
fn corrected(graph: &Graph, Pending { g, y, b, c, .. }: Pending, dy: ValueId, gate: Option<ValueId>) -> Node {
    let b = normalised(y, Affine { scale: b, shift: c }, false);
    let call = sum::Fwd { a: g.into(), b, gate: None, y: dy.into(), signs: None };
    Node::new(Op::Sum(sum::Node { form: call.form(), ..sum::Node::of(graph.ty(g).shape.clone()) }), call, gate)
}

/// A batch norm over `v`, for its moments: nothing else of it matters.
fn norm_of(graph: &Graph, v: ValueId) -> Result<BatchNorm> {
    let shape = graph.ty(v).shape.nhwc();
    let x = shape.ok_or_else(|| Error::invalid("batch_norm", "a tensor that is not images"))?;
    BatchNorm::new(batch_norm::Spec { x, eps: 1e-5, momentum: 0.1 })
}
