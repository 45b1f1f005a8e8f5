//! Every op: its reference, its gradients and its kernels.

mod batch_norm;
mod concat;
mod conv2d;
mod conv2d_fused;
mod cross_entropy;
mod linear;
mod norm;
mod norm_gradient;
mod pool;
mod pool_fused;
mod relu;
mod shortcut;
mod sum;
