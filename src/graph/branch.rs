//! Stochastic depth: residual branches that a run may skip, forward and backward.
//!
//! The nodes of a branch carry its gate, and so do the nodes of their gradients. A run skips them all if the gate is
//! closed; nothing reads their values then. Outside, only [`Op::Sum`] reads a branch, and leaves a closed one out; the
//! gradient that a branch contributes to a value outside is added last.

use std::collections::{BTreeSet, HashMap};

use super::{Builder, Graph, Mode, Node, Origin, ValueId};
use crate::ops::{sum, Behind, Call, Op, Write};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// The output of a residual branch that may be dropped. [`Builder::branch`] has an example.
#[derive(Debug)]
pub struct Branch {
    value: ValueId,
    survival: f64,
    gate: Option<ValueId>,
}

/// The condition under which a launch runs, by the index of a residual block. [`Builder::branch`] has an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// In every run.
    Always,
    /// If the block's branch is kept.
    With(usize),
    /// If the block's branch is dropped.
    Without(usize),
}

impl Runs {
    /// The probability of the condition, given each block's survival probability ([`Graph::survival`]).
    pub fn probability(&self, survival: &[f64]) -> f64 {
        match *self {
            Self::Always => 1.0,
            Self::With(block) => survival[block],
            Self::Without(block) => 1.0 - survival[block],
        }
    }
}

impl Builder {
    /// A residual branch of `layers`, kept with probability `survival` for a mini-batch as a whole. Fails if `survival`
    /// is not in 0..=1, inside another branch, and as `layers` does.
    ///
    /// ```
    /// use residuum::graph::{Builder, ConvOptions, Mode, Runs};
    ///
    /// let mut b = Builder::new(Mode::Train);
    /// let x = b.input("input", [4, 8, 8, 16]);
    /// let branch = b.branch(0.8, |b| b.conv2d("conv", x, ConvOptions { k: 16, ..Default::default() }))?;
    /// let y = b.join(branch, x)?;
    /// assert_eq!(b.shape(y), [4, 8, 8, 16]);
    /// let graph = b.finish();
    /// assert_eq!(Runs::With(0).probability(&graph.survival()), 0.8);
    /// # Ok::<(), residuum::Error>(())
    /// ```
    pub fn branch(&mut self, survival: f64, layers: impl FnOnce(&mut Self) -> Result<ValueId>) -> Result<Branch> {
        let known = (0.0..=1.0).contains(&survival);
        Error::check(known, "survival of a branch", || format!("{survival}, expected 0..=1"))?;
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

    /// The end of a block, of any shape. In training `shortcut` plus the branch if it is kept; at inference `shortcut`
    /// plus the branch times its survival probability. Fails if their shapes differ.
    pub fn join(&mut self, branch: Branch, shortcut: ValueId) -> Result<ValueId> {
        let shape = self.common_shape("join", shortcut, branch.value)?;
        let share = if branch.gate.is_some() { 1.0 } else { branch.survival };
        let call = sum::Fwd { a: shortcut.into(), b: branch.value.into(), gate: branch.gate, y: None, signs: None };
        Ok(self.push(Op::Sum(sum::Node { form: call.form(), share, ..sum::Node::of(shape) }), call)?.y)
    }
}

/// Gates that must all be open.
type Gates = BTreeSet<ValueId>;

impl Node {
    /// The op's own gate, if `is_behind` says so of the operands behind it.
    fn own_gate(&self, is_behind: impl Fn(&Behind) -> bool) -> Option<ValueId> {
        let operator = self.op.operator();
        let gate = operator.operands().reads.iter().position(|(name, _)| *name == "gate")?;
        is_behind(&operator.behind_gate()).then(|| self.inputs[gate])
    }

    /// The gate that decides whether the node reads input `j`: the op's own, else the branch's.
    pub(super) fn reads_under(&self, j: usize) -> Option<ValueId> {
        self.own_gate(|behind| behind.inputs.contains(&j)).or(self.gate)
    }

    /// The gates that must be open for the node to read input `j`.
    fn reads_behind(&self, j: usize) -> Gates {
        self.gate.into_iter().chain(self.own_gate(|behind| behind.inputs.contains(&j))).collect()
    }

