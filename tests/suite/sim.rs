//! The simulator: schedules, reports, memory, tensor cores.
#![cfg(feature = "sim")]

mod bugs;
mod legal;
mod misuse;
mod tensor_core;

use std::sync::Arc;

use residuum::device::sim::SimOptions;
use residuum::device::{Backend, Cost, Device, Kernel, Launch, View};
use residuum::Result;

/// The parameters of the kernels in `kernels/sim/tests/legal.cu` and `misuse.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    x: u64,
    y: u64,
    n: u32,
    unused: u32,
}

fn backend(options: SimOptions) -> Arc<dyn Backend> {
    match Device::sim(options).unwrap() {
        Device::Kernels(b) => b,
        Device::Cpu => unreachable!("Device::sim makes a device of kernels"),
    }
}

/// A kernel of one run, leaked: tests are few.
fn kernel<P: bytemuck::Pod>(name: &'static str, threads: u32, shared_bytes: u32) -> &'static Kernel {
    Box::leak(Box::new(Kernel::new::<P>(name, threads, shared_bytes)))
}

/// One run of a kernel that takes [`Params`].
struct Run<'a> {
    kernel: &'static str,
    threads: u32,
    shared: u32,
    grid: [u32; 3],
    x: &'a [u32],
    y: &'a [u32],
    n: u32,
}

impl Default for Run<'_> {
    fn default() -> Self {
        Self { kernel: "", threads: 64, shared: 256, grid: [1, 1, 1], x: &[], y: &[], n: 0 }
    }
}

impl Run<'_> {
    /// The content of `y` after the launch.
    fn go(&self, options: SimOptions) -> Result<Vec<u32>> {
        let sim = backend(options);
        let upload = |values: &[u32]| -> Result<View> {
            let view = View::whole(sim.allocate(4 * values.len())?);
            view.write(bytemuck::cast_slice(values))?;
            Ok(view)
        };
        let (x, y) = (upload(self.x)?, upload(self.y)?);
        let params = Params { x: x.address(), y: y.address(), n: self.n, unused: 0 };
        let kernel = kernel::<Params>(self.kernel, self.threads, self.shared);
        // SAFETY: the kernels take `Params`; the tests are about their accesses outside the views.
        let launch = unsafe { Launch::new(kernel, self.grid, &params, Cost::default(), vec![x, y.clone()]) };
        sim.launch(&launch)?;
        Ok(bytemuck::pod_collect_to_vec(&y.read()?))
    }
}
