//! The readers and writers of each value of a graph.

use std::collections::HashMap;

use super::Place;
use crate::graph::{Graph, ValueId};

/// A node that reads a value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    pub node: usize,
    pub operand: &'static str,
    /// The operand's position among the node's inputs.
    pub at: usize,
}

pub(super) struct Index {
    readers: Vec<Vec<Reader>>,
    writers: Vec<Vec<usize>>,
    outputs: Vec<bool>,
    places: Vec<Option<Place>>,
    /// The slices of each root.
    slices: HashMap<ValueId, Vec<ValueId>>,
    /// The first node that writes each root or one of its slices.
    begun: HashMap<ValueId, usize>,
}

impl Index {
    pub fn new(graph: &Graph, views: &[Option<Place>]) -> Self {
        let count = graph.values.len();
        let (readers, writers, outputs) = (vec![Vec::new(); count], vec![Vec::new(); count], vec![false; count]);
        let places = (0..count).map(|i| views.get(i).copied().flatten()).collect();
        let (slices, begun) = (HashMap::new(), HashMap::new());
        let mut index = Self { readers, writers, outputs, places, slices, begun };
        for (i, node) in graph.nodes.iter().enumerate() {
            let names = node.op.operator().operands().reads.into_iter().map(|(name, _)| name);
            for ((at, v), operand) in node.inputs.iter().enumerate().zip(names) {
                index.readers[v.index()].push(Reader { node: i, operand, at });
            }
            node.outputs.iter().for_each(|v| index.writers[v.index()].push(i));
        }
        graph.outputs.iter().for_each(|(_, v)| index.outputs[v.index()] = true);
        let slices = views.iter().enumerate().filter_map(|(i, view)| Some((view.as_ref()?.root, ValueId(i as u32))));
        slices.for_each(|(root, v)| index.slices.entry(root).or_default().push(v));
        let first =
            |&root: &ValueId| Some((root, index.family(root).filter_map(|v| index.writers(v).first()).min().copied()?));
        index.begun = index.slices.keys().filter_map(first).collect();
        index
    }

    /// The nodes that read `v`, in execution order.
    pub fn readers(&self, v: ValueId) -> &[Reader] {
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

    /// True if `reader` is the only reader of `v` as `writer` leaves it, and nothing writes `v` later.
    pub fn sole_reader(&self, v: ValueId, writer: usize, reader: usize) -> bool {
        let read = self.readers(v).iter().all(|r| r.node <= writer || r.node == reader);
        read && self.writers(v).iter().all(|&w| w <= writer)
    }

    /// True if no node after `from`, up to and including the last reader of `of`, writes `v`.
    pub fn keeps(&self, v: ValueId, from: usize, of: ValueId) -> bool {
        let last = self.readers(of).iter().map(|r| r.node).max().unwrap_or(from);
        self.writers(v).iter().all(|&w| w <= from || w > last)
    }

    /// True if a node before `before` writes to the root of `v` or one of its slices.
    pub fn has_begun(&self, v: ValueId, before: usize) -> bool {
        let root = self.place(v).root;
        self.begun.get(&root).or(self.writers(root).first()).is_some_and(|&first| first < before)
    }

    /// True if `v` can be read after a run.
    pub fn is_output(&self, v: ValueId) -> bool {
        self.outputs[v.index()]
    }

    /// True if `v` neither is a slice nor has slices.
    pub fn is_alone(&self, v: ValueId) -> bool {
        self.places[v.index()].is_none() && !self.slices.contains_key(&v)
    }

    /// The place of `v`: itself if it has memory of its own.
    pub fn place(&self, v: ValueId) -> Place {
        self.places[v.index()].unwrap_or(Place { root: v, channel: 0 })
    }

    /// `root` and its slices, in the order in which they were made.
    pub fn family(&self, root: ValueId) -> impl Iterator<Item = ValueId> + '_ {
        let slices = self.slices.get(&root).map_or(&[][..], Vec::as_slice);
        let (before, behind) = slices.split_at(slices.partition_point(|&v| v < root));
        before.iter().copied().chain([root]).chain(behind.iter().copied())
    }
}
