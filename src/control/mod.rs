//! What a run does besides its ops: it draws gates, decides the loss scale and takes the optimizer's step.

pub mod gate;
pub mod loss_scale;
pub mod sgd;

use crate::device::Kernel;

/// Every kernel of these.
pub(crate) fn kernels() -> impl Iterator<Item = &'static Kernel> {
    [gate::KERNELS, loss_scale::KERNELS, sgd::KERNELS].into_iter().flatten().copied()
}
