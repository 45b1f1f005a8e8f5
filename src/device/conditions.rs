//! The launch that tells the conditional nodes of a CUDA graph which gates are open.
//!
//! What a graph skips by such nodes is the device's affair, so the launch is made here and not by an op; its kernel is
//! among those of `control::gate`.

use super::table::{kernels, only};
use super::{Cost, Kernel, Launch, View};

/// Gates of one launch at most: a kernel's parameters take 4 KiB.
const MOST: usize = 128;

/// `Conditions` of kernels/control/gate/conditions.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Conditions {
    gates: [u64; MOST],
    handles: [u64; MOST],
    count: u32,
    unused: u32,
}

kernels! {
    SET: Conditions = "gate_conditions_*", (MOST * size_of::<u32>()) as u32;
}

/// The entry point.
pub(crate) fn kernel() -> &'static Kernel {
    only(&SET)
}

/// The launches that set the condition of each handle to 1 where its gate, an f32, is not 0, else to 0. They come before
/// the first of the nodes and behind what sets the gates.
///
/// # Safety
/// Each handle is that of a conditional node of the graph that the launches go into; on the simulator it is the address
/// of a `u32` that outlives them.
///
/// # Panics
/// If a gate is of less than 4 bytes or not aligned to them.
pub unsafe fn launches(conditions: &[(View, u64)]) -> Vec<Launch> {
    let launch = |part: &[(View, u64)]| {
        let mut params = Conditions { gates: [0; MOST], handles: [0; MOST], count: part.len() as u32, unused: 0 };
        for (i, (gate, handle)) in part.iter().enumerate() {
            assert!(gate.bytes() >= 4 && gate.address().is_multiple_of(4), "a gate of {} bytes", gate.bytes());
            (params.gates[i], params.handles[i]) = (gate.address(), *handle);
        }
        let cost = Cost { flops: 0, bytes_read: 4 * part.len() as u64, bytes_written: 0 };
        let gates = part.iter().map(|(gate, _)| gate.clone()).collect();
        // SAFETY: every gate is in its view, as asserted above; the handles are the caller's promise.
        unsafe { Launch::new(kernel(), [1, 1, 1], &params, cost, gates) }
    };
    conditions.chunks(MOST).map(launch).collect()
}
