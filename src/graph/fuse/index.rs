//! Who reads and who writes each value of a graph.

use crate::graph::{Graph, ValueId};

pub(super) struct Index {
    /// Node and input position, in the order in which they run.
    readers: Vec<Vec<(usize, usize)>>,
    writers: Vec<Vec<usize>>,
    outputs: Vec<bool>,
}

impl Index {
    pub fn new(graph: &Graph) -> Self {
        let count = graph.values.len();
        let mut index =
            Self { readers: vec![Vec::new(); count], writers: vec![Vec::new(); count], outputs: vec![false; count] };
        for (i, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().enumerate().for_each(|(at, v)| index.readers[v.index()].push((i, at)));
            node.outputs.iter().for_each(|v| index.writers[v.index()].push(i));
        }
        graph.outputs.iter().for_each(|(_, v)| index.outputs[v.index()] = true);
        index
    }

    /// The nodes that read `v`, each with the position among its inputs.
    pub fn readers(&self, v: ValueId) -> &[(usize, usize)] {
        &self.readers[v.index()]
    }

    /// The nodes that write `v` or add to it.
    pub fn writers(&self, v: ValueId) -> &[usize] {
        &self.writers[v.index()]
    }

    /// The last node before `before` that writes `v`.
    pub fn last_writer(&self, v: ValueId, before: usize) -> Option<usize> {
        self.writers(v).iter().copied().filter(|&w| w < before).max()
    }

    /// Whether the only node that reads what `writer` leaves in `v` is `reader`.
    pub fn sole_reader(&self, v: ValueId, writer: usize, reader: usize) -> bool {
        let next = self.writers(v).iter().copied().filter(|&w| w > writer).min().unwrap_or(usize::MAX);
        self.readers(v).iter().filter(|&&(r, _)| r > writer && r <= next).all(|&(r, _)| r == reader)
    }

    /// Whether `v` can be read after a run.
    pub fn is_output(&self, v: ValueId) -> bool {
        self.outputs[v.index()]
    }
}
