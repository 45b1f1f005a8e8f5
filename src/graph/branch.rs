//! Stochastic depth: residual branches that a run may skip, forward and backward.
//!
//! The nodes of a branch carry its gate, their gradients' nodes too. Where it is closed a run skips them all: their
//! values are not computed, and nothing reads them. What stands outside sees a branch only through [`Op::Sum`], which
//! leaves a closed one out, and what a branch adds to a gradient outside comes after what is
//! there without it.

use std::collections::{BTreeSet, HashMap};

use super::{Builder, Graph, Mode, Node, Origin, ValueId};
use crate::ops::{sum, Behind, Call, Op, Write};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// The output of a residual branch that may be dropped; [`Builder::join`] makes a block of it.
#[derive(Debug)]
pub struct Branch {
    value: ValueId,
    survival: f64,
    gate: Option<ValueId>,
}

/// When a launch does something, in a network with residual blocks whose branches may be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// In every run.
    Always,
    /// Where the branch of that block is kept.
    With(usize),
    /// Where the branch of that block is dropped.
    Without(usize),
}

impl Runs {
    /// Its probability, where `survival` has those of the blocks' branches.
    pub fn probability(&self, survival: &[f64]) -> f64 {
        match *self {
            Self::Always => 1.0,
            Self::With(block) => survival[block],
            Self::Without(block) => 1.0 - survival[block],
        }
    }
}

impl Builder {
    /// The layers of a residual branch that is kept with the probability `survival`, for a mini-batch as a whole: one
    /// gate decides. Fails where `survival` is not in 0..=1 and inside of another branch.
    pub fn branch(&mut self, survival: f64, layers: impl FnOnce(&mut Self) -> Result<ValueId>) -> Result<Branch> {
        if !(0.0..=1.0).contains(&survival) {
            return Err(Error::invalid("survival of a branch", format!("{survival}, expected 0..=1")));
        }
        if self.gate.is_some() {
            return Err(Error::unsupported("a branch in a branch that may be dropped", "one gate decides over both"));
        }
        let index = self.graph.blocks.len();
        let gate =
            (self.graph.mode == Mode::Train).then(|| self.graph.add_value(TensorType::stat([1]), Origin::Gate(index)));
        self.graph.blocks.push(super::Block { survival, gate, closed: None });
        self.gate = gate;
        let value = layers(self);
        self.gate = None;
        Ok(Branch { value: value?, survival, gate })
    }

    /// The end of a block: in training `shortcut` and, where it is kept, the branch; at inference `shortcut` and the
    /// branch times its survival probability. Fails where their shapes differ.
    pub fn join(&mut self, branch: Branch, shortcut: ValueId) -> Result<ValueId> {
        let (shape, other) = (self.graph.ty(shortcut).shape.clone(), self.graph.ty(branch.value).shape.clone());
        if shape != other {
            return Err(Error::Shape { what: "join".into(), expected: shape, found: other });
        }
        let share = if branch.gate.is_some() { 1.0 } else { branch.survival };
        let call = sum::Fwd { a: shortcut.into(), b: branch.value.into(), gate: branch.gate, y: None, signs: None };
        let op = Op::Sum(sum::Node { form: call.form(), share, ..sum::Node::of(shape) });
        Ok(self.graph.add(op, call, self.gate).y)
    }
}

/// Gates of which every one has to be open.
type Gates = BTreeSet<ValueId>;

impl Node {
    /// The gate of the op itself behind which is what `is_behind` says.
    fn own_gate(&self, is_behind: impl Fn(&Behind) -> bool) -> Option<ValueId> {
        self.inputs.last().copied().filter(|_| is_behind(&self.op.operator().behind_gate()))
    }

    /// The gate without which the node does not read its input `j`, outside of a branch.
    pub(super) fn reads_under(&self, j: usize) -> Option<ValueId> {
        self.own_gate(|behind| behind.inputs.contains(&j)).or(self.gate)
    }

    /// The gates without any of which the node does not read its input `j`.
    fn reads_behind(&self, j: usize) -> Gates {
        self.gate.into_iter().chain(self.own_gate(|behind| behind.inputs.contains(&j))).collect()
    }

