//! The loss scale of f16 training: what gradients are multiplied by on their way, so that f16 holds them.
//!
//! The rule and its constants are those of `torch.amp.GradScaler`. After each backward pass:
//!
//! ```text
//! a gradient or the loss is infinite or no number: the step is skipped, scale = max(scale / 2, 1), good = 0
//! else:                                the step is taken,   good = good + 1;
//!                                      good = 2,000: scale = 2 scale where that is finite, good = 0
//! ```
//!
//! All of it happens on the device, in memory that lives on between runs, so a captured step needs no host. The scale
//! is a power of two: gradients that neither overflow nor underflow have the same bits under every scale. Unlike
//! torch's it stays at or above 1, below which it could only lose what f16 holds.

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

/// The elements of the state in device memory.
pub const STATE: usize = 6;
/// The place of the scale in it; `kernels/control/loss_scale.cu` names the others.
pub(crate) const SCALE: usize = 0;
/// The place of the number that is 1 until a step has been taken.
pub(crate) const FRESH: usize = 2;

/// The loss scale between two steps: what a resumed run goes on from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// What the next step's gradients are multiplied by: a power of two, at least 1.
    pub scale: f64,
    /// Good steps in a row since it last moved, below [`INTERVAL`].
    pub good_steps: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: INITIAL, good_steps: 0 }
    }
}

impl LossScale {
    /// Fails where this cannot be the scale of any run: a scale that is no power of two in 1..=2^127, or [`INTERVAL`]
    /// good steps and more.
    pub fn check(&self) -> Result<()> {
        let power = self.scale.to_bits() & ((1 << 52) - 1) == 0;
        if !(power && (LEAST..=2f64.powi(127)).contains(&self.scale)) {
            let problem = format!("{}, expected a power of two from 1 to 2^127", self.scale);
            return Err(Error::invalid("loss scale", problem));
        }
        if self.good_steps >= INTERVAL {
            let problem = format!("{} good steps, expected less than {INTERVAL}", self.good_steps);
            return Err(Error::invalid("loss scale", problem));
        }
        Ok(())
    }
}

/// The whole state: the scale, and what was decided about the last run's step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// The scale of the next run.
    pub next: LossScale,
    /// Whether no step has been taken yet: the velocities hold nothing.
    pub fresh: bool,
    /// What the last run's gradients were multiplied by.
    pub used: f64,
    /// Whether the last run's step was skipped.
    pub skip: bool,
    /// Whether the last run's step was the first.
    pub first: bool,
}

impl State {
    /// Before the first run.
    pub fn new(next: LossScale, fresh: bool) -> Self {
        Self { next, fresh, used: next.scale, skip: false, first: fresh }
    }

    /// As it lies in memory: [`STATE`] numbers.
    pub fn from_memory<T: Real>(memory: &[T]) -> Self {
        let [scale, good, fresh, used, skip, first] = std::array::from_fn(|i| memory[i].to_f64());
        let next = LossScale { scale, good_steps: good as u32 };
        Self { next, fresh: fresh != 0.0, used, skip: skip != 0.0, first: first != 0.0 }
    }

    /// The numbers that lie in memory.
    pub fn to_memory(self) -> [f64; STATE] {
        let flag = |on: bool| f64::from(u8::from(on));
        let LossScale { scale, good_steps } = self.next;
        [scale, f64::from(good_steps), flag(self.fresh), self.used, flag(self.skip), flag(self.first)]
    }

    /// After a run whose loss and gradients are all finite, or not.
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

/// Whether every gradient is a finite number.
pub fn is_finite<T: Real>(grad: &[T]) -> bool {
    use rayon::prelude::*;
    /// Elements that one thread looks at at a time.
    const RUN: usize = 1 << 15;
    threads::ensure();
    grad.par_chunks(RUN).all(|run| run.iter().all(|g| g.to_f64().is_finite()))
}
