//! Stochastic gradient descent with momentum, over all parameters of a program in one launch.
//!
//! All parameters lie in one flat f32 tensor, those that decay first. Torch's convention:
//!
//! ```text
//! g = grad / grad_scale + decay * param            decay only below `decay_end`
//! v = momentum v + (1 - dampening) g               (the first step: v = g)
//! param -= lr (nesterov ? g + momentum v : v)
//! ```

mod launch;
mod reference;

pub(crate) use launch::KERNELS;
pub use launch::{launch, Buffers};
pub use reference::step;

use crate::{Error, Result};

/// The constants of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// The share of the velocity that is kept.
    pub momentum: f64,
    /// The share of the new gradient that is left out of the velocity.
    pub dampening: f64,
    /// Whether the step looks ahead along the velocity.
    pub nesterov: bool,
    /// The pull of decaying parameters towards 0.
    pub weight_decay: f64,
    /// What the gradients were multiplied by, a moving [`loss_scale`](crate::ops::loss_scale) aside.
    pub grad_scale: f64,
}

/// A checked [`Spec`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    spec: Spec,
}

impl Sgd {
    /// Checks `spec`: momentum and dampening in 0..=1, decay and scale not negative, Nesterov only with momentum and
    /// without dampening.
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
        if !(spec.grad_scale > 0.0 && spec.grad_scale.is_finite()) {
            return Err(Error::invalid("gradient scale", format!("{}, expected above 0", spec.grad_scale)));
        }
        if spec.nesterov && (spec.momentum == 0.0 || spec.dampening != 0.0) {
            return Err(Error::invalid("sgd", "Nesterov needs a momentum and no dampening"));
        }
        Ok(Self { spec })
    }

    /// The same step on gradients that were multiplied by `scale` as well, positive and finite.
    pub(crate) fn scaled(self, scale: f64) -> Self {
        Self { spec: Spec { grad_scale: self.spec.grad_scale * scale, ..self.spec } }
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }
}
