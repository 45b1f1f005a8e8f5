//! Stochastic gradient descent with momentum, over all parameters of a program in one launch.
//!
//! All parameters lie in one flat f32 tensor, those that decay first. Torch's convention:
//!
//! ```text
//! g = grad / grad_scale + decay * param            decay only below `decay_end`
//! v = momentum v + (1 - dampening) g               (the first step and without momentum: v = g)
//! param -= lr (nesterov ? g + momentum v : v)
//! ```
//!
//! What has no weight is not read: the velocity without momentum, whatever the dampening, and the parameter without
//! decay.
//! `grad_scale` is what the gradients were multiplied by; a program takes it from its graph's loss.

mod launch;
mod reference;

pub(crate) use launch::KERNELS;
pub use launch::{launch, Buffers};
pub use reference::{step, StepState};

use crate::{Error, Result};

/// The constants of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// The share of the velocity that is kept.
    pub momentum: f64,
    /// The share of the new gradient that is left out of the velocity; without momentum it changes nothing.
    pub dampening: f64,
    /// Whether the step looks ahead along the velocity.
    pub nesterov: bool,
    /// The pull of decaying parameters towards 0.
    pub weight_decay: f64,
}

/// A checked [`Spec`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    spec: Spec,
}

impl Sgd {
    /// Checks `spec`: momentum and dampening in 0..=1, decay not negative, Nesterov only with momentum and without
    /// dampening.
    pub fn new(spec: Spec) -> Result<Self> {
        let unit = 0.0..=1.0;
        for (what, value) in [("momentum", spec.momentum), ("dampening", spec.dampening)] {
            if !unit.contains(&value) {
                return Err(Error::invalid(what, format!("{value}, expected 0..=1")));
            }
        }
        if !(spec.weight_decay >= 0.0 && spec.weight_decay.is_finite()) {
            return Err(Error::invalid("weight decay", format!("{}, expected at least 0", spec.weight_decay)));
        }
        if spec.nesterov && (spec.momentum == 0.0 || spec.dampening != 0.0) {
            return Err(Error::invalid("sgd", "Nesterov needs a momentum and no dampening"));
        }
        Ok(Self { spec })
    }

    /// Whether a step reads the velocities of the one before: only then is there anything to keep between runs.
    pub fn has_velocity(&self) -> bool {
        self.spec.momentum != 0.0
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }
}
