//! Random numbers for the data: a function of seed, purpose, epoch and image, and so independent of threads.

use crate::tensor::philox::Philox;

/// The purpose of a stream; different purposes have independent streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The order of the images in an epoch.
    Shuffle = 1,
    /// The crop and the flip of one image in one epoch.
    Augment = 2,
}

/// The random numbers of one (seed, purpose, epoch, index).
#[derive(Clone, Debug)]
pub struct Stream {
    sequence: Philox,
    block: u64,
    words: [u32; 4],
    used: usize,
}

impl Stream {
    /// The stream of `purpose` for image `index` in `epoch` under `seed`.
    pub fn new(seed: u64, purpose: Purpose, epoch: u32, index: u32) -> Self {
        let sequence = Philox::new(seed, (purpose as u64) << 32 | u64::from(epoch));
        Self { sequence, block: u64::from(index) << 32, words: [0; 4], used: 4 }
    }

    /// The next 32 random bits.
    pub fn bits(&mut self) -> u32 {
        if self.used == 4 {
            self.words = self.sequence.block(self.block);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// An unbiased integer in `0..bound`, 0 if empty: D. Lemire, "Fast random integer generation in an interval", 2019.
    pub fn below(&mut self, bound: u32) -> u32 {
        if bound <= 1 {
            return 0;
        }
        let rejected = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from(self.bits()) * u64::from(bound);
            if product as u32 >= rejected {
                return (product >> 32) as u32;
            }
        }
    }

    /// A random order of `0..len`.
    pub fn permutation(&mut self, len: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..len as u32).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i as u32 + 1) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_stay_below_the_bound_and_reach_all_values() {
        let mut stream = Stream::new(7, Purpose::Augment, 1, 2);
        let mut seen = [0u32; 9];
        for _ in 0..9000 {
            seen[stream.below(9) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (850..1150).contains(&count)), "{seen:?}");
        assert_eq!((stream.below(1), stream.below(0)), (0, 0));
    }

    #[test]
    fn permutations_hold_every_index_once() {
        for len in [0, 1, 2, 1437] {
            let mut order = Stream::new(0, Purpose::Shuffle, 3, 0).permutation(len);
            order.sort_unstable();
            assert!(order.iter().enumerate().all(|(i, &v)| i == v as usize), "length {len}");
        }
    }
}
