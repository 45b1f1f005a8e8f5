//! The launch that sets the conditions of a CUDA graph's conditional nodes from the gates.
//!
//! Only `cuda` has such nodes, so the device makes the launch, not an op. Its kernel is in `kernels/control/gate/`.

use super::launch::{Cost, Launch};
use super::memory::View;
use super::table::{kernels, only};
use super::Kernel;

/// The most gates of one launch: a kernel's parameters take at most 4 KiB.
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

pub(crate) fn kernel() -> &'static Kernel {
    only(&SET)
}

/// Launches that set each handle's condition to 1 if its gate, an f32, is not 0, else to 0. They must come after the
/// launches that write the gates and before the first of the nodes.
///
/// # Safety
/// Each handle belongs to a conditional node of the graph that the launches go into. On the simulator it is the address
/// of a `u32` that outlives them.
///
/// # Panics
/// If a gate has less than 4 bytes or is not aligned to 4.
pub unsafe fn launches(conditions: &[(View, u64)]) -> Vec<Launch> {
    let launch = |part: &[(View, u64)]| {
        let mut params = Conditions { gates: [0; MOST], handles: [0; MOST], count: part.len() as u32, unused: 0 };
        for (i, (gate, handle)) in part.iter().enumerate() {
            assert!(gate.bytes() >= 4 && gate.address().is_multiple_of(4), "a gate of {} bytes", gate.bytes());
            (params.gates[i], params.handles[i]) = (gate.address(), *handle);
        }
        let cost = Cost { flops: 0, bytes_read: 4 * part.len() as u64, bytes_written: 0 };
        let gates = part.iter().map(|(gate, _)| gate.clone()).collect();
        // SAFETY: a `Conditions` is the kernel's struct; it reads the gates, in their views as asserted above, and sets
        // the handles, which this function's contract allows.
        unsafe { Launch::new(kernel(), [1, 1, 1], &params, cost, gates) }
    };
    conditions.chunks(MOST).map(launch).collect()
}