    /// The gates without any of which the node leaves nothing in its output `j`.
    fn leaves_behind(&self, j: usize) -> Gates {
        self.gate.into_iter().chain(self.own_gate(|behind| behind.outputs.contains(&j))).collect()
    }
}

impl Graph {
    /// The survival probability of each residual block's branch, first to last; empty without stochastic depth.
    pub fn survival(&self) -> Vec<f64> {
        self.blocks.iter().map(|b| b.survival).collect()
    }

    /// The gates, those of all blocks or none.
    pub(super) fn gates(&self) -> Vec<ValueId> {
        self.blocks.iter().filter_map(|b| b.gate).collect()
    }

    /// When a node with this gate runs.
    pub(super) fn runs(&self, gate: Option<ValueId>) -> Runs {
        let Some((gate, Origin::Gate(block))) = gate.map(|gate| (gate, self.values[gate.index()].origin)) else {
            return Runs::Always;
        };
        if self.blocks[block].gate == Some(gate) {
            Runs::With(block)
        } else {
            Runs::Without(block)
        }
    }

    /// The inverse of `gate`: open where that is closed.
    pub(super) fn inverse(&mut self, gate: ValueId) -> ValueId {
        let Origin::Gate(index) = self.values[gate.index()].origin else { unreachable!("every gate is a block's") };
        if let Some(closed) = self.blocks[index].closed {
            return closed;
        }
        let closed = self.add_value(TensorType::stat([1]), Origin::Gate(index));
        self.blocks[index].closed = Some(closed);
        closed
    }

    /// The gates without any of which a value is not computed. A node and one behind the inverse gate that leave the
    /// same value compute it always; what comes later changes a value that is there.
    fn computed_behind(&self) -> Vec<Gates> {
        let mut all: Vec<Option<Gates>> = vec![None; self.values.len()];
        for node in &self.nodes {
            let written =
                node.outputs.iter().zip(&node.writes).enumerate().filter(|&(_, (_, &w))| w == Write::Overwrite);
            for (j, (v, _)) in written {
                let behind = node.leaves_behind(j);
                match &mut all[v.index()] {
                    Some(first) => self.merge_inverses(first, &behind),
                    none => *none = Some(behind),
                }
            }
        }
        all.into_iter().map(Option::unwrap_or_default).collect()
    }

    /// Takes a gate out of `first` where `second` is `first` with the inverse one.
    fn merge_inverses(&self, first: &mut Gates, second: &Gates) {
        let (here, there): (Vec<_>, Vec<_>) = (first.difference(second).collect(), second.difference(first).collect());
        if let ([&a], [&b]) = (&here[..], &there[..]) {
            if self.values[a.index()].origin == self.values[b.index()].origin {
                first.remove(&a);
            }
        }
    }

    /// For every value the gate of the node that writes it.
    pub(super) fn writer_gates(&self) -> Vec<Option<ValueId>> {
        let mut gates = vec![None; self.values.len()];
        for node in &self.nodes {
            let written = node.outputs.iter().zip(&node.writes).filter(|&(_, &w)| w == Write::Overwrite);
            written.for_each(|(v, _)| gates[v.index()] = node.gate);
        }
        gates
    }

    /// For each block the parameters of its branch: those whose gradients a run leaves out where the gate is closed.
    /// They follow one another.
    pub(super) fn branch_parameters(&self) -> Vec<std::ops::Range<usize>> {
        let writers = self.writer_gates();
        let mut ranges: HashMap<ValueId, std::ops::Range<usize>> = HashMap::new();
        for (i, p) in self.parameters.iter().enumerate() {
            let Some(gate) = p.grad.and_then(|g| writers[g.index()]) else { continue };
            ranges.entry(gate).or_insert(i..i).end = i + 1;
        }
        self.gates().into_iter().map(|gate| ranges.remove(&gate).unwrap_or(0..0)).collect()
    }

