//! How a batch norm in training is written in [pieces](crate::ops::norm). The rewrites `norms` and
//! `slices` use it, and `prologue` its loads.
//!
//! ```text
//! fwd  z = norm(y; relu)         ->  moments = measure(y)  scale, shift = scale(moments, gamma, beta)
//!      u = f(z)                      u = f(y * scale + shift; relu)
//! bwd  dy = norm'(dz, y; relu)   ->  g, sums = gradient(dz, y; masked)  a, b, c = coefficients(sums)
//!      dx = f'(dy)                   dx = f'(a g + b y + c)
//! ```

use std::collections::HashMap;

use super::index::{Index, Reader};
use super::{block_end, Fused, Place};
use crate::graph::{Graph, Node, Origin, Stored, ValueId};
use crate::ops::batch_norm::{self, BatchNorm, Bwd, Train};
use crate::ops::load::{Affine, Load, Operand};
use crate::ops::store::{Mask, Moments};
use crate::ops::{conv2d, norm, pool, sum, Call, Op, Write};
use crate::tensor::TensorType;

/// A batch norm in training whose readers can all load its activation, with its backward pass.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    pub bn: BatchNorm,
    pub relu: bool,
    pub fwd: usize,
    pub bwd: usize,
    pub y: ValueId,
    pub dy: ValueId,
    /// How dy is written.
    pub write: Write,
    pub z: ValueId,
    pub dz: ValueId,
}

impl Pair {
    /// The batch norm of node `i`.
    pub fn find(graph: &Graph, index: &Index, i: usize) -> Option<Self> {
        let node = &graph.nodes[i];
        let Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Train { relu } }) = node.op else {
            return None;
        };
        let Train { x: y, y: z, mean, .. } = node.bind(Train::default());
        let &[Reader { node: bwd, .. }] = index.readers(mean.value) else { return None };
        let Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Bwd(form), .. }) = graph.nodes[bwd].op else {
            return None;
        };
        let Bwd { dy: dz, dx: dy, .. } = graph.nodes[bwd].bind(form);
        let (dy, write, z) = (dy.value, dy.write, z.value);
        let mut ends = 0;
        let all_load = index.readers(z).iter().all(|r| match &graph.nodes[r.node].op {
            Op::Conv2d(_) | Op::Pool(_) => r.operand == "x",
            Op::Sum(_) if block_end(&graph.nodes[r.node]).is_some() => {
                ends += 1;
                true
            }
            _ => r.node == bwd,
        });
        let only = index.writers(z).len() == 1 && index.is_alone(z) && !index.is_output(z);
        (all_load && only && ends <= 1).then_some(Self { bn, relu, fwd: i, bwd, y, dy, write, z, dz })
    }
}

/// The values that splitting a [`Pair`] adds to the graph.
pub(super) struct Numbers {
    pub moments: Moments<ValueId>,
    /// Without `a`, the scaled gradient is added to dy, which is corrected later.
    pub a: Option<ValueId>,
    pub b: Stored,
    pub c: Stored,
    /// The gradient of a bias that was added to y: it follows from the sums.
    pub dbias: Option<ValueId>,
}

/// A change of a graph in which readers of batch norms do their work.
#[derive(Default)]
pub(super) struct Pieces {
    /// The nodes in place of others.
    pub replaced: HashMap<usize, Vec<Node>>,
    /// The nodes that measure the outputs of others, right after these.
    pub measures: HashMap<usize, Node>,
    /// The loads in place of values that are no longer stored.
    pub loads: HashMap<ValueId, Operand<ValueId>>,
}

impl Pieces {
    /// Measures `y`, images of shape `x`, after node `writer`, which stores it.
    pub fn measure(&mut self, graph: &Graph, writer: usize, x: [usize; 4], y: ValueId, moments: Moments<ValueId>) {
        let call = norm::Measure { y, moments: moments.map(|_, v| v.into()) };
        self.measures.insert(writer, piece(x, norm::Pass::Measure, call, graph.nodes[writer].gate));
    }