    /// The gates that must be open for the node to store a meaningful output `j`.
    fn leaves_behind(&self, j: usize) -> Gates {
        self.gate.into_iter().chain(self.own_gate(|behind| behind.outputs.contains(&j))).collect()
    }
}

impl Graph {
    /// The survival probability of each residual block's branch, first to last; empty without stochastic depth.
    pub fn survival(&self) -> Vec<f64> {
        self.blocks.iter().map(|b| b.survival).collect()
    }

    /// The gates of all blocks; none at inference.
    pub(super) fn gates(&self) -> Vec<ValueId> {
        self.blocks.iter().filter_map(|b| b.gate).collect()
    }

    /// The condition under which a node with this gate runs.
    pub(super) fn runs(&self, gate: Option<ValueId>) -> Runs {
        match gate.map(|gate| self.values[gate.index()].origin) {
            Some(Origin::Gate(block)) if self.blocks[block].gate == gate => Runs::With(block),
            Some(Origin::Gate(block)) => Runs::Without(block),
            _ => Runs::Always,
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

    /// For every value the gates that must be open for it to be computed. If two nodes store a value, one behind a gate
    /// and one behind its inverse, it is always computed.
    fn computed_behind(&self) -> Vec<Gates> {
        let mut all: Vec<Option<Gates>> = vec![None; self.values.len()];
        for node in &self.nodes {
            for (j, v) in node.written(Write::Overwrite) {
                let behind = node.leaves_behind(j);
                match &mut all[v.index()] {
                    Some(first) => self.merge_inverses(first, &behind),
                    none => *none = Some(behind),
                }
            }
        }
        all.into_iter().map(Option::unwrap_or_default).collect()
    }

    /// Removes a gate from `first` if `second` differs only by having the inverse instead.
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
            node.written(Write::Overwrite).for_each(|(_, v)| gates[v.index()] = node.gate);
        }
        gates
    }

    /// For each block the parameters whose gradients a run does not compute if the gate is closed. They are adjacent.
    pub(super) fn branch_parameters(&self) -> Vec<std::ops::Range<usize>> {
        let writers = self.writer_gates();
        let mut ranges: HashMap<ValueId, std::ops::Range<usize>> = HashMap::new();
        for (i, p) in self.parameters.iter().enumerate() {
            let Some(gate) = p.grad.and_then(|g| writers[g.index()]) else { continue };
            ranges.entry(gate).or_insert(i..i).end = i + 1;
        }
        self.gates().into_iter().map(|gate| ranges.remove(&gate).unwrap_or(0..0)).collect()
    }

    /// Fails if a run could read a value of a skipped branch: a bug of the builder, the differentiation or a fusion.
    pub(super) fn check_gates(&self) -> Result<()> {
        let behind = self.computed_behind();
        let computed = |v: ValueId| self.values[v.index()].origin == Origin::Node;
        for node in &self.nodes {
            let name = node.op.operator().name();
            for (j, &v) in node.inputs.iter().enumerate().filter(|&(_, &v)| computed(v)) {
                let kept = behind[v.index()].is_subset(&node.reads_behind(j));
                Error::check(kept, name, || format!("it reads input {j} of a branch that may be dropped"))?;
            }
            let mut added = node.written(Write::Accumulate);
            let kept = added.all(|(j, v)| behind[v.index()].is_subset(&node.leaves_behind(j)));
            Error::check(kept, name, || "it adds to a value of a branch that may be dropped".into())?;
        }
        self.outputs.iter().try_for_each(|(name, v)| {
            let kept = !computed(*v) || behind[v.index()].is_empty();
            Error::check(kept, format!("output `{name}`"), || "it is inside a branch that may be dropped".into())
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

    /// Two blocks that may be dropped, fused for kernels.
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

    /// `fused` with `change` applied to the first node for which it returns true.
    fn changed(change: impl Fn(&mut Node) -> bool) -> Graph {
        let mut graph = fused();
        assert!(graph.nodes.iter_mut().any(change), "a node of that kind");
        graph
    }

    #[test]
    fn readers_of_a_branch_are_behind_its_gate() {
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
        let with_it = |node: &mut Node| is_pass(node).then(|| node.gate = own).is_some();
        assert!(changed(with_it).check_gates().is_err(), "both behind the same gate");
    }
}
