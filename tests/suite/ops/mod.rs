//! Every op: its reference, its gradients and its kernels.

mod add;
mod batch_norm;
mod block_end;
mod conv2d;
mod cross_entropy;
mod linear;
mod norm;
mod norm_gradient;
mod norm_pool;
mod pool;
mod relu;
mod sgd;
mod shortcut;
