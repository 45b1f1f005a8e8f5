//! Which kernels, on what grid.

use super::{CONTROL_WORDS, PURPOSE, UNIT};
use crate::device::table::{kernels, only};
use crate::device::{Cost, Launch, View};

const THREADS: u32 = 256;
/// Blocks that clear one range at most; each goes over it with that stride.
const MOST_CHUNKS: usize = 64;

/// `Draw` of kernels/control/gate/gate.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Draw {
    control: u64,
    thresholds: u64,
    gates: u64,
    closed: u64,
    purpose: u64,
    blocks: u32,
    unused: u32,
}

/// `Clear` of kernels/control/gate/gate.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Clear {
    gates: u64,
    ranges: u64,
    grad: u64,
    units: u32,
    unused: u32,
}

kernels! {
    DRAW: Draw = "gate_draw_*", 0;
    CLEAR: Clear = "gate_clear_*", 0;
}

/// What the gates of a program of L blocks are drawn from, and what they clear.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a> {
    /// [`CONTROL_WORDS`] words, which the draw updates.
    pub control: &'a View,
    /// L words, as [`super::thresholds`] has them.
    pub thresholds: &'a View,
    /// L gates, f32: 1 is open, 0 closed.
    pub gates: &'a View,
    /// Their inverses, for what runs only where a branch does not.
    pub closed: &'a View,
    /// The flat f32 gradients, and L pairs of words that say where each block's begin and end, in units of [`UNIT`]
    /// elements; none where nothing is differentiated.
    pub grad: Option<(&'a View, &'a View)>,
    /// L.
    pub blocks: usize,
    /// The elements of the longest of the blocks' ranges.
    pub longest: usize,
}

/// The launches that begin a step: the draw, and where there are gradients the clearing.
///
/// # Panics
/// If a buffer is too small for `blocks` blocks or not aligned to 4 bytes (gradients: 16), or there are none or more
/// than 65,535 blocks.
pub fn launches(buffers: &Buffers<'_>) -> Vec<Launch> {
    let Buffers { control, thresholds, gates, closed, grad, blocks, longest } = *buffers;
    let fits = |view: &View, words: usize| view.bytes() >= 4 * words && view.address().is_multiple_of(4);
    assert!((1..=65_535).contains(&blocks), "gates: {blocks} blocks, expected 1 to 65535");
    assert!(fits(control, CONTROL_WORDS), "gates: a small buffer");
    assert!([thresholds, gates, closed].iter().all(|view| fits(view, blocks)), "gates: a small buffer");
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
    // SAFETY: the control, a threshold, a gate and its inverse for each block are in their views, as asserted above.
    let mut all = vec![unsafe { Launch::new(only(&DRAW), [1, 1, 1], &params, cost, views) }];
    if let Some((grad, ranges)) = grad {
        assert!(fits(ranges, 2 * blocks) && grad.address().is_multiple_of(16), "gates: a small buffer of ranges");
        assert!(grad.bytes() >= 4 * longest, "gates: a range beyond the gradients");
        let units = (grad.bytes() / (4 * UNIT)).min(u32::MAX as usize) as u32;
        let [gates_at, ranges_at, grad_at] = [gates, ranges, grad].map(View::address);
        let params = Clear { gates: gates_at, ranges: ranges_at, grad: grad_at, units, unused: 0 };
        // As with every launch that a gate can skip: the cost of a step in which all are open.
        let cost = Cost { flops: 0, bytes_read: words(blocks), bytes_written: 0 };
        let chunks = longest.div_ceil(UNIT * THREADS as usize).clamp(1, MOST_CHUNKS);
        let views = [gates, ranges, grad].map(View::clone).to_vec();
        // SAFETY: a gate and a pair for each block are in their views, as asserted above, and nothing beyond `units` of
        // `grad` is written.
        all.push(unsafe { Launch::new(only(&CLEAR), [chunks as u32, blocks as u32, 1], &params, cost, views) });
    }
    all
}
