//! Batch norms in training without passes over memory of their own.
//!
//! ```text
//! fwd  y = conv(x)  z = norm(y; relu)  u = conv(z)   ->  y, moments = conv(x)  scale, shift = ..
//!                                                        u = conv(y * scale + shift; relu)
//! bwd  dz = conv'(du)  dy = norm'(dz; relu)          ->  dz, sums = conv'(du; masked)  a, b, c = ..
//!      dx = conv'(dy)                                    dx = conv'(a dz + b y + c)
//! ```
//!
//! Legal if every reader of z and of dy can load it so, and nothing changes y or dz before their last reader. Saves
//! writing and reading z, and dz's and dy's passes: 8 elements for each of y. After `concat`, whose slices share
//! statistics (`shared`).
//!
//! A batch norm is taken to [pieces](crate::ops::norm). Whoever stores its input leaves the moments; the activation is
//! never stored, it is *pending*: whoever reads it (a convolution, a pooling, the end of a block) applies scale, shift
//! and ReLU while it loads. Backward, the op that stores the gradient of the activation masks it and leaves the two
//! sums, and the gradient of the input is pending: a convolution's backward passes apply the correction while they
//! load. Where the op that stores a gradient cannot do its part, a [`norm::Gradient`](crate::ops::norm::Gradient) does;
//! where a reader cannot load what is pending, the batch norm stays whole.
//!
//! The input is a convolution's output of its own, or a sum that others read too: then the gradient is corrected in
//! place, once it has been added to what others contribute. Or it is a slice of a concatenation (`shared`), of which
//! all batch norms share the moments and add up their gradients.

mod place;
mod rewrite;
mod shared;

use std::collections::{BTreeMap, HashMap};

use super::index::{Index, Reader};
use super::{rectifier, Fused, View};
use crate::graph::{Graph, Node, Origin, Stored, ValueId};
use crate::ops::batch_norm::{self, BatchNorm, Bwd, Train};
use crate::ops::conv2d::{self, Pass};
use crate::ops::load::Affine;
use crate::ops::store::{sign_bytes, Mask, Moments, Sums};
use crate::ops::{relu, sum, Op, Write};
use crate::tensor::TensorType;

/// A batch norm that is taken to pieces.
#[derive(Clone, Copy)]
struct Norm {
    bn: BatchNorm,
    relu: bool,
    /// Its backward node.
    bwd: usize,
    /// Its input and the gradient of that, with how it is written; the activation and its gradient.
    y: ValueId,
    dy: ValueId,
    write: Write,
    z: ValueId,
    dz: ValueId,
    moments: Moments<ValueId>,
    affine: Affine<ValueId>,
    /// The numbers of the correction; without `a` the gradient of the input is added to what others contribute.
    a: Option<ValueId>,
    b: ValueId,
    c: ValueId,
    /// Whether a pass corrects that sum in place, as soon as b and c are known.
    in_place: bool,
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
    norms: Masked,
    /// The gate of the first of them, where that is in a branch that may be dropped.
    gate: Option<ValueId>,
}

/// The batch norms in front of a ReLU, by their keys.
#[derive(Clone, Copy)]
struct Masked {
    first: usize,
    second: Option<usize>,
}

