//! The loss scale of f16 training: a factor of the gradients that keeps them representable in f16.
//!
//! The rule and its constants are those of `torch.amp.GradScaler`. After each backward pass:
//!
//! ```text
//! a gradient or the loss is infinite or NaN: the step is skipped, scale = max(scale / 2, 1), good = 0
//! else: the step is taken, good = good + 1; at good = 2,000: scale = 2 scale if that is finite, good = 0
//! ```
//!
//! The state is in device memory and lives on between runs, so a recorded step is replayed without the host. The scale
//! is a power of two: the bits of gradients that neither overflow nor underflow do not depend on it. Unlike torch's it
//! is at least 1, because a smaller one could only lose gradients that f16 holds.
//!
//! ```
//! use residuum::control::loss_scale::{LossScale, State};
//!
//! let state = State::new(LossScale { scale: 8.0, good_steps: 1_999 }, false);
//! assert_eq!(state.decide(true).next, LossScale { scale: 16.0, good_steps: 0 });
//! let skipped = state.decide(false);
//! assert!(skipped.skip && skipped.next == LossScale { scale: 4.0, good_steps: 0 });
//! ```

mod launch;

pub(crate) use launch::KERNELS;
pub use launch::{flags, launches, Buffers};

use crate::device::threads;
use crate::tensor::Real;
use crate::{Error, Result};

/// The scale of the first step (`init_scale`).
pub const INITIAL: f64 = 65_536.0;
/// Good steps in a row after which the scale doubles (`growth_interval`); `growth_factor` is 2, `backoff_factor` 1/2.
pub const INTERVAL: u32 = 2_000;
/// The least scale.
pub const LEAST: f64 = 1.0;

/// Elements of the state in device memory.
pub const STATE: usize = 6;
/// The index of the scale in the state; `kernels/control/state.cuh` has the others.
pub(crate) const SCALE: usize = 0;
/// The index of the number that is 1 until a step has been taken.
pub(crate) const FRESH: usize = 2;

/// The loss scale between two steps, as checkpoints keep it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// The factor of the next step's gradients: a power of two, at least 1.
    pub scale: f64,
    /// Good steps since the scale last changed, below [`INTERVAL`].
    pub good_steps: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: INITIAL, good_steps: 0 }
    }
}

impl LossScale {
    /// Fails if no run can have this scale: it is no power of two in 1..=2^127, or has [`INTERVAL`] or more good steps.
    pub fn check(&self) -> Result<()> {
        let power = self.scale.to_bits() & ((1 << 52) - 1) == 0;
        let valid = power && (LEAST..=2f64.powi(127)).contains(&self.scale);
        let problem = || format!("{}, expected a power of two from 1 to 2^127", self.scale);
        Error::check(valid, "loss scale", problem)?;
        let problem = || format!("{} good steps, expected less than {INTERVAL}", self.good_steps);
        Error::check(self.good_steps < INTERVAL, "loss scale", problem)
    }
}

/// The state: the scale, and the decision about the last run's step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// The scale of the next run.
    pub next: LossScale,
    /// True until a step has been taken: the velocities hold nothing.
    pub fresh: bool,
    /// The scale of the last run's gradients.
    pub used: f64,
    /// True if the last run's step was skipped.
    pub skip: bool,
    /// True if the last run's step was the first.
    pub first: bool,
}

impl State {
    /// The state before the first run.
    pub fn new(next: LossScale, fresh: bool) -> Self {
        Self { next, fresh, used: next.scale, skip: false, first: fresh }
    }

    /// Reads the [`STATE`] numbers in `memory`.
    pub fn from_memory<T: Real>(memory: &[T]) -> Self {
        let [scale, good, fresh, used, skip, first] = std::array::from_fn(|i| memory[i].to_f64());
        let next = LossScale { scale, good_steps: good as u32 };
        Self { next, fresh: fresh != 0.0, used, skip: skip != 0.0, first: first != 0.0 }
    }

    /// The numbers for device memory.
    pub fn to_memory(self) -> [f64; STATE] {
        let flag = |on: bool| f64::from(u8::from(on));
        let LossScale { scale, good_steps } = self.next;
        [scale, f64::from(good_steps), flag(self.fresh), self.used, flag(self.skip), flag(self.first)]
    }

    /// The state after a run; `finite` is true if the loss and all gradients are finite.
    pub fn decide(self, finite: bool) -> Self {
        let LossScale { scale, good_steps } = self.next;
        let decided = Self { used: scale, skip: !finite, first: self.fresh, ..self };
        if !finite {
            return Self { next: LossScale { scale: (scale / 2.0).max(LEAST), good_steps: 0 }, ..decided };
        }
        let grows = good_steps + 1 >= INTERVAL;
        let doubles = grows && ((2.0 * scale) as f32).is_finite();
        let next = LossScale {
            scale: if doubles { 2.0 * scale } else { scale },
            good_steps: if grows { 0 } else { good_steps + 1 },
        };
        Self { next, fresh: false, ..decided }
    }
}

/// True if every gradient is finite.
pub fn is_finite<T: Real>(grad: &[T]) -> bool {
    use rayon::prelude::*;
    /// Elements per task.
    const RUN: usize = 1 << 15;
    threads::ensure();
    grad.par_chunks(RUN).all(|run| run.iter().all(|g| g.to_f64().is_finite()))
}
