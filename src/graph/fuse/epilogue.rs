//! What follows a convolution moves into its epilogue, and a ReLU into the sum or batch norm before it.
//!
//! ```text
//! y = conv(x, w)  z = norm(y)  s = z + r  t = relu(s)   ->  t = conv(x, w; scale, shift, residual r, relu)
//! s = a + b  t = relu(s)                                ->  t = sum(a, b; relu)
//! z = norm(y)  t = relu(z)  ..  dz = relu'(dt)          ->  t = norm(y; relu)  ..  norm'(dt; relu)
//! ```
//!
//! Legal if the value in between has a single reader and is no output, and if the residual is stored before the
//! convolution runs. A batch norm of running statistics is folded to scale and shift once, after the weights are
//! loaded.
//!
//! Saves, for each op that moves, writing its result and reading its input: 2 N P Q K elements.
//!
//! A transform is *pending* on a stored value until all are known; then it goes into the epilogue.

use std::collections::HashMap;

use super::{count_uses, rectifier, Fused};
use crate::graph::{Graph, Node, ValueId};
use crate::ops::batch_norm::{self, Bwd, Fold, Infer, Train};
use crate::ops::conv2d;
use crate::ops::load::Affine;
use crate::ops::{relu, sum, Call, Op};

/// Moves what follows each convolution into its epilogue, in the order in which the nodes run.
pub(super) fn absorb(graph: Graph) -> Fused {
    let mut fuser = Fuser::new(graph);
    for i in 0..fuser.graph.nodes.len() {
        match fuser.graph.nodes[i].op {
            Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Infer { .. }, .. }) => fuser.defer_norm(i),
            Op::Relu(relu::Node { pass: relu::Pass::Fwd, .. }) => fuser.defer_relu(i),
            Op::Sum(_) => fuser.defer_sum(i),
            _ => {}
        }
    }
    fuser.apply_pending();
    fuser.finish()
}

/// What still has to be done to a stored value: `relu(scale[c] * v + shift[c] + residual)`.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    affine: Option<Affine<ValueId>>,
    residual: Option<ValueId>,
    relu: bool,
}

