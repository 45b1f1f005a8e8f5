//! Kernels that are not ops.

mod gate;
mod loss_scale;
mod sgd;
