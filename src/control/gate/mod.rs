//! The gates of stochastic depth, one for each residual block and mini-batch (Huang et al. 2016, arXiv:1603.09382).
//!
//! ```text
//! draw   gates[l] = word(seed, step, l) / 2^24 < p_l ? 1 : 0,  closed[l] = 1 - gates[l],  step += 1
//! clear  grad[first_l .. end_l] = 0 where gates[l] = 0
//! ```
//!
//! Both run once per step, before all else. `word` is Philox 4x32-10 with the key `seed` and the counter (block, step,
//! purpose): a gate depends on nothing else, and the host can draw it too. Seed and step are in device memory, and the
//! launch advances the step, so that a recorded step is replayed without the host.
//!
//! ```
//! use residuum::control::gate;
//!
//! let thresholds = gate::thresholds(&[1.0, 0.0])?; // survival probabilities of two blocks
//! assert_eq!(thresholds, [1 << 24, 0]);
//! assert_eq!(gate::draw(&thresholds, 7, 0), [true, false]);
//! # Ok::<(), residuum::Error>(())
//! ```

mod launch;

pub(crate) use launch::KERNELS;
pub use launch::{launches, Buffers};

use crate::tensor::philox::{fnv1a, Philox};
use crate::{Error, Result};

/// Random bits per draw: 2^24 is a probability of 1.
const BITS: u32 = 24;

/// Separates the gates' random numbers from all others.
const PURPOSE: u64 = fnv1a("stochastic depth");

/// Words of the control: 1 to draw gates or 0 to keep them, the step, the two halves of the seed.
pub const CONTROL_WORDS: usize = 4;

/// Elements per unit of the cleared ranges: 16 bytes.
pub const UNIT: usize = 4;

/// The blocks' survival probabilities in units of 2^-24, which every device compares exactly. Fails if one is not in
/// 0..=1.
pub fn thresholds(survival: &[f64]) -> Result<Vec<u32>> {
    let threshold = |(block, &p): (usize, &f64)| {
        let problem = || Error::invalid(format!("survival of block {block}"), format!("{p}, expected 0..=1"));
        (0.0..=1.0).contains(&p).then(|| (p * f64::from(1u32 << BITS)).round() as u32).ok_or_else(problem)
    };
    survival.iter().enumerate().map(threshold).collect()
}

/// The gates of a step as the kernel draws them; true is open.
pub fn draw(thresholds: &[u32], seed: u64, step: u32) -> Vec<bool> {
    let random = Philox::new(seed, PURPOSE);
    let open = |(block, &threshold): (usize, &u32)| {
        let [word, ..] = random.block(u64::from(step) << 32 | block as u64);
        word >> (32 - BITS) < threshold
    };
    thresholds.iter().enumerate().map(open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_open_as_often_as_asked() {
        let survival = [0.0, 0.25, 0.5, 0.9, 1.0];
        let thresholds = thresholds(&survival).expect("probabilities");
        let steps = 40_000;
        let mut open = [0usize; 5];
        let mut both = 0;
        for step in 0..steps {
            let gates = draw(&thresholds, 11, step);
            gates.iter().zip(&mut open).for_each(|(&gate, open)| *open += usize::from(gate));
            both += usize::from(gates[1] && gates[2]);
        }
        assert_eq!((open[0], open[4]), (0, steps as usize), "never and always are exact");
        let n = f64::from(steps);
        // Five standard deviations of a binomial.
        let near = |found: usize, p: f64| (found as f64 / n - p).abs() < 5.0 * (p * (1.0 - p) / n).sqrt();
        assert!((1..4).all(|l| near(open[l], survival[l])), "{open:?}");
        assert!(near(both, 0.125), "blocks are independent: {both}");
    }

    #[test]
    fn gates_depend_on_seed_step_and_block_only() {
        let fair = thresholds(&[0.5; 64]).expect("probabilities");
        let gates = draw(&fair, 3, 7);
        assert_eq!(gates[..10], draw(&fair[..10], 3, 7));
        assert!([(4, 7), (3, 8), (3 | 1 << 32, 7)].iter().all(|&(seed, step)| draw(&fair, seed, step) != gates));
        let shifted = |by: usize| gates[by..].iter().zip(&gates).filter(|(a, b)| a == b).count();
        assert!((1..8).all(|by| shifted(by) < 60 - by), "no block repeats another");
    }

    #[test]
    fn survival_probabilities_are_checked() {
        for p in [-0.1, 1.5, f64::NAN] {
            let message = thresholds(&[0.5, p]).expect_err("refused").to_string();
            assert!(message.contains("block 1"), "{message}");
        }
    }
}
