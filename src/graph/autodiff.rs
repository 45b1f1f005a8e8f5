//! Reverse-mode differentiation: appends the backward ops to a graph.

use std::collections::HashMap;

use super::{Graph, Origin, ValueId};
use crate::ops::{Gradient, Source};
use crate::tensor::Elem;
use crate::{Error, Result};

/// The contribution of one use of a value to its gradient.
#[derive(Clone, Copy, Debug)]
struct Part {
    grad: ValueId,
    /// If this is closed, the use was skipped and contributes nothing.
    gate: Option<ValueId>,
}

/// The state of the backward pass, by forward value.
struct Backward {
    /// True if the value is a parameter or depends on one.
    needed: Vec<bool>,
    /// The gate of the value's branch.
    gates: Vec<Option<ValueId>>,
    /// The gradient's parts so far, in the order in which the backward pass finds them.
    parts: HashMap<ValueId, Vec<Part>>,
}

impl Graph {
    /// Appends the ops that compute the gradient of the loss with respect to every parameter.
    ///
    /// Fails if the graph has no loss or is differentiated already, if an op has no gradient, and if a parameter is
    /// used twice or does not affect the loss. A failure leaves the graph as it was. [`Graph`] has an example.
    pub fn differentiate(&mut self) -> Result<()> {
        let mut graph = self.clone();
        graph.append_backward()?;
        *self = graph;
        Ok(())
    }

    /// As [`differentiate`](Self::differentiate), but a failure leaves the graph half differentiated.
    fn append_backward(&mut self) -> Result<()> {
        let loss = self.loss.ok_or_else(|| Error::invalid("differentiate", "the graph has no loss"))?;
        let fresh = self.parameters.iter().all(|p| p.grad.is_none());
        Error::check(fresh, "differentiate", || "the graph has been differentiated already".into())?;
        let (needed, gates) = (self.depends_on_parameters(), self.writer_gates());
        let mut backward = Backward { needed, gates, parts: HashMap::new() };
        for i in (0..self.nodes.len()).rev() {
            if self.nodes[i].outputs.iter().any(|&o| o == loss || backward.parts.contains_key(&o)) {
                self.differentiate_node(i, &mut backward)?;
            }
        }
        for p in &mut self.parameters {
            let parts = backward.parts.remove(&p.value).unwrap_or_default();
            p.grad = match parts[..] {
                [part] => Some(part.grad),
                [] => return Err(Error::invalid(&p.name, "the loss does not depend on this parameter")),
                _ => return Err(Error::unsupported("a parameter used twice", "give each use its own parameter")),
            };
        }
        Ok(())
    }

    /// Applies the gradient rules of node `i`: appends their nodes and records the parts that they contribute.
    fn differentiate_node(&mut self, i: usize, backward: &mut Backward) -> Result<()> {
        let node = self.nodes[i].clone();
        let wanted: Vec<bool> = node.inputs.iter().map(|v| backward.needed[v.index()]).collect();
        if !wanted.contains(&true) {
            return Ok(());
        }
        for rule in node.op.operator().gradient(&wanted)? {
            match rule {
                Gradient::Same { output, input } => {
                    if let Some(grad) = self.total(node.outputs[output], backward)? {
                        let part = Part { grad, gate: node.reads_under(input) };
                        backward.parts.entry(node.inputs[input]).or_default().push(part);
                    }
                }
                Gradient::Node { op, sources, targets } => {
                    let input = |source| match source {
                        Source::Input(j) => Ok(node.inputs[j]),
                        Source::Output(j) => Ok(node.outputs[j]),
                        Source::Grad(j) => self.total(node.outputs[j], backward)?.ok_or_else(|| {
                            let what = format!("gradient of {}", node.op.operator().name());
                            Error::unsupported(what, format!("its output {j} does not reach the loss"))
                        }),
                    };
                    let inputs: Result<Vec<ValueId>> = sources.into_iter().map(input).collect();
                    let outputs = self.add_node(op, inputs?, Vec::new(), node.gate);
                    for (grad, target) in outputs.into_iter().zip(targets) {
                        if let Some(j) = target.filter(|&j| wanted[j]) {
                            let part = Part { grad, gate: node.gate };
                            backward.parts.entry(node.inputs[j]).or_default().push(part);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The gradient of `value`: the sum of its parts in order, except that parts behind a gate come last.
    fn total(&mut self, value: ValueId, backward: &mut Backward) -> Result<Option<ValueId>> {
        let Some(parts) = backward.parts.get(&value).cloned() else { return Ok(None) };
        let own = backward.gates[value.index()];
        // The uses in the value's own branch are computed whenever the value is.
        let (always, dropped): (Vec<Part>, Vec<Part>) =
            parts.into_iter().partition(|p| p.gate == own || p.gate.is_none());
        let Some((first, more)) = always.split_first() else {
            let why = "something outside must read it too: the shortcut";
            return Err(Error::unsupported("a value read only by branches that may be dropped", why));
        };
        if !(more.is_empty() && dropped.is_empty()) && self.ty(first.grad).elem != Elem::Real {
            return Err(Error::unsupported("a statistic used twice", "give each use its own"));
        }
        let mut sum = first.grad;
        for part in more {
            sum = self.add_sum([sum, part.grad], None, own);
        }
        for part in dropped {
            sum = self.add_sum([sum, part.grad], part.gate, own);
        }
        backward.parts.insert(value, vec![Part { grad: sum, gate: own }]);
        Ok(Some(sum))
    }

    /// For every value, true if it is a parameter or depends on one.
    fn depends_on_parameters(&self) -> Vec<bool> {
        let mut depends: Vec<bool> = self.values.iter().map(|v| matches!(v.origin, Origin::Parameter(_))).collect();
        for node in &self.nodes {
            let any = node.inputs.iter().any(|v| depends[v.index()]);
            for output in &node.outputs {
                depends[output.index()] |= any;
            }
        }
        depends
    }
}

#[cfg(test)]
mod tests {
    use crate::graph::{Builder, ConvOptions, LossOptions, Mode};

    #[test]
    fn a_failure_leaves_the_graph_as_it_was() {
        let mut b = Builder::new(Mode::Train);
        let x = b.input("input", [2, 1, 1, 3]);
        b.conv2d("unused", x, ConvOptions::default()).unwrap();
        let logits = b.linear("fc", x, 2).unwrap();
        b.loss(logits, LossOptions::default()).unwrap();
        let mut graph = b.finish();
        let before = format!("{graph:?}");
        let problem = graph.differentiate().unwrap_err().to_string();
        assert_eq!(problem, "unused.weight: the loss does not depend on this parameter");
        assert_eq!(format!("{graph:?}"), before);
    }
}
