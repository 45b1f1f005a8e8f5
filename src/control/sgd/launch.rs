//! The launch: kernel, grid and parameters.

use super::Sgd;
use crate::control::loss_scale::STATE;
use crate::control::{are_apart, holds};
use crate::device::table::{entry, kernels};
use crate::device::{Cost, Launch, Target, View};
use crate::ops::params::params;
use crate::ops::strips::THREADS;
use crate::tensor::DType;

/// Elements per thread.
const PER_THREAD: usize = 4;

params! {
    /// `SgdStep` of kernels/control/sgd.cu.
    struct SgdStep {
        param: u64, grad: u64, velocity: u64, copy: u64, control: u64, loss_scale: u64, loss: u64,
        len: i64, decay_end: i64,
        momentum: f32, keep: f32, decay: f32, scale: f32, nesterov: u32, plain: u32,
    }
}

kernels! {
    STEP: SgdStep = "sgd_step_*", 0;
}

/// The flat tensors of a program, with one element per parameter.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a> {
    /// The f32 masters.
    pub param: &'a View,
    /// The f32 gradients.
    pub grad: &'a View,
    /// The f32 velocities.
    pub velocity: &'a View,
    /// The working copy in f16 or bf16, if the program has one.
    pub copy: Option<&'a View>,
    /// `[2]`, f32: the learning rate, and 1 at the first step, else 0.
    pub control: &'a View,
    /// The state of [`loss_scale`](crate::control::loss_scale), if the program has one: it can skip the step, marks the
    /// first step in place of `control`, and is another divisor of the gradients.
    pub loss_scale: Option<&'a View>,
    /// `[1]`, f32: the loss. If it is not finite, the step is skipped. `None` takes every step.
    pub loss: Option<&'a View>,
    /// The fixed factor of the gradients.
    pub grad_scale: f64,
    /// The number of elements, a multiple of 4.
    pub len: usize,
    /// Elements below this index decay.
    pub decay_end: usize,
}

/// The launch of a step.
///
/// # Panics
/// If a buffer is too small or not aligned to 16 bytes (the loss: 4), a buffer that the step writes shares memory with
/// another, `len` is 0 or no multiple of 4, or there is a working copy and the dtype is neither f16 nor bf16.
pub fn launch(sgd: &Sgd, target: Target, buffers: &Buffers<'_>) -> Launch {
    let Buffers { param, grad, velocity, copy, control, loss_scale, loss, grad_scale, len, decay_end } = *buffers;
    assert!(len > 0 && len.is_multiple_of(PER_THREAD), "sgd: {len} elements, expected a multiple of 4");
    let fits = |view: &View, bytes: usize| view.bytes() >= bytes && view.address().is_multiple_of(16);
    assert!([param, grad, velocity].iter().all(|v| fits(v, len * 4)), "sgd: a buffer of less than {len} elements");
    assert!(copy.is_none_or(|v| fits(v, len * 2)), "sgd: a working copy of less than {len} elements");
    assert!(fits(control, 8), "sgd: a control of less than 2 elements");
    assert!(loss_scale.is_none_or(|v| fits(v, 4 * STATE)), "sgd: a loss scale of less than {STATE} numbers");
    assert!(loss.is_none_or(|v| holds(v, 1)), "sgd: a loss of less than 4 bytes, or not aligned");
    let written: Vec<&View> = [param, velocity].into_iter().chain(copy).collect();
    let read: Vec<&View> = [grad, control].into_iter().chain(loss_scale).chain(loss).collect();
    assert!(are_apart(&written, &read), "sgd: a buffer that it writes shares memory with another");
    assert!(copy.is_none() || target.dtype.bytes() == 2, "sgd: a working copy in {}", target.dtype);
    let dtype = if copy.is_some() { target.dtype } else { DType::F32 };
    let kernel = entry(Target { dtype, ..target }, &STEP).unwrap_or_else(|_| unreachable!("f32, f16 or bf16"));
    let spec = sgd.spec();
    let params = SgdStep {
        param: param.address(),
        grad: grad.address(),
        velocity: velocity.address(),
        copy: copy.map_or(0, View::address),
        control: control.address(),
        loss_scale: loss_scale.map_or(0, View::address),
        loss: loss.map_or(0, View::address),
        len: len as i64,
        // 0 times an infinite parameter would be NaN.
        decay_end: if spec.weight_decay > 0.0 { decay_end as i64 } else { 0 },
        momentum: spec.momentum as f32,
        keep: (1.0 - spec.dampening) as f32,
        decay: spec.weight_decay as f32,
        scale: grad_scale as f32,
        nesterov: spec.nesterov.into(),
        plain: (!sgd.has_velocity()).into(),
    };
    let n = len as u64;
    let cost = Cost {
        flops: 8 * n,
        bytes_read: 12 * n + 8 + 4 * u64::from(loss.is_some()) + 12 * u64::from(loss_scale.is_some()),
        bytes_written: (8 + 2 * u64::from(copy.is_some())) * n,
    };
    let views = written.into_iter().chain(read).cloned().collect();
    let blocks = len.div_ceil(PER_THREAD * THREADS as usize);
    // SAFETY: the views hold `len` aligned elements each, two of the control, the loss and the loss scale's state, as
    // asserted above; the working copy, the loss and the loss scale may be null.
    unsafe { Launch::new(kernel, [blocks as u32, 1, 1], &params, cost, views) }
}
