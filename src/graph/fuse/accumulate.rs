//! Sums of gradients without an op of their own.
//!
//! ```text
//! b = f(..)  c = a + b   ->  a += f(..), a for c
//! ```
//!
//! Legal if f can add to its output and runs after a is stored, if b has no other reader, and if nobody reads a from f
//! on. A sum behind a gate needs an f behind the same gate.
//!
//! Saves writing and reading b and c: 4 elements for each of a, minus the one that f now reads.
//!
//! After `epilogue`, which takes the sums of the forward pass.

use super::{count_uses, Graph, ValueId};
use crate::ops::{sum, Op, Write};

/// `b = f(..); c = a + b` becomes `a += f(..)` where `a` is not read any more.
pub(super) fn in_place(graph: &mut Graph) {
    let mut alias: Vec<ValueId> = (0..graph.values.len()).map(|i| ValueId(i as u32)).collect();
    let mut last_read = vec![0; graph.values.len()];
    let mut written_by = vec![None; graph.values.len()];
    // The nodes, but for those that are removed, that read each value or what was added in its place.
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); graph.values.len()];
    let uses = count_uses(graph);
    for (i, node) in graph.nodes.iter().enumerate() {
        for v in &node.inputs {
            last_read[v.index()] = i;
            readers[v.index()].push(i);
        }
        node.outputs.iter().for_each(|v| written_by[v.index()] = Some(i));
    }
    graph.outputs.iter().for_each(|(_, v)| last_read[v.index()] = usize::MAX);
    let mut removed = vec![false; graph.nodes.len()];
    for (i, removed) in removed.iter_mut().enumerate() {
        let node = &graph.nodes[i];
        let Op::Sum(sum::Node { form, share: 1.0, relu: false, .. }) = &node.op else { continue };
        let sum::Fwd { a, b, gate, y, .. } = node.bind(*form);
        let (a, b, c) = (a.value, b.value, y.value);
        // What a branch contributes comes to what is there without it, where the gate is open.
        let pairs = if gate.is_some() { vec![(a, b)] } else { vec![(a, b), (b, a)] };
        let gate = gate.or(node.gate);
        for (a, b) in pairs {
            let (a, b) = (alias[a.index()], alias[b.index()]);
            let (Some(at), Some(by)) = (written_by[a.index()], written_by[b.index()]) else { continue };
            let output = graph.nodes[by].outputs.iter().position(|&o| o == b);
            let Some(j) = output.filter(|j| graph.nodes[by].op.operator().accumulates().contains(j)) else { continue };
            let fits = at < by && last_read[a.index()] <= i && uses[b.index()] == 1;
            // From the op that would add to it on, nobody reads `a`; that op itself least of all.
            let first = readers[a.index()].partition_point(|&k| k < by);
            let quiet = readers[a.index()].get(first).is_none_or(|&k| k >= i);
            // It is added whenever it is computed.
            let together = graph.nodes[by].gate == gate;
            if !fits || !quiet || !together || graph.nodes[by].writes[j] != Write::Overwrite {
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
            last_read[a.index()] = last_read[c.index()];
            written_by[a.index()] = Some(by);
            *removed = true;
            break;
        }
    }
    rename(graph, &alias, removed);
}

/// Takes out the nodes that are `removed`, and puts what is added to in the place of the sums.
fn rename(graph: &mut Graph, alias: &[ValueId], removed: Vec<bool>) {
    let mut gone = removed.into_iter();
    graph.nodes.retain(|_| !gone.next().unwrap_or(false));
    for node in &mut graph.nodes {
        node.inputs.iter_mut().chain(&mut node.outputs).for_each(|v| *v = alias[v.index()]);
    }
    graph.outputs.iter_mut().for_each(|(_, v)| *v = alias[v.index()]);
    graph.parameters.iter_mut().filter_map(|p| p.grad.as_mut()).for_each(|v| *v = alias[v.index()]);
}
