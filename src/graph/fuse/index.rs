//! Who reads and who writes each value of a graph.

use super::View;
use crate::graph::{Graph, ValueId};

pub(super) struct Index {
    /// Node and input position, in the order in which they run.
    readers: Vec<Vec<(usize, usize)>>,
    writers: Vec<Vec<usize>>,
    outputs: Vec<bool>,
    views: Vec<Option<View>>,
    /// Whether other values are slices of it.
    is_root: Vec<bool>,
}

impl Index {
    pub fn new(graph: &Graph, views: &[Option<View>]) -> Self {
        let count = graph.values.len();
        let mut index = Self {
            readers: vec![Vec::new(); count],
            writers: vec![Vec::new(); count],
            outputs: vec![false; count],
            views: views.to_vec(),
            is_root: vec![false; count],
        };
        for (i, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().enumerate().for_each(|(at, v)| index.readers[v.index()].push((i, at)));
            node.outputs.iter().for_each(|v| index.writers[v.index()].push(i));
        }
        graph.outputs.iter().for_each(|(_, v)| index.outputs[v.index()] = true);
        views.iter().flatten().for_each(|view| index.is_root[view.root.index()] = true);
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

    /// Whether the only node that reads what `writer` leaves in `v` is `reader`; a node that adds to it reads it too.
    pub fn sole_reader(&self, v: ValueId, writer: usize, reader: usize) -> bool {
        let readers = self.readers(v).iter().map(|&(reader, _)| reader).chain(self.writers(v).iter().copied());
        readers.filter(|&r| r > writer).all(|r| r == reader)
    }

    /// Whether `v` can be read after a run.
    pub fn is_output(&self, v: ValueId) -> bool {
        self.outputs[v.index()]
    }

    /// Whether `v` has memory of its own and nobody else's is in it.
    pub fn is_alone(&self, v: ValueId) -> bool {
        self.views[v.index()].is_none() && !self.is_root[v.index()]
    }

    /// Where `v` lies: itself where it has memory of its own.
    pub fn place(&self, v: ValueId) -> View {
        self.views[v.index()].unwrap_or(View { root: v, channel: 0 })
    }

    /// All values that lie in `root`'s memory, itself included.
    pub fn family(&self, root: ValueId) -> impl Iterator<Item = ValueId> + '_ {
        (0..self.views.len()).map(|i| ValueId(i as u32)).filter(move |&v| self.place(v).root == root)
    }
}
