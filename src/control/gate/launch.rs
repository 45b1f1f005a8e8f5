//! The launches: kernels, grids and parameters.

use super::{CONTROL_WORDS, PURPOSE, UNIT};
use crate::control::{are_apart, holds};
use crate::device::table::{kernels, only};
use crate::device::{Cost, Launch, View};
use crate::ops::params::params;
use crate::ops::strips::THREADS;

/// The most blocks that clear one range.
const MOST_CHUNKS: usize = 64;

params! {
    /// `Draw` of kernels/control/gate/gate.cu.
    struct Draw {
        control: u64, thresholds: u64, gates: u64, closed: u64, purpose: u64,
        blocks: u32, unused: u32,
    }

    /// `Clear` of kernels/control/gate/gate.cu.
    struct Clear { gates: u64, ranges: u64, grad: u64, units: u32, unused: u32 }
}

kernels! {
    DRAW: Draw = "gate_draw_*", 0;
    CLEAR: Clear = "gate_clear_*", 0;
}

/// The buffers of a program of L residual blocks.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a> {
    /// [`CONTROL_WORDS`] words; the draw advances the step.
    pub control: &'a View,
    /// L words, see [`super::thresholds`].
    pub thresholds: &'a View,
    /// L gates, f32: 1 is open, 0 closed.
    pub gates: &'a View,
    /// L inverse gates, f32.
    pub closed: &'a View,
    /// The flat f32 gradients, and L pairs of words: begin and end of each block's gradients in units of [`UNIT`]
    /// elements. `None` without a backward pass.
    pub grad: Option<(&'a View, &'a View)>,
    /// L.
    pub blocks: usize,
    /// Elements of the longest range.
    pub longest: usize,
}

/// The launches that begin a step: they draw the gates and clear the gradients, if any, of the dropped blocks.
///
/// # Panics
/// If a buffer is too small or not aligned to 4 bytes (gradients: 16), a buffer that a launch writes shares memory with
/// another, or `blocks` is not in 1..=65,535.
pub fn launches(buffers: &Buffers<'_>) -> Vec<Launch> {
    let Buffers { control, thresholds, gates, closed, grad, blocks, longest } = *buffers;
    assert!((1..=65_535).contains(&blocks), "gates: {blocks} blocks, expected 1 to 65535");
    assert!(holds(control, CONTROL_WORDS), "gates: a small buffer");
    assert!([thresholds, gates, closed].iter().all(|view| holds(view, blocks)), "gates: a small buffer");
    let (grads, ranges) = grad.unzip();
    let written: Vec<&View> = [control, gates, closed].into_iter().chain(grads).collect();
    let read: Vec<&View> = [thresholds].into_iter().chain(ranges).collect();
    assert!(are_apart(&written, &read), "gates: a buffer that they write shares memory with another");
    let words = |n: usize| 4 * n as u64;
    let params = Draw {
        control: control.address(),
        thresholds: thresholds.address(),
        gates: gates.address(),
        closed: closed.address(),
        purpose: PURPOSE,
        blocks: blocks as u32,
        unused: 0,
    };
    let cost = Cost { flops: 0, bytes_read: words(CONTROL_WORDS + blocks), bytes_written: words(1 + 2 * blocks) };
    let views = [control, thresholds, gates, closed].map(View::clone).to_vec();
    // SAFETY: the views hold the control and, for each block, a threshold, a gate and its inverse, as asserted above.
    let mut all = vec![unsafe { Launch::new(only(&DRAW), [1, 1, 1], &params, cost, views) }];
    if let Some((grad, ranges)) = grad {
        assert!(holds(ranges, 2 * blocks) && grad.address().is_multiple_of(16), "gates: a small buffer of ranges");
        assert!(grad.bytes() >= 4 * longest, "gates: a range beyond the gradients");
        let units = (grad.bytes() / (4 * UNIT)).min(u32::MAX as usize) as u32;
        let [gates_at, ranges_at, grad_at] = [gates, ranges, grad].map(View::address);
        let params = Clear { gates: gates_at, ranges: ranges_at, grad: grad_at, units, unused: 0 };
        // The cost assumes open gates, as for every gated launch.
        let cost = Cost { flops: 0, bytes_read: words(blocks), bytes_written: 0 };
        let chunks = longest.div_ceil(UNIT * THREADS as usize).clamp(1, MOST_CHUNKS);
        let views = [gates, ranges, grad].map(View::clone).to_vec();
        // SAFETY: the views hold a gate and a range for each block, as asserted above, and the kernel writes no unit of
        // `grad` from `units` on.
        all.push(unsafe { Launch::new(only(&CLEAR), [chunks as u32, blocks as u32, 1], &params, cost, views) });
    }
    all
}
