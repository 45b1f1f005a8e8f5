//! Every op: its reference, its gradients and its kernels.

mod add;
mod batch_norm;
mod conv2d;
mod cross_entropy;
mod linear;
mod loss_scale;
mod pool;
mod relu;
mod sgd;
mod shortcut;