struct Fuser {
    graph: Graph,
    /// How many ops and outputs read each value.
    uses: Vec<usize>,
    /// The node that writes each value.
    producer: HashMap<ValueId, usize>,
    /// The backward node of each training batch norm, by the mean that both share.
    norm_backward: HashMap<ValueId, usize>,
    /// The stored value behind each pending one.
    stored: HashMap<ValueId, ValueId>,
    /// For each stored value, the pending value that replaces it and its transform.
    pending: HashMap<ValueId, (ValueId, Pending)>,
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
        Self {
            norm_backward: backward.collect(),
            uses: count_uses(&graph),
            removed: vec![false; graph.nodes.len()],
            graph,
            producer,
            stored: HashMap::new(),
            pending: HashMap::new(),
            prepare: Vec::new(),
        }
    }

    /// The stored value behind `v` and what is pending on it, where `v` has a single reader and a convolution whose
    /// epilogue is still free for more stores it.
    fn open_conv(&self, v: ValueId) -> Option<(ValueId, conv2d::Fwd, Pending)> {
        let stored = self.stored.get(&v).copied().unwrap_or(v);
        let Op::Conv2d(conv2d::Node { pass: conv2d::Pass::Fwd(form), .. }) =
            self.graph.nodes[*self.producer.get(&stored)?].op
        else {
            return None;
        };
        let e = form.epilogue;
        let pending = self.pending.get(&stored).map(|&(_, p)| p).unwrap_or_default();
        let free = e.scale.is_none() && e.residual.is_none() && !e.relu;
        let open = self.uses[v.index()] == 1 && free && !pending.relu;
        open.then_some((stored, form, pending))
    }

    /// Removes node `i`: what it would have left in `y` is pending on `stored`.
    fn defer(&mut self, i: usize, y: ValueId, stored: ValueId, pending: Pending) {
        self.stored.insert(y, stored);
        self.pending.insert(stored, (y, pending));
        self.removed[i] = true;
    }

    /// A batch norm on running statistics after a convolution: its scale and shift become pending.
    fn defer_norm(&mut self, i: usize) {
        let Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Infer { relu } }) = self.graph.nodes[i].op
        else {
            return;
        };
        let Infer { x, gamma, beta, running_mean, running_var, y } = self.graph.nodes[i].bind(Infer::default());
        let Some((stored, form, pending)) = self.open_conv(x) else { return };
        if pending.affine.is_some() || pending.residual.is_some() {
            return;
        }
        let bias = self.graph.nodes[self.producer[&stored]].bind(form).epilogue.shift;
        let op = Op::BatchNorm(bn.fold(bias.is_some(), 1.0));
        let call = Fold { gamma, beta, running_mean, running_var, bias, scale: None, shift: None };
        let Fold { scale, shift, .. } = self.graph.add(op, call, None);
        self.prepare.extend(self.graph.nodes.pop());
        self.defer(i, y.value, stored, Pending { affine: Some(Affine { scale, shift }), relu, ..pending });
    }

    /// A ReLU after something that can apply it before it stores.
    fn defer_relu(&mut self, i: usize) {
        let relu::Fwd { x, y } = self.graph.nodes[i].bind(relu::Fwd::default());
        if let Some((stored, _, pending)) = self.open_conv(x) {
            self.defer(i, y.value, stored, Pending { relu: true, ..pending });
        } else if self.uses[x.index()] == 1 {
            self.relu_into_producer(i, x, y.value);
        }
    }

    /// A sum whose later operand is a convolution's output: the other becomes its residual. The end of a block at
    /// inference is a sum only once its share is folded.
    fn defer_sum(&mut self, i: usize) {
        let Op::Sum(sum) = &self.graph.nodes[i].op else { return };
        let sum::Fwd { a, b, gate: None, y, .. } = self.graph.nodes[i].bind(sum.form) else { return };
        let (a, b, share) = (a.value, b.value, sum.share);
        if share != 1.0 && !self.fold_share(i, b, share) {
            return;
        }
        let stored_at = |f: &Self, v: ValueId| {
            let stored = f.stored.get(&v).copied().unwrap_or(v);
            f.producer.get(&stored).copied()
        };
        let (carrier, residual) = if stored_at(self, a) > stored_at(self, b) { (a, b) } else { (b, a) };
        let Some((stored, _, pending)) = self.open_conv(carrier) else { return };
        if pending.residual.is_some() || stored_at(self, residual) >= stored_at(self, carrier) {
            return;
        }
        self.defer(i, y.value, stored, Pending { residual: Some(residual), ..pending });
    }

    /// Folds the share of `branch` in the sum of node `i` into the batch norm that the branch ends in, if that is
    /// folded itself.
    fn fold_share(&mut self, i: usize, branch: ValueId, share: f64) -> bool {
        let pending = self.stored.get(&branch).and_then(|stored| self.pending.get(stored)).map(|&(_, p)| p);
        // A ReLU commutes with the share, which is not negative.
        let Some(Pending { affine: Some(Affine { scale, .. }), residual: None, .. }) = pending else { return false };
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

    /// A ReLU after an addition or a training batch norm, with its backward pass where there is one.
    fn relu_into_producer(&mut self, i: usize, x: ValueId, y: ValueId) {
        let Some(&p) = self.producer.get(&x) else { return };
        if self.graph.nodes[p].gate != self.graph.nodes[i].gate {
            return;
        }
        match self.graph.nodes[p].op.clone() {
            Op::Sum(node) if !node.relu && !self.stored.contains_key(&x) => {
                self.graph.nodes[p].op = Op::Sum(sum::Node { relu: true, ..node });
            }
            Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Infer { relu: false } })
                if !self.stored.contains_key(&x) =>
            {
                self.graph.nodes[p].op = Op::BatchNorm(bn.infer(true));
            }
            Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Train { relu: false } }) => {
                if !self.mask_norm_backward(p, y) {
                    return;
                }
                let pass = batch_norm::Pass::Train { relu: true };
                self.graph.nodes[p].op = Op::BatchNorm(batch_norm::Node { bn, pass });
            }
            _ => return,
        }
        self.graph.nodes[p].outputs.iter_mut().filter(|v| **v == x).for_each(|v| *v = y);
        self.producer.insert(y, p);
        self.removed[i] = true;
    }

    /// Lets the backward pass of the batch norm `p` apply the mask of the ReLU that gave `y`, in place of the ReLU's
    /// own backward op. True also where there is no backward pass.
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

    /// Moves every pending transform into the epilogue of the convolution that stores the value.
    fn apply_pending(&mut self) {
        for (stored, (value, pending)) in std::mem::take(&mut self.pending) {
            let node = &mut self.graph.nodes[self.producer[&stored]];
            let Op::Conv2d(conv2d::Node { conv, pass: conv2d::Pass::Fwd(form) }) = node.op else {
                unreachable!("only convolutions store pending values")
            };
            let mut call = node.bind(form);
            if let Some(Affine { scale, shift }) = pending.affine {
                (call.epilogue.scale, call.epilogue.shift) = (Some(scale), Some(shift));
            }
            call.epilogue.residual = pending.residual;
            call.epilogue.relu = pending.relu;
            call.y = value.into();
            let op = Op::Conv2d(conv2d::Node { conv, pass: conv2d::Pass::Fwd(call.form()) });
            *node = Node::new(op, call, node.gate);
        }
    }

    fn finish(mut self) -> Fused {
        let removed = std::mem::take(&mut self.removed);
        let kept = self.graph.nodes.into_iter().zip(removed).filter(|(_, gone)| !gone).map(|(n, _)| n);
        let prepare = self.prepare.len();
        let nodes = self.prepare.into_iter().chain(kept).collect();
        Fused { graph: Graph { nodes, ..self.graph }, prepare, views: Vec::new() }
    }
}
