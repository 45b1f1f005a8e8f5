//! Packs blocks of memory by their lifetimes: largest first, each at the lowest offset that is free throughout.
//!
//! A segment tree over time finds the free offsets. Its leaves are moments; each node has the ranges in use at some
//! moment of its span, and those in use during all of it. A lifetime is the union of O(log n) spans, so a block looks
//! at O(log n) sets of ranges. Adjacent ranges are merged, which leaves few in a set if there are few sizes, as in deep
//! networks: time and memory then grow with n log n, at worst with n^2.

use std::collections::{BTreeMap, BTreeSet};

/// A number of bytes that are in use from moment `first` to moment `last`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime {
    pub bytes: usize,
    pub first: usize,
    pub last: usize,
}

/// The offset of each block: blocks in use at the same moment do not overlap.
pub(super) fn pack(blocks: &[Lifetime]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), blocks[i].first, i));
    let mut offsets = vec![0; blocks.len()];
    let mut taken = Taken::new(blocks.iter().map(|b| b.last + 1).max().unwrap_or(0));
    for i in order {
        offsets[i] = taken.place(&blocks[i]);
    }
    offsets
}

/// Ranges of bytes that do not touch: the end of each by its start.
type Ranges = BTreeMap<usize, usize>;

/// The segment tree of the ranges in use.
struct Taken {
    leaves: usize,
    /// For each node the ranges in use at some moment of its span.
    sometimes: Vec<Ranges>,
    /// For each node the ranges in use during its whole span.
    always: Vec<Ranges>,
}

impl Taken {
    fn new(moments: usize) -> Self {
        let leaves = moments.next_power_of_two();
        let none = || vec![Ranges::new(); 2 * leaves];
        Self { leaves, sometimes: none(), always: none() }
    }

    /// The nodes whose spans together are the lifetime of `block`.
    fn spans(&self, block: &Lifetime) -> Vec<usize> {
        let (mut first, mut end) = (block.first + self.leaves, block.last + 1 + self.leaves);
        let mut spans = Vec::new();
        while first < end {
            if first % 2 == 1 {
                spans.push(first);
                first += 1;
            }
            if end % 2 == 1 {
                end -= 1;
                spans.push(end);
            }
            (first, end) = (first / 2, end / 2);
        }
        spans
    }

    /// The ancestors of `nodes`, each once.
    fn above(nodes: &[usize]) -> BTreeSet<usize> {
        let above = |&node: &usize| std::iter::successors(Some(node / 2), |n| Some(n / 2)).take_while(|&n| n > 0);
        nodes.iter().flat_map(above).collect()
    }

    /// Puts `block` at the lowest offset that is free during its lifetime.
    fn place(&mut self, block: &Lifetime) -> usize {
        if block.bytes == 0 {
            return 0;
        }
        let spans = self.spans(block);
        let above = Self::above(&spans);
        let sometimes = spans.iter().map(|&node| &self.sometimes[node]);
        let always = above.iter().map(|&node| &self.always[node]);
        let in_use: Vec<&Ranges> = sometimes.chain(always).filter(|ranges| !ranges.is_empty()).collect();
        let mut offset = 0;
        // A range that `block` overlaps at `offset` it overlaps at every offset up to the range's end.
        while let Some(end) = in_use.iter().find_map(|ranges| overlapped(ranges, offset, block.bytes)) {
            offset = end;
        }
        let end = offset + block.bytes;
        spans.iter().for_each(|&node| add(&mut self.always[node], offset, end));
        spans.iter().chain(&above).for_each(|&node| add(&mut self.sometimes[node], offset, end));
        offset
    }
}

/// The end of the last of `ranges` that overlaps `bytes` bytes at `offset`.
fn overlapped(ranges: &Ranges, offset: usize, bytes: usize) -> Option<usize> {
    ranges.range(..offset + bytes).next_back().map(|(_, &end)| end).filter(|&end| end > offset)
}

/// Adds a range, merged with the ranges that it touches.
fn add(ranges: &mut Ranges, mut start: usize, mut end: usize) {
    while let Some((&other, &other_end)) = ranges.range(..=end).next_back().filter(|(_, &end)| end >= start) {
        ranges.remove(&other);
        (start, end) = (start.min(other), end.max(other_end));
    }
    ranges.insert(start, end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::philox::Philox;

    /// `pack` in n^2: it looks at every block that was placed before.
    fn naively_packed(blocks: &[Lifetime]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), blocks[i].first, i));
        let mut offsets = vec![0; blocks.len()];
        let mut placed: Vec<usize> = Vec::new();
        for i in order {
            let mut offset = 0;
            for &j in &placed {
                if blocks[j].first > blocks[i].last || blocks[i].first > blocks[j].last {
                    continue;
                }
                if offsets[j] >= offset + blocks[i].bytes {
                    break;
                }
                offset = offset.max(offsets[j] + blocks[j].bytes);
            }
            offsets[i] = offset;
            placed.insert(placed.partition_point(|&j| offsets[j] <= offset), i);
        }
        offsets
    }

    #[test]
    fn blocks_that_meet_do_not_overlap() {
        let blocks = [(300, 0, 2), (100, 1, 1), (200, 2, 5), (300, 3, 4), (50, 0, 5), (100, 6, 6)]
            .map(|(bytes, first, last)| Lifetime { bytes, first, last });
        let offsets = pack(&blocks);
        for (i, a) in blocks.iter().enumerate() {
            for (j, b) in blocks.iter().enumerate().take(i) {
                let meet = a.first <= b.last && b.first <= a.last;
                let overlap = offsets[i] < offsets[j] + b.bytes && offsets[j] < offsets[i] + a.bytes;
                assert!(!(meet && overlap), "blocks {i} and {j} at {offsets:?}");
            }
        }
        assert_eq!(offsets.iter().zip(&blocks).map(|(o, b)| o + b.bytes).max(), Some(550), "as tight as can be");
    }

    #[test]
    fn every_block_is_at_the_lowest_free_place() {
        assert!(pack(&[]).is_empty());
        for case in 0..400 {
            let numbers = Philox::named(case, "blocks").uniforms(3 * 120);
            let moments = 1 + case as usize % 50;
            let sizes = if case % 2 == 0 { 5.0 } else { 90.0 };
            let lifetime = |n: &[f64]| {
                let (first, length) = ((n[0] * moments as f64) as usize, n[1] * n[1] * moments as f64);
                let last = (first + length as usize).min(moments - 1);
                Lifetime { bytes: (n[2] * sizes) as usize, first, last }
            };
            let blocks: Vec<Lifetime> = numbers.chunks_exact(3).map(lifetime).collect();
            assert_eq!(pack(&blocks), naively_packed(&blocks), "case {case}");
        }
    }
}
