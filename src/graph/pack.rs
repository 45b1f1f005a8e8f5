//! Places for blocks of memory that are in use for a while: largest first, each at the lowest place that is free during
//! its whole lifetime.
//!
//! A tree over time finds what is taken: its leaves are the moments, and each of its nodes knows which places are taken
//! at some moment of its span, and which are taken by blocks that last all of it. A lifetime is the union of O(log n)
//! spans, so a block looks at O(log n) sets of places. Places side by side are kept as one, which leaves few in a set
//! where few sizes occur, as in deep networks: time and memory then grow with n log n, at worst with n^2.

use std::collections::BTreeMap;

/// Bytes that are in use from moment `first` to moment `last`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime {
    pub bytes: usize,
    pub first: usize,
    pub last: usize,
}

/// An offset for each block such that blocks in use at the same moment do not overlap.
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

/// Places that do not touch: where each begins, and its end.
type Places = BTreeMap<usize, usize>;

/// What is taken, by time.
struct Taken {
    leaves: usize,
    /// For each node what is taken at some moment of its span.
    sometimes: Vec<Places>,
    /// For each node what is taken by blocks whose lifetime it is a part of.
    always: Vec<Places>,
}

impl Taken {
    fn new(moments: usize) -> Self {
        let leaves = moments.next_power_of_two();
        let none = || vec![Places::new(); 2 * leaves];
        Self { leaves, sometimes: none(), always: none() }
    }

    /// The nodes whose spans, side by side, are the moments of `block`.
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

    /// The nodes above `nodes`, each once.
    fn above(nodes: &[usize]) -> Vec<usize> {
        let mut above: Vec<usize> = nodes
            .iter()
            .flat_map(|&node| std::iter::successors(Some(node / 2), |n| Some(n / 2)).take_while(|&n| n > 0))
            .collect();
        above.sort_unstable();
        above.dedup();
        above
    }

    /// Takes the lowest place for `block` that is free during its lifetime.
    fn place(&mut self, block: &Lifetime) -> usize {
        if block.bytes == 0 {
            return 0;
        }
        let spans = self.spans(block);
        let above = Self::above(&spans);
        let in_the_way: Vec<&Places> = spans
            .iter()
            .map(|&node| &self.sometimes[node])
            .chain(above.iter().map(|&node| &self.always[node]))
            .filter(|places| !places.is_empty())
            .collect();
        let mut offset = 0;
        // A place that `block` would meet at `offset` it would meet at every offset up to that place's end.
        while let Some(end) = in_the_way.iter().find_map(|places| met(places, offset, block.bytes)) {
            offset = end;
        }
        let end = offset + block.bytes;
        spans.iter().for_each(|&node| add(&mut self.always[node], offset, end));
        spans.iter().chain(&above).for_each(|&node| add(&mut self.sometimes[node], offset, end));
        offset
    }
}

/// The end of the last of `places` that `bytes` bytes at `offset` meet.
fn met(places: &Places, offset: usize, bytes: usize) -> Option<usize> {
    places.range(..offset + bytes).next_back().map(|(_, &end)| end).filter(|&end| end > offset)
}

/// Adds a place, together with those that it touches.
fn add(places: &mut Places, mut start: usize, mut end: usize) {
    while let Some((&other, &other_end)) = places.range(..=end).next_back() {
        if other_end < start {
            break;
        }
        places.remove(&other);
        (start, end) = (start.min(other), end.max(other_end));
    }
    places.insert(start, end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::philox::Philox;

    fn blocks(spans: &[(usize, usize, usize)]) -> Vec<Lifetime> {
        spans.iter().map(|&(bytes, first, last)| Lifetime { bytes, first, last }).collect()
    }

    /// The same by looking at every block that was placed before.
    fn by_looking_at_all(blocks: &[Lifetime]) -> Vec<usize> {
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
        let blocks = blocks(&[(300, 0, 2), (100, 1, 1), (200, 2, 5), (300, 3, 4), (50, 0, 5), (100, 6, 6)]);
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
            let spans: Vec<_> = numbers
                .chunks_exact(3)
                .map(|n| {
                    let (first, length) = ((n[0] * moments as f64) as usize, n[1] * n[1] * moments as f64);
                    let sizes = if case % 2 == 0 { 5 } else { 90 };
                    ((n[2] * sizes as f64) as usize, first, (first + length as usize).min(moments - 1))
                })
                .collect();
            let blocks = blocks(&spans);
            assert_eq!(pack(&blocks), by_looking_at_all(&blocks), "case {case}");
        }
    }
}
