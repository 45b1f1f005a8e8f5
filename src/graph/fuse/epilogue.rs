//! Ops after a convolution move into its epilogue, and a ReLU into the sum or batch norm before it.
//!
//! ```text
//! y = conv(x, w)  z = norm(y)  s = z + r  t = relu(s)   ->  t = conv(x, w; scale, shift, residual r, relu)
//! s = a + b  t = relu(s)                                ->  t = sum(a, b; relu)
//! z = norm(y)  t = relu(z)  ..  dz = relu'(dt)          ->  t = norm(y; relu)  ..  norm'(dt; relu)
//! ```
//!
//! Legal if each intermediate value has a single reader and is no output, and if the residual is stored before the
//! convolution runs. A batch norm on running statistics is folded to scale and shift once, after each load of weights.
//!
//! Saves writing and reading 2 N P Q K elements for each op that moves.
//!
//! A transform is *deferred* until all its ops are found; then it becomes the epilogue of the value's convolution.

use std::collections::HashMap;

use super::{count_uses, rectifier, Fused};
use crate::graph::{Graph, Node, Stored, ValueId};
use crate::ops::batch_norm::{self, BatchNorm, Bwd, Fold, Infer, Train};
use crate::ops::load::Affine;
use crate::ops::{conv2d, relu, sum, Op};

/// Moves the ops after each convolution into its epilogue, in execution order.
pub(super) fn absorb(graph: Graph) -> Fused {
    let mut fuser = Fuser::new(graph);
    for i in 0..fuser.graph.nodes.len() {
        match fuser.graph.nodes[i].op {
            Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Infer { relu } }) => {
                fuser.defer_norm(i, bn, relu)
            }
            Op::Relu(relu::Node { pass: relu::Pass::Fwd, .. }) => fuser.defer_relu(i),
            Op::Sum(sum::Node { form, share, .. }) => fuser.defer_sum(i, form, share),
            _ => {}
        }
    }
    fuser.apply_deferred()
}

/// A transform yet to be applied to a stored value: `relu(scale[c] * v + shift[c] + residual)`.
#[derive(Clone, Copy, Debug, Default)]
struct Deferred {
    affine: Option<Affine<ValueId>>,
    residual: Option<ValueId>,
    relu: bool,
}

struct Fuser {
    graph: Graph,
    uses: Vec<usize>,
    /// The node that writes each value.
    producer: HashMap<ValueId, usize>,
    /// The backward node of each training batch norm, by the mean that both share.
    norm_backward: HashMap<ValueId, usize>,
    /// The stored value behind each deferred one.
    stored: HashMap<ValueId, ValueId>,
    /// For each stored value, the deferred value that replaces it and its transform.
    deferred: HashMap<ValueId, (ValueId, Deferred)>,
    removed: Vec<bool>,
    prepare: Vec<Node>,
}

