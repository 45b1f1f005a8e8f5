//! The simulator: schedules, reports, memory, tensor cores.
#![cfg(feature = "sim")]

use residuum::device::sim::{Schedule, SimOptions};
use residuum::device::{Backend, Cost, Device, Kernel, Launch, View};
use std::sync::Arc;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CopyParams {
    x: u64,
    y: u64,
    n: u32,
    mode: u32,
}

fn backend(options: SimOptions) -> Arc<dyn Backend> {
    match Device::sim(options).unwrap() {
        Device::Kernels(b) => b,
        Device::Cpu => unreachable!(),
    }
}

#[test]
fn adds_one_under_every_schedule() {
    static KERNEL: Kernel = Kernel::new::<CopyParams>("sim_test_add_one", 64, 0);
    for schedule in Schedule::ALL {
        let sim = backend(SimOptions { schedule, ..SimOptions::default() });
        let n = 1000;
        let x = View::whole(sim.allocate(4 * n).unwrap());
        let y = View::whole(sim.allocate(4 * n).unwrap());
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        x.write(bytemuck::cast_slice(&values)).unwrap();
        let params = CopyParams { x: x.address(), y: y.address(), n: n as u32, mode: 0 };
        let launch = unsafe { Launch::new(&KERNEL, [16, 1, 1], &params, Cost::default(), vec![x, y.clone()]) };
        sim.launch(&launch).unwrap();
        let out: Vec<f32> = bytemuck::pod_collect_to_vec(&y.read().unwrap());
        assert!(out.iter().zip(&values).all(|(y, x)| *y == x + 1.0), "{schedule}");
    }
}
