//! What a run does besides its ops.

mod gate;
mod loss_scale;
mod sgd;