impl Fuser {
    fn new(graph: Graph) -> Self {
        let producer =
            graph.nodes.iter().enumerate().flat_map(|(i, n)| n.outputs.iter().map(move |&o| (o, i))).collect();
        let backward = graph.nodes.iter().enumerate().rev().filter_map(|(i, n)| match n.op {
            Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Bwd(form @ Bwd { y: None, .. }), .. }) => {
                Some((n.bind(form).mean, i))
            }
            _ => None,
        });
        let norm_backward = backward.collect();
        let (uses, removed) = (count_uses(&graph), vec![false; graph.nodes.len()]);
        let (stored, deferred, prepare) = (HashMap::new(), HashMap::new(), Vec::new());
        Self { graph, uses, producer, norm_backward, stored, deferred, removed, prepare }
    }

    /// The value in memory behind `v`.
    fn stored(&self, v: ValueId) -> ValueId {
        self.stored.get(&v).copied().unwrap_or(v)
    }

    /// The node that stores `v`, or the value behind it.
    fn stored_by(&self, v: ValueId) -> Option<usize> {
        self.producer.get(&self.stored(v)).copied()
    }

    /// The stored value behind `v`, the convolution that stores it, and what is deferred so far. `None` if `v` has
    /// more than one reader or the epilogue is complete.
    fn open_conv(&self, v: ValueId) -> Option<(ValueId, conv2d::Fwd<ValueId, Stored>, Deferred)> {
        let stored = self.stored(v);
        let (_, call) = self.graph.nodes[self.stored_by(v)?].as_conv_fwd()?;
        let e = call.epilogue;
        let deferred = self.deferred.get(&stored).map(|&(_, p)| p).unwrap_or_default();
        let free = e.scale.is_none() && e.residual.is_none() && !e.relu;
        let open = self.uses[v.index()] == 1 && free && !deferred.relu;
        open.then_some((stored, call, deferred))
    }

    /// Removes node `i`: its output `y` is `stored` with the transform `deferred`.
    fn defer(&mut self, i: usize, y: ValueId, stored: ValueId, deferred: Deferred) {
        self.stored.insert(y, stored);
        self.deferred.insert(stored, (y, deferred));
        self.removed[i] = true;
    }

    /// A batch norm on running statistics after a convolution: its scale and shift are deferred.
    fn defer_norm(&mut self, i: usize, bn: BatchNorm, relu: bool) {
        let Infer { x, gamma, beta, running_mean, running_var, y } = self.graph.nodes[i].bind(Infer::default());
        let Some((stored, conv, deferred @ Deferred { affine: None, residual: None, .. })) = self.open_conv(x) else {
            return;
        };
        let bias = conv.epilogue.shift;
        let op = Op::BatchNorm(bn.fold(bias.is_some(), 1.0));
        let call = Fold { gamma, beta, running_mean, running_var, bias, scale: None, shift: None };
        let Fold { scale, shift, .. } = self.graph.add(op, call, None);
        self.prepare.extend(self.graph.nodes.pop());
        self.defer(i, y.value, stored, Deferred { affine: Some(Affine { scale, shift }), relu, ..deferred });
    }

    /// A ReLU whose input's producer can apply it.
    fn defer_relu(&mut self, i: usize) {
        let relu::Fwd { x, y } = self.graph.nodes[i].bind(relu::Fwd::default());
        if let Some((stored, _, deferred)) = self.open_conv(x) {
            self.defer(i, y.value, stored, Deferred { relu: true, ..deferred });
        } else if self.uses[x.index()] == 1 {
            self.relu_into_producer(i, x, y.value);
        }
    }

    /// A sum whose later operand is a convolution's output: the other becomes its residual. A scaled sum, as at the end
    /// of a block at inference, must first have its share folded.
    fn defer_sum(&mut self, i: usize, form: sum::Fwd, share: f64) {
        let sum::Fwd { a, b, gate: None, y, .. } = self.graph.nodes[i].bind(form) else { return };
        let (a, b) = (a.value, b.value);
        if share != 1.0 && !self.fold_share(i, b, share) {
            return;
        }
        let (carrier, residual) = if self.stored_by(a) > self.stored_by(b) { (a, b) } else { (b, a) };
        let Some((stored, _, deferred)) = self.open_conv(carrier) else { return };
        if deferred.residual.is_none() && self.stored_by(residual) < self.stored_by(carrier) {
            self.defer(i, y.value, stored, Deferred { residual: Some(residual), ..deferred });
        }
    }

    /// Folds the share of `branch` in the sum of node `i` into the branch's last batch norm, if that is folded itself.
    fn fold_share(&mut self, i: usize, branch: ValueId, share: f64) -> bool {
        let deferred = self.stored.get(&branch).and_then(|stored| self.deferred.get(stored)).map(|&(_, p)| p);
        // A ReLU commutes with the share, which is not negative.
        let Some(Deferred { affine: Some(Affine { scale, .. }), residual: None, .. }) = deferred else { return false };
        let fold = self.prepare.iter_mut().rfind(|n| n.outputs.contains(&scale)).map(|n| &mut n.op);
        let (Some(Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Fold { share: folded, .. }, .. })), 1) =
            (fold, self.uses[branch.index()])
        else {
            return false;
        };
        *folded = share;
        if let Op::Sum(sum) = &mut self.graph.nodes[i].op {
            sum.share = 1.0;
        }
        true
    }

    /// A ReLU after a sum or a batch norm, together with its backward pass if there is one.
    fn relu_into_producer(&mut self, i: usize, x: ValueId, y: ValueId) {
        let Some(&p) = self.producer.get(&x) else { return };
        if self.graph.nodes[p].gate != self.graph.nodes[i].gate {
            return;
        }
        let is_deferred = self.stored.contains_key(&x);
        self.graph.nodes[p].op = match self.graph.nodes[p].op.clone() {
            Op::Sum(node) if !node.relu && !is_deferred => Op::Sum(sum::Node { relu: true, ..node }),
            Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Infer { relu: false } }) if !is_deferred => {
                Op::BatchNorm(bn.infer(true))
            }
            Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Train { relu: false } })
                if self.mask_norm_backward(p, y) =>
            {
                Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Train { relu: true } })
            }
            _ => return,
        };
        self.graph.nodes[p].outputs.iter_mut().filter(|v| **v == x).for_each(|v| *v = y);
        self.producer.insert(y, p);
        self.removed[i] = true;
    }

    /// Makes the backward pass of the batch norm `p` apply the mask of the ReLU that computes `y`, in place of the
    /// ReLU's backward node. Also returns true if there is no backward pass.
    fn mask_norm_backward(&mut self, p: usize, y: ValueId) -> bool {
        let mean = self.graph.nodes[p].bind(Train::default()).mean.value;
        let Some(&bwd) = self.norm_backward.get(&mean) else {
            return self.uses[mean.index()] == 0;
        };
        let Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Bwd(form) }) = self.graph.nodes[bwd].op else {
            return false;
        };
        let norm = self.graph.nodes[bwd].bind(form);
        let Some(&m) = self.producer.get(&norm.dy) else { return false };
        let Some(relu::Bwd { dy: dz, y: of, .. }) = rectifier(&self.graph.nodes[m]) else { return false };
        if of != y || self.uses[norm.dy.index()] != 1 {
            return false;
        }
        self.removed[m] = true;
        let node = &mut self.graph.nodes[bwd];
        *node = Node::new(Op::BatchNorm(bn.bwd(true)), Bwd { dy: dz, y: Some(y), ..norm }, node.gate);
        true
    }

    /// Moves every deferred transform into the epilogue of the convolution that stores the value.
    fn apply_deferred(mut self) -> Fused {
        for (stored, (value, deferred)) in self.deferred {
            let node = &mut self.graph.nodes[self.producer[&stored]];
            let Some((conv, mut call)) = node.as_conv_fwd() else {
                unreachable!("only convolutions store deferred values")
            };
            if let Some(Affine { scale, shift }) = deferred.affine {
                (call.epilogue.scale, call.epilogue.shift) = (Some(scale), Some(shift));
            }
            call.epilogue.residual = deferred.residual;
            call.epilogue.relu = deferred.relu;
            call.y = value.into();
            *node = Node::conv2d(conv, conv2d::Pass::Fwd(call), node.gate);
        }
        self.graph.remove(self.removed);
        let prepare = self.prepare.len();
        self.graph.nodes.splice(..0, self.prepare);
        Fused { graph: self.graph, prepare, views: Vec::new() }
    }
}