/// What the op that stores a gradient does to it on top.
#[derive(Clone, Copy)]
struct GradientEpilogue {
    mask: Mask<ValueId>,
    sums: Sums<ValueId>,
    /// Where it is stored, and how, if not as before.
    store: Option<Stored>,
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
    /// Of a node the output whose moments are wanted, and those.
    moments: BTreeMap<usize, (ValueId, Moments<ValueId>)>,
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
            plan.moments.insert(writer, (norm.y, norm.moments));
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
    /// How dy is written.
    write: Write,
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
        let Train { x, y: z, mean, .. } = node.bind(Train::default());
        let &[Reader { node: bwd, .. }] = self.index.readers(mean.value) else { return None };
        let Op::BatchNorm(batch_norm::Node { pass: batch_norm::Pass::Bwd(form), .. }) = graph.nodes[bwd].op else {
            return None;
        };
        let Bwd { dy: dz, dx, .. } = graph.nodes[bwd].bind(form);
        let pair = Pair { bn, relu, bwd, y: x, dy: dx.value, write: dx.write, z: z.value, dz };
        self.takes_pending(graph, z.value, bwd).then_some(pair)
    }

    /// The batch norm of node `i` after a convolution whose output nobody else reads, and that convolution's node.
    fn find_own(&self, graph: &mut Graph, i: usize) -> Option<(usize, Norm)> {
        let Pair { bn, relu, bwd, y, dy, write, z, dz } = self.find_pair(graph, i)?;
        let index = &self.index;
        let &[conv] = index.writers(y) else { return None };
        let Op::Conv2d(conv2d::Node { conv: shape, pass }) = graph.nodes[conv].op else { return None };
        let plain = [false, true].map(Pass::fwd).contains(&pass) && write == Write::Overwrite;
        let alone = index.is_alone(y) && index.is_alone(dy) && !index.is_output(y);
        let private = index.readers(y).iter().all(|r| r.node == i || r.node == bwd);
        let of_bias = |r: &Reader| match graph.nodes[r.node].op {
            Op::Conv2d(conv2d::Node { pass: Pass::BwdBias(form), .. }) => {
                Some((r.node, graph.nodes[r.node].bind(form).dbias.value))
            }
            _ => None,
        };
        let bias = index.readers(dy).iter().find_map(of_bias);
        let corrected = index.writers(dy) == [bwd]
            && index
                .readers(dy)
                .iter()
                .all(|r| is_gradient_of(graph, shape, r) || bias.is_some_and(|(node, _)| node == r.node));
        if !plain || !alone || !private || !corrected || self.norms.get(i).is_some() {
            return None;
        }
        let mut number = || graph.add_value(bn.per_channel(), Origin::Node);
        let moments = Moments { mean: number(), var: number() };
        let affine = Affine { scale: number(), shift: number() };
        let (a, b, c) = (Some(number()), number(), number());
        Some((conv, Norm { bn, relu, bwd, y, dy, write, z, dz, moments, affine, a, b, c, in_place: false, bias }))
    }

    /// The batch norm of node `i` whose input others may read too, and the node that stores that.
    fn find_sum(&self, graph: &mut Graph, i: usize) -> Option<(usize, Norm)> {
        let Pair { bn, relu, bwd, y, dy, write, z, dz } = self.find_pair(graph, i)?;
        let index = &self.index;
        let &[writer] = index.writers(y) else { return None };
        let alone = index.is_alone(y) && index.is_alone(dy);
        // One batch norm's moments are enough.
        let first = self.norms.get(i).is_none() && !self.moments.contains_key(&writer);
        if !alone || !first || graph.ty(y).shape.dims().len() != 4 {
            return None;
        }
        let mut number = || graph.add_value(bn.per_channel(), Origin::Node);
        let moments = Moments { mean: number(), var: number() };
        let affine = Affine { scale: number(), shift: number() };
        let (a, b, c, bias) = (None, number(), number(), None);
        Some((writer, Norm { bn, relu, bwd, y, dy, write, z, dz, moments, affine, a, b, c, in_place: true, bias }))
    }

    /// Whether all readers of the activation `z` can load it pending.
    fn takes_pending(&self, graph: &Graph, z: ValueId, bwd: usize) -> bool {
        let index = &self.index;
        let mut ends = 0;
        let all = index.readers(z).iter().all(|r| match &graph.nodes[r.node].op {
            Op::Conv2d(_) => r.operand == "x",
            Op::Pool(_) => r.operand == "x",
            Op::Sum(_) if as_end(&graph.nodes[r.node]).is_some() => {
                ends += 1;
                true
            }
            _ => r.node == bwd,
        });
        let only = index.writers(z).len() == 1 && index.is_alone(z) && !index.is_output(z);
        all && only && ends <= 1
    }

    /// Finds the ends of blocks that load pending operands.
    fn find_ends(&mut self, graph: &mut Graph) {
        for i in 0..graph.nodes.len() {
            let Some((&sum::Node { relu, .. }, end)) = as_end(&graph.nodes[i]) else { continue };
            let mut norms = [end.a, end.b].map(|term| self.norms.of_activation(term.value));
            if let (false, [Some(_), Some(second)]) = (relu, norms) {
                // The gradient's epilogue takes the sums of one.
                self.keep_whole(second);
                norms[1] = None;
            }
            if norms == [None; 2] {
                continue;
            }
            let signs = if relu { self.find_signs(graph, end.y.value, norms, end.gate) } else { None };
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
        let ((bwd, relu), [n, h, w, c]) = (self.find_relu(graph, y)?, graph.ty(y).shape.nhwc()?);
        let ds = relu.dx.value;
        let is_masked = |key: &usize| {
            let n = &self.norms[*key];
            let stored = n.dz == ds && self.index.last_writer(ds, n.bwd) == Some(bwd);
            // The convolutions read it where the batch norms' backward passes did.
            !n.relu && n.a.is_some() && stored && self.index.keeps(ds, n.bwd, n.dy)
        };
        let [first, second] = norms.map(|key| key.filter(is_masked));
        let gate = gate.filter(|_| second.is_some());
        let mut found = if gate.is_some() { [second, first] } else { [first, second] }.into_iter().flatten();
        let norms = Masked { first: found.next()?, second: found.next() };
        if !self.index.is_alone(ds) {
            return None;
        }
        let bits = graph.add_value(TensorType::byte([n, h, w, sign_bytes(c)]), Origin::Node);
        Some(Signs { bits, bwd, norms, gate })
    }

    fn keep_whole(&mut self, key: usize) {
        let Some(norm) = self.norms.remove(key) else { return };
        for writer in self.index.writers(norm.y) {
            if self.moments.get(writer).is_some_and(|(_, moments)| *moments == norm.moments) {
                self.moments.remove(writer);
            }
        }
    }

    /// The backward node of the ReLU that gave `y`, with its operands.
    fn find_relu(&self, graph: &Graph, y: ValueId) -> Option<(usize, relu::Bwd<ValueId, Stored>)> {
        let readers = self.index.readers(y).iter().map(|r| r.node);
        readers.filter_map(|i| Some((i, rectifier(&graph.nodes[i])?))).find(|(_, relu)| relu.y == y)
    }
}

/// The sum of `node`, if it can be the end of a block, with its operands.
fn as_end(node: &Node) -> Option<(&sum::Node, sum::Fwd<ValueId, Stored>)> {
    match &node.op {
        Op::Sum(sum) if sum.share == 1.0 => Some((sum, node.bind(sum.form))),
        _ => None,
    }
}

/// Whether `reader` is a backward pass of the convolution `shape` that reads this as its dy.
fn is_gradient_of(graph: &Graph, shape: conv2d::Conv2d, reader: &Reader) -> bool {
    match graph.nodes[reader.node].op {
        Op::Conv2d(conv2d::Node { conv, pass: Pass::BwdX(_) | Pass::BwdW(_) }) => {
            reader.operand == "dy" && conv == shape
        }
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
