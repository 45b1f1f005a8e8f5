//! The launches: kernels, grids and parameters.

use super::{INTERVAL, LEAST, STATE};
use crate::control::{are_apart, holds};
use crate::device::table::{kernels, only};
use crate::device::{Cost, Launch, View};
use crate::ops::params::params;
use crate::ops::strips::THREADS;

/// Elements per thread and pass.
const PER_THREAD: usize = 4;
/// Blocks that fill a large GPU; each writes one flag.
const MOST_BLOCKS: usize = 1024;
/// Bytes of shared memory: one number per thread.
const SHARED: u32 = THREADS * 4;

params! {
    /// `LossScaleCheck` of kernels/control/loss_scale.cu.
    struct LossScaleCheck { grad: u64, flags: u64, len: i64 }

    /// `LossScaleDecide` of kernels/control/loss_scale.cu.
    struct LossScaleDecide {
        flags: u64, loss: u64, state: u64,
        flag_count: u32, interval: u32, least: f32, unused: u32,
    }
}

kernels! {
    CHECK: LossScaleCheck = "loss_scale_check_*", SHARED;
    DECIDE: LossScaleDecide = "loss_scale_decide_*", SHARED;
}

/// The buffers that the launches read and write.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a> {
    /// The f32 gradients of all parameters.
    pub grad: &'a View,
    /// [`flags`] 4-byte flags, written and read in each run.
    pub flags: &'a View,
    /// `[1]`, f32: the loss. If it is not finite, the step is skipped. `None`: only the gradients decide.
    pub loss: Option<&'a View>,
    /// [`STATE`] f32 numbers, see [`State::to_memory`](super::State::to_memory). They live on between runs.
    pub state: &'a View,
    /// The number of gradients, a multiple of 4.
    pub len: usize,
}

/// The number of flags for `len` gradients: one per block.
pub fn flags(len: usize) -> usize {
    len.div_ceil(PER_THREAD * THREADS as usize).clamp(1, MOST_BLOCKS)
}

/// Checks that the gradients are finite, then decides about the step. Both run before the optimizer, in this order.
///
/// # Panics
/// If a buffer is too small or not aligned to 4 bytes (gradients: 16), the flags or the state share memory with another
/// buffer, or `len` is 0 or no multiple of 4.
pub fn launches(buffers: &Buffers<'_>) -> [Launch; 2] {
    let Buffers { grad, flags: flags_view, loss, state, len } = *buffers;
    let blocks = flags(len);
    assert!(len > 0 && len.is_multiple_of(PER_THREAD), "loss scale: {len} gradients, expected a multiple of 4");
    assert!(grad.bytes() >= 4 * len && grad.address().is_multiple_of(16), "loss scale: less than {len} gradients");
    assert!(holds(flags_view, blocks), "loss scale: less than {blocks} flags, or not aligned");
    assert!(holds(state, STATE), "loss scale: a state of less than {STATE} numbers, or not aligned");
    assert!(loss.is_none_or(|v| holds(v, 1)), "loss scale: a loss of less than 4 bytes, or not aligned");
    let read: Vec<&View> = loss.into_iter().chain([grad]).collect();
    assert!(are_apart(&[flags_view, state], &read), "loss scale: flags or a state that share memory");
    let params = LossScaleCheck { grad: grad.address(), flags: flags_view.address(), len: len as i64 };
    let written = 4 * blocks as u64;
    let cost = Cost { flops: 0, bytes_read: 4 * len as u64, bytes_written: written };
    let views = vec![grad.clone(), flags_view.clone()];
    // SAFETY: the views hold `len` aligned gradients and a flag per block, as asserted above.
    let check = unsafe { Launch::new(only(&CHECK), [blocks as u32, 1, 1], &params, cost, views) };

    let params = LossScaleDecide {
        flags: flags_view.address(),
        loss: loss.map_or(0, View::address),
        state: state.address(),
        flag_count: blocks as u32,
        interval: INTERVAL,
        least: LEAST as f32,
        unused: 0,
    };
    let bytes = 4 * STATE as u64;
    let cost = Cost { flops: 0, bytes_read: written + bytes + 4 * u64::from(loss.is_some()), bytes_written: bytes };
    let mut views = vec![flags_view.clone(), state.clone()];
    views.extend(loss.cloned());
    // SAFETY: the views hold a flag per block, the state and the loss, if any, as asserted above.
    let decide = unsafe { Launch::new(only(&DECIDE), [1, 1, 1], &params, cost, views) };
    [check, decide]
}
