//! Every op: its reference, its gradients and its kernels.

mod batch_norm;
mod concat;
mod conv2d;
mod conv2d_fused;
mod cross_entropy;
mod linear;
mod norm;
mod norm_gradient;
mod norm_pool;
mod pool;
mod relu;
mod shortcut;
mod sum;
