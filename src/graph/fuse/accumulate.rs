//! Sums of gradients without an op of their own.
//!
//! ```text
//! b = f(..)  c = a + b   ->  a += f(..), a for c
//! ```
//!
//! Legal if f can add to its output and runs after a is stored, if b has no other reader, and if nothing reads a from f
//! on. If the sum is behind a gate, f must be behind the same gate.
//!
//! Saves writing and reading b and c: 4 accesses per element of a, minus f's read of a.
//!
//! After `epilogue`, which takes the sums of the forward pass.

use super::{count_uses, Graph, ValueId};
use crate::ops::{sum, Op, Write};

/// Removes every sum of gradients that the later of its operands' ops can compute by accumulating.
pub(super) fn in_place(graph: &mut Graph) {
    let mut alias: Vec<ValueId> = (0..graph.values.len()).map(|i| ValueId(i as u32)).collect();
    let mut written_by = vec![None; graph.values.len()];
    // The remaining nodes that read each value or an alias of it, and `usize::MAX` for outputs.
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); graph.values.len()];
    let uses = count_uses(graph);
    for (i, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|v| readers[v.index()].push(i));
        node.outputs.iter().for_each(|v| written_by[v.index()] = Some(i));
    }
    graph.outputs.iter().for_each(|(_, v)| readers[v.index()].push(usize::MAX));
    let mut removed = vec![false; graph.nodes.len()];
    for (i, removed) in removed.iter_mut().enumerate() {
        let node = &graph.nodes[i];
        let Op::Sum(sum::Node { form, share: 1.0, relu: false, .. }) = &node.op else { continue };
        let sum::Fwd { a, b, gate, y, .. } = node.bind(*form);
        let (a, b, c) = (a.value, b.value, y.value);
        // A gated sum adds b to a, never a to b, because only a is always there.
        let pairs = if gate.is_some() { vec![(a, b)] } else { vec![(a, b), (b, a)] };
        let gate = gate.or(node.gate);
        for (a, b) in pairs {
            let (a, b) = (alias[a.index()], alias[b.index()]);
            let (Some(at), Some(by)) = (written_by[a.index()], written_by[b.index()]) else { continue };
            let output = graph.nodes[by].outputs.iter().position(|&o| o == b);
            let Some(j) = output.filter(|j| graph.nodes[by].op.operator().accumulates().contains(j)) else { continue };
            // Of the op that would add to `a` and all later nodes, only the sum reads `a`.
            let first = readers[a.index()].partition_point(|&k| k < by);
            let fits = at < by && uses[b.index()] == 1 && readers[a.index()][first..].iter().all(|&k| k == i);
            // The op runs exactly when the sum would add its result.
            let together = graph.nodes[by].gate == gate;
            if !fits || !together || graph.nodes[by].writes[j] != Write::Overwrite {
                continue;
            }
            graph.nodes[by].outputs[j] = a;
            graph.nodes[by].writes[j] = Write::Accumulate;
            alias[c.index()] = a;
            let more = std::mem::take(&mut readers[c.index()]);
            let readers = &mut readers[a.index()];
            while readers.last() == Some(&i) {
                readers.pop();
            }
            readers.extend(more);
            written_by[a.index()] = Some(by);
            *removed = true;
            break;
        }
    }
    graph.remove(removed);
    let operands = graph.nodes.iter_mut().flat_map(|node| node.inputs.iter_mut().chain(&mut node.outputs));
    let gradients = graph.parameters.iter_mut().filter_map(|p| p.grad.as_mut());
    let outputs = graph.outputs.iter_mut().map(|(_, v)| v);
    operands.chain(gradients).chain(outputs).for_each(|v| *v = alias[v.index()]);
}