    /// Takes the batch norm `pair` to pieces.
    pub fn split(&mut self, graph: &mut Graph, pair: &Pair, numbers: Numbers) {
        let &Pair { bn, relu, fwd, bwd, y, dy, write, z, dz } = pair;
        let Numbers { moments, a, b, c, dbias } = numbers;
        let &batch_norm::Spec { x, eps, momentum } = bn.spec();
        let mut number = || graph.add_value(bn.per_channel(), Origin::Node);
        let affine = Affine { scale: number(), shift: number() };
        let Affine { scale, shift } = affine;
        let mask = Mask::Affine { y, scale, shift, mean: moments.mean, relu, scaled: a.is_none() };
        let sums = mask.form().sums().map(|_, ()| number());
        let g = match a {
            Some(_) => graph.add_value(bn.x(), Origin::Node).into(),
            None => Stored { value: dy, write },
        };
        let node = &graph.nodes[fwd];
        let Train { gamma, beta, running_mean, running_var, .. } = node.bind(Train::default());
        let (scale, shift) = (scale.into(), shift.into());
        let call = norm::Scale { gamma, beta, moments, scale, shift, running_mean, running_var };
        self.replaced.insert(fwd, vec![piece(x, norm::Pass::Scale { eps, momentum }, call, node.gate)]);
        let node = &graph.nodes[bwd];
        let Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Bwd(form), .. }) = node.op else {
            unreachable!("a pair has a backward pass")
        };
        let Bwd { dgamma, dbeta, .. } = node.bind(form);
        let call = norm::Gradient { dz, mask, g, sums: sums.map(|_, v| v.into()) };
        let gradient = piece(x, norm::Pass::Gradient(call.form()), call, node.gate);
        let (dy_sum, dyx_sum) = (sums.dy, sums.first);
        let (a_stored, dbias) = (a.map(Stored::from), dbias.map(Stored::from));
        let call = norm::Coefficients { dy_sum, dyx_sum, gamma, moments, dgamma, dbeta, a: a_stored, b, c, dbias };
        let pass = norm::Pass::Coefficients { form: call.form(), eps };
        let coefficients = piece(x, pass, call, node.gate);
        self.replaced.insert(bwd, vec![gradient, coefficients]);
        self.loads.insert(z, Operand { value: y, load: Load::Affine { affine, relu } });
        if a.is_some() {
            let correction = Load::Corrected { y, a, b: b.value, c: c.value };
            self.loads.insert(dy, Operand { value: g.value, load: correction });
        }
    }

    /// Changes `graph`.
    pub fn apply(mut self, graph: &mut Graph) {
        let nodes = std::mem::take(&mut graph.nodes);
        let mut changed = Vec::with_capacity(nodes.len());
        for (i, node) in nodes.into_iter().enumerate() {
            for mut node in self.replaced.remove(&i).unwrap_or_else(|| vec![node]) {
                if node.inputs.iter().any(|v| self.loads.contains_key(v)) {
                    node = self.loaded(graph, node, &mut changed);
                }
                changed.push(node);
            }
            changed.extend(self.measures.remove(&i));
        }
        graph.nodes = changed;
    }

    /// `node` with its loads. A gradient that it cannot correct while it loads is corrected before, in `nodes`.
    fn loaded(&self, graph: &mut Graph, mut node: Node, nodes: &mut Vec<Node>) -> Node {
        let backward =
            matches!(node.op, Op::Conv2d(conv2d::Node { pass: conv2d::Pass::BwdX(_) | conv2d::Pass::BwdW(_), .. }));
        for (at, (operand, _)) in node.op.operator().operands().reads.into_iter().enumerate() {
            let Some(&gradient) = self.loads.get(&node.inputs[at]) else { continue };
            let Load::Corrected { .. } = gradient.load else { continue };
            if !(backward && operand == "dy") {
                let dy = graph.add_value(graph.ty(gradient.value).clone(), Origin::Node);
                nodes.push(corrected(graph, gradient, dy, node.reads_under(at)));
                node.inputs[at] = dy;
            }
        }
        let load = |operand: &mut Operand<ValueId>| {
            if let Some(&load) = self.loads.get(&operand.value) {
                *operand = load;
            }
        };
        let op = node.op.clone();
        match op {
            Op::Conv2d(conv2d::Node { conv, pass }) => {
                let mut pass = node.bind(pass);
                match &mut pass {
                    conv2d::Pass::Fwd(call) => load(&mut call.x),
                    conv2d::Pass::BwdX(call) => load(&mut call.dy),
                    conv2d::Pass::BwdW(call) => [&mut call.dy, &mut call.x].into_iter().for_each(load),
                    conv2d::Pass::Bwd(_) | conv2d::Pass::BwdBias(_) => {}
                }
                Node::conv2d(conv, pass, node.gate)
            }
            Op::Pool(pool::Node { pool, pass: pool::Pass::Fwd(form) }) => {
                let mut call = node.bind(form);
                load(&mut call.x);
                Node::new(Op::Pool(pool::Node { pool, pass: pool::Pass::Fwd(call.form()) }), call, node.gate)
            }
            Op::Sum(sum) => {
                let mut call = node.bind(sum.form);
                [&mut call.a, &mut call.b].into_iter().for_each(load);
                Node::new(Op::Sum(sum::Node { form: call.form(), ..sum }), call, node.gate)
            }
            _ => node,
        }
    }
}

/// The node of one piece of a batch norm of images of shape `x`.
pub(super) fn piece(x: [usize; 4], pass: norm::Pass, call: impl Call<ValueId, Stored>, gate: Option<ValueId>) -> Node {
    Node::new(Op::Norm(norm::Node { x, pass }), call, gate)
}

/// The pass `dy = g + b y + c`, where `gradient` is g and its correction.
pub(super) fn corrected(graph: &Graph, gradient: Operand<ValueId>, dy: ValueId, gate: Option<ValueId>) -> Node {
    let Operand { value: g, load: Load::Corrected { y, a: None, b, c } } = gradient else {
        unreachable!("a gradient with a scale has readers that apply it")
    };
    let b = Operand { value: y, load: Load::Affine { affine: Affine { scale: b, shift: c }, relu: false } };
    let call = sum::Fwd { a: g.into(), b, gate: None, y: dy.into(), signs: None };
    Node::new(Op::Sum(sum::Node { form: call.form(), ..sum::Node::of(graph.ty(g).shape.clone()) }), call, gate)
}

/// A value for a number of each channel of a slice at `place`, or for the slice itself, of type `ty`.
pub(super) fn slice(fused: &mut Fused, ty: TensorType, place: Place) -> ValueId {
    let value = fused.graph.add_value(ty, Origin::Node);
    fused.views.resize(fused.graph.values.len(), None);
    fused.views[value.index()] = Some(place);
    value
}
