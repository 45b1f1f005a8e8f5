//! Every op: its reference, its gradients and its kernels.

mod add;
mod batch_norm;
mod conv2d;
mod cross_entropy;
mod linear;
mod norm;
mod norm_conv;
mod pool;
mod relu;
mod sgd;
mod shortcut;
