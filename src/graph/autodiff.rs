//! Reverse-mode differentiation: appends the backward ops to a graph.

use std::collections::HashMap;

use super::{Graph, Origin, ValueId};
use crate::ops::{add, Gradient, Op, Source};
use crate::tensor::Elem;
use crate::{Error, Result};

/// The gradients of one value so far, one for each of its uses, in the order in which the backward pass meets them.
type Contributions = HashMap<ValueId, Vec<ValueId>>;

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
        let needed = self.depends_on_parameters();
        let mut grads = Contributions::new();
        for i in (0..self.nodes.len()).rev() {
            let is_root = self.nodes[i].outputs.first() == Some(&loss);
            let reached = self.nodes[i].outputs.iter().any(|o| grads.contains_key(o));
            if is_root || reached {
                self.differentiate_node(i, &needed, &mut grads)?;
            }
        }
        for i in 0..self.parameters.len() {
            let value = self.parameters[i].value;
            let grad = self.total(value, &mut grads)?;
            self.parameters[i].grad = Some(grad.ok_or_else(|| {
                Error::invalid(&self.parameters[i].name, "the loss does not depend on this parameter")
            })?);
        }
        Ok(())
    }

    /// Appends the gradient rules of node `i` and records what they contribute.
    fn differentiate_node(&mut self, i: usize, needed: &[bool], grads: &mut Contributions) -> Result<()> {
        let node = self.nodes[i].clone();
        let wanted: Vec<bool> = node.inputs.iter().map(|v| needed[v.index()]).collect();
        if !wanted.contains(&true) {
            return Ok(());
        }
        for rule in node.op.operator().gradient(&wanted)? {
            match rule {
                Gradient::Same { output, input } => {
                    if let Some(grad) = self.total(node.outputs[output], grads)? {
                        grads.entry(node.inputs[input]).or_default().push(grad);
                    }
                }
                Gradient::Node { op, sources, targets } => {
                    let mut inputs = Vec::with_capacity(sources.len());
                    for source in sources {
                        inputs.push(match source {
                            Source::Input(j) => node.inputs[j],
                            Source::Output(j) => node.outputs[j],
                            Source::Grad(j) => self.total(node.outputs[j], grads)?.ok_or_else(|| {
                                Error::unsupported(
                                    format!("gradient of {}", node.op.operator().name()),
                                    format!("its output {j} does not reach the loss"),
                                )
                            })?,
                        });
                    }
                    let outputs = self.add_node(op, inputs, &[]);
                    for (output, target) in outputs.into_iter().zip(targets) {
                        if let Some(j) = target.filter(|&j| wanted[j]) {
                            grads.entry(node.inputs[j]).or_default().push(output);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The gradient of `value`: its contributions added up, in order.
    fn total(&mut self, value: ValueId, grads: &mut Contributions) -> Result<Option<ValueId>> {
        let Some(parts) = grads.get(&value).cloned() else { return Ok(None) };
        let mut sum = parts[0];
        for &part in &parts[1..] {
            let ty = self.ty(sum).clone();
            if ty.elem != Elem::Real {
                return Err(Error::unsupported("a parameter used twice", "give each use its own parameter"));
            }
            sum = self.add_node(Op::Add(add::Node { shape: ty.shape, relu: false }), vec![sum, part], &[])[0];
        }
        grads.insert(value, vec![sum]);
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
