//! Which kernels, on what grid.
use crate::device::Kernel;
pub(crate) const KERNELS: &[&Kernel] = &[];
use super::Sgd;
use crate::device::{Launch, Target, View};

/// The flat tensors of a program, one element for each parameter element.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a> {
    /// The f32 masters.
    pub param: &'a View,
    /// The f32 gradients.
    pub grad: &'a View,
    /// The f32 velocities.
    pub velocity: &'a View,
    /// The working copy in a 16-bit storage type, where the program has one.
    pub shadow: Option<&'a View>,
    /// `[learning rate, 1 at the first step else 0]`, f32, read by the kernel.
    pub control: &'a View,
    /// Elements; a multiple of 4.
    pub len: usize,
    /// The elements below this index decay.
    pub decay_end: usize,
}

/// The one launch of a step.
pub fn launch(_sgd: &Sgd, _target: Target, _buffers: &Buffers<'_>) -> Launch {
    unimplemented!()
}
