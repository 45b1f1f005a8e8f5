//! The kernels of a run besides its ops.

mod gate;
mod loss_scale;
mod sgd;
