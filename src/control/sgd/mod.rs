//! Stochastic gradient descent with momentum, for all parameters of a program in one launch.
//!
//! The parameters are one flat f32 tensor; the decaying ones come first. In torch's convention:
//!
//! ```text
//! g = grad / grad_scale + decay * param            decay only below `decay_end`
//! v = momentum v + (1 - dampening) g               (the first step and without momentum: v = g)
//! param -= lr (nesterov ? g + momentum v : v)
//! ```
//!
//! A term of weight 0 is not read: the velocity without momentum, whatever the dampening, and for g the parameter
//! without decay. `grad_scale` is the factor of the gradients; a program takes it from its graph's loss.
//!
//! ```
//! use residuum::control::sgd::{step, Sgd, Spec, StepState};
//!
//! let sgd = Sgd::new(Spec { momentum: 0.5, dampening: 0.0, nesterov: false, weight_decay: 0.0 })?;
//! let (mut param, mut velocity) = ([1.0f64], [4.0]);
//! step(&sgd, StepState { lr: 0.25, grad_scale: 1.0, first: false }, 0, &mut param, &[2.0], &mut velocity);
//! assert_eq!((param, velocity), ([0.0], [4.0])); // v = 0.5 * 4 + 2, param -= 0.25 v
//! # Ok::<(), residuum::Error>(())
//! ```

mod launch;
mod reference;

pub(crate) use launch::KERNELS;
pub use launch::{launch, Buffers};
pub use reference::{step, StepState};

use crate::{Error, Result};

/// The constants of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// Momentum, in 0..=1.
    pub momentum: f64,
    /// Dampening of the gradient in the velocity, in 0..=1; has no effect without momentum.
    pub dampening: f64,
    /// True for Nesterov momentum.
    pub nesterov: bool,
    /// Weight decay (L2), at least 0.
    pub weight_decay: f64,
}

/// A checked [`Spec`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    spec: Spec,
}

impl Sgd {
    /// Fails if momentum or dampening is not in 0..=1, weight decay is negative or not finite, or Nesterov is used
    /// without momentum or with dampening.
    pub fn new(spec: Spec) -> Result<Self> {
        let Spec { momentum, dampening, nesterov, weight_decay } = spec;
        for (what, value) in [("momentum", momentum), ("dampening", dampening)] {
            Error::check((0.0..=1.0).contains(&value), what, || format!("{value}, expected 0..=1"))?;
        }
        let decays = weight_decay >= 0.0 && weight_decay.is_finite();
        Error::check(decays, "weight decay", || format!("{weight_decay}, expected at least 0"))?;
        let possible = !nesterov || (momentum != 0.0 && dampening == 0.0);
        Error::check(possible, "sgd", || "Nesterov needs a momentum and no dampening".into())?;
        Ok(Self { spec })
    }

    /// True if a step reads the velocities of the last one, so that they must be kept between runs.
    pub fn has_velocity(&self) -> bool {
        self.spec.momentum != 0.0
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }
}
