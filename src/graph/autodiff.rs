//! Reverse-mode differentiation: appends the backward ops to a graph.

use std::collections::HashMap;

use super::{Graph, Origin, ValueId};
use crate::ops::{Gradient, Source};
use crate::tensor::Elem;
use crate::{Error, Result};

/// One of a value's gradients: what one of its uses contributes.
#[derive(Clone, Copy, Debug)]
struct Part {
    grad: ValueId,
    /// Where this is closed, the use did not take place and contributes nothing.
    gate: Option<ValueId>,
}

/// What the backward pass knows on its way.
struct Backward {
    /// For every value of the forward pass whether it depends on a parameter, or is one.
    needed: Vec<bool>,
    /// For every value of the forward pass the gate of its branch.
    gates: Vec<Option<ValueId>>,
    /// The gradients of each value so far, one for each of its uses, in the order in which the backward pass meets
    /// them.
    parts: HashMap<ValueId, Vec<Part>>,
}

impl Graph {
    /// Appends the ops that compute the gradient of the loss with respect to every parameter.
    ///
    /// Fails where the graph has no loss, is differentiated already, or holds an op without a gradient.
    pub fn differentiate(&mut self) -> Result<()> {
        let Some(loss) = self.loss else {
            return Err(Error::invalid("differentiate", "the graph has no loss"));
        };
        if self.parameters.iter().any(|p| p.grad.is_some()) {
            return Err(Error::invalid("differentiate", "the graph has been differentiated already"));
        }
        let (needed, gates) = (self.depends_on_parameters(), self.writer_gates());
        let mut backward = Backward { needed, gates, parts: HashMap::new() };
        for i in (0..self.nodes.len()).rev() {
            let is_root = self.nodes[i].outputs.first() == Some(&loss);
            let reached = self.nodes[i].outputs.iter().any(|o| backward.parts.contains_key(o));
            if is_root || reached {
                self.differentiate_node(i, &mut backward)?;
            }
        }
        for i in 0..self.parameters.len() {
            let parts = backward.parts.remove(&self.parameters[i].value).unwrap_or_default();
            self.parameters[i].grad = match parts[..] {
                [part] => Some(part.grad),
                [] => {
                    let problem = "the loss does not depend on this parameter";
                    return Err(Error::invalid(&self.parameters[i].name, problem));
                }
                _ => return Err(Error::unsupported("a parameter used twice", "give each use its own parameter")),
            };
        }
        Ok(())
    }

    /// Appends the gradient rules of node `i` and records what they contribute.
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
                    let mut inputs = Vec::with_capacity(sources.len());
                    for source in sources {
                        inputs.push(match source {
                            Source::Input(j) => node.inputs[j],
                            Source::Output(j) => node.outputs[j],
                            Source::Grad(j) => self.total(node.outputs[j], backward)?.ok_or_else(|| {
                                Error::unsupported(
                                    format!("gradient of {}", node.op.operator().name()),
                                    format!("its output {j} does not reach the loss"),
                                )
                            })?,
                        });
                    }
                    let outputs = self.add_node(op, inputs, node.gate);
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

    /// The gradient of `value`: its parts added up, in order, but those that a gate can leave out last.
    fn total(&mut self, value: ValueId, backward: &mut Backward) -> Result<Option<ValueId>> {
        let Some(parts) = backward.parts.get(&value).cloned() else { return Ok(None) };
        let own = backward.gates[value.index()];
        // Where `value` exists, so do the uses of its own branch.
        let (always, dropped): (Vec<Part>, Vec<Part>) =
            parts.into_iter().partition(|p| p.gate == own || p.gate.is_none());
        let Some((first, more)) = always.split_first() else {
            let why = "something outside of them must read it too: the shortcut";
            return Err(Error::unsupported("a value that branches alone read, which may be dropped", why));
        };
        if !(more.is_empty() && dropped.is_empty()) && self.ty(first.grad).elem != Elem::Real {
            return Err(Error::unsupported("a statistic used twice", "give each use its own"));
        }
        let mut sum = first.grad;
        for part in more {
            sum = self.add_sum(sum, part.grad, None, own);
        }
        for part in dropped {
            sum = self.add_sum(sum, part.grad, part.gate, own);
        }
        backward.parts.insert(value, vec![Part { grad: sum, gate: own }]);
        Ok(Some(sum))
    }

    /// For every value whether it depends on a parameter, or is one.
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
