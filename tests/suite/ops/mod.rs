//! Every op: its reference, its gradients and its kernels.

mod add;
mod batch_norm;
mod block_end;
mod concat;
mod conv2d;
mod cross_entropy;
mod gate;
mod join;
mod linear;
mod loss_scale;
mod norm;
mod norm_conv;
mod norm_gradient;
mod norm_pool;
mod pool;
mod relu;
mod sgd;
mod shortcut;