    /// Fails where something could read a value of a branch that was skipped: what the builder, the differentiation and
    /// every fusion must not bring about.
    pub(super) fn check_gates(&self) -> Result<()> {
        let behind = self.computed_behind();
        let computed = |v: ValueId| self.values[v.index()].origin == Origin::Node;
        for node in &self.nodes {
            let name = node.op.operator().name();
            for (j, &v) in node.inputs.iter().enumerate().filter(|&(_, &v)| computed(v)) {
                if !behind[v.index()].is_subset(&node.reads_behind(j)) {
                    return Err(Error::invalid(name, format!("it reads input {j} of a branch that may be dropped")));
                }
            }
            let added =
                node.outputs.iter().zip(&node.writes).enumerate().filter(|&(_, (_, &w))| w == Write::Accumulate);
            for (j, (&v, _)) in added {
                if !behind[v.index()].is_subset(&node.leaves_behind(j)) {
                    return Err(Error::invalid(name, "it adds to a value of a branch that may be dropped"));
                }
            }
        }
        let named = self.outputs.iter().find(|(_, v)| computed(*v) && !behind[v.index()].is_empty());
        named.map_or(Ok(()), |(name, _)| {
            Err(Error::invalid(format!("output `{name}`"), "it is inside of a branch that may be dropped"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::fuse::{fuse, Runner};
    use crate::graph::{ConvOptions, LossOptions};
    use crate::ops::conv2d::{self, Bwd, Pass};
    use crate::ops::norm;
    use crate::ops::pool::{Kind, Window};
    use crate::ops::store::Mask;

    /// Two blocks that may be dropped, as kernels run them.
    fn fused() -> Graph {
        let build = |b: &mut Builder| -> Result<()> {
            let mut x = b.input("input", [2, 6, 6, 8]);
            x = b.conv2d("stem", x, ConvOptions { k: 8, ..Default::default() })?;
            for name in ["first", "second"] {
                let branch = b.branch(0.5, |b| {
                    let mut f = x;
                    for i in 1..=2 {
                        f = b.conv2d(&format!("{name}.conv{i}"), f, ConvOptions { k: 8, ..Default::default() })?;
                        f = b.batch_norm(&format!("{name}.norm{i}"), f, 1e-5)?;
                    }
                    Ok(f)
                })?;
                let sum = b.join(branch, x)?;
                x = b.relu(sum)?;
            }
            let x = b.pool(x, Window::Adaptive([1; 2]), Kind::Average { count_padding: false })?;
            let logits = b.linear("fc", x, 3)?;
            b.loss(logits, LossOptions::default()).map(drop)
        };
        let mut b = Builder::new(Mode::Train);
        build(&mut b).expect("a network");
        let mut graph = b.finish();
        graph.differentiate().expect("a loss");
        fuse(&graph, Runner::Kernels).graph
    }

    /// `fused` with the first node changed for which `change` does something.
    fn changed(change: impl Fn(&mut Node) -> bool) -> Graph {
        let mut graph = fused();
        assert!(graph.nodes.iter_mut().any(change), "a node of that kind");
        graph
    }

    #[test]
    fn what_is_read_of_a_branch_is_behind_its_gate() {
        assert!(fused().check_gates().is_ok());
        let of_end = |node: &mut Node| match &mut node.op {
            Op::Sum(end) => end.form.gate.take().is_some(),
            _ => false,
        };
        assert!(changed(of_end).check_gates().is_err(), "the end of a block");
        let of_mask = |node: &mut Node| match &mut node.op {
            Op::Conv2d(conv2d::Node { pass: Pass::Bwd(Bwd { mask: Some(Mask::Signs { gate, .. }), .. }), .. }) => {
                std::mem::take(gate).is_some()
            }
            _ => false,
        };
        assert!(changed(of_mask).check_gates().is_err(), "the mask of a gradient");
    }

    #[test]
    fn inverse_gates_compute_a_value_always() {
        let is_pass = |node: &Node| matches!(node.op, Op::Norm(norm::Node { pass: norm::Pass::Gradient(_), .. }));
        let mut graph = fused();
        let runs: Vec<Runs> = graph.nodes.iter().filter(|n| is_pass(n)).map(|n| graph.runs(n.gate)).collect();
        assert_eq!(runs, [Runs::Without(1)], "in place of the second block's gradient");
        graph.nodes.retain(|node| !is_pass(node));
        assert!(graph.check_gates().is_err(), "the sums are missing where the second block is dropped");
        let own = fused().blocks[1].gate;
        let with_it = |node: &mut Node| {
            is_pass(node) && {
                node.gate = own;
                true
            }
        };
        assert!(changed(with_it).check_gates().is_err(), "both behind the same gate");
    }
}
