//! Which adversary finds which planted bug, on a pipelined bf16 product of 200x136x128 with exact integer data.

use residuum::device::sim::{Copies, Schedule, SimOptions};
use residuum::device::{Cost, Launch, View};
use residuum::half::bf16;

use super::{backend, kernel};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GemmParams {
    a: u64,
    b: u64,
    c: u64,
    m: u32,
    n: u32,
    k: u32,
    unused: u32,
}

const M: usize = 200;
const N: usize = 136;
const K: usize = 128;
const SEEDS: u64 = 20;

/// A small integer for every index, different for different salts.
fn value(i: usize, salt: usize) -> f32 {
    ((i * 2_654_435_761 + salt * 40_503) >> 7 & 7) as f32 - 3.0
}

fn operands() -> (Vec<bf16>, Vec<bf16>, Vec<f32>) {
    let a: Vec<f32> = (0..M * K).map(|i| value(i, 1)).collect();
    let b: Vec<f32> = (0..N * K).map(|i| value(i, 2)).collect();
    let c = (0..M * N).map(|i| (0..K).map(|k| a[i / N * K + k] * b[i % N * K + k]).sum()).collect();
    let narrow = |v: Vec<f32>| v.into_iter().map(bf16::from_f32).collect();
    (narrow(a), narrow(b), c)
}

/// How the product fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Right,
    Wrong,
    Fault,
}

fn run(name: &'static str, options: SimOptions) -> Outcome {
    let (a, b, expected) = operands();
    let sim = backend(options);
    let [va, vb, vc] = [2 * M * K, 2 * N * K, 4 * M * N].map(|bytes| View::whole(sim.allocate(bytes).unwrap()));
    va.write(bytemuck::cast_slice(&a)).unwrap();
    vb.write(bytemuck::cast_slice(&b)).unwrap();
    let (m, n, k) = (M as u32, N as u32, K as u32);
    let params = GemmParams { a: va.address(), b: vb.address(), c: vc.address(), m, n, k, unused: 0 };
    let grid = [n.div_ceil(64), m.div_ceil(64), 1];
    let kernel = kernel::<GemmParams>(name, 128, 2 * 128 * 32 * 2);
    // SAFETY: the kernel takes `GemmParams`; the planted bugs that leave the views are caught.
    let launch = unsafe { Launch::new(kernel, grid, &params, Cost::default(), vec![va, vb, vc.clone()]) };
    match sim.launch(&launch) {
        Err(_) => Outcome::Fault,
        Ok(()) if vc.read().unwrap() == bytemuck::cast_slice::<f32, u8>(&expected) => Outcome::Right,
        Ok(()) => Outcome::Wrong,
    }
}

/// How often a kernel fails, out of as many seeds as matter.
fn failures(name: &'static str, schedule: Schedule, copies: Copies) -> u64 {
    let seeds = if matches!(schedule, Schedule::InOrder | Schedule::Reverse) { 1 } else { SEEDS };
    let failed = (0..seeds)
        .filter(|&seed| run(name, SimOptions { schedule, copies, seed, ..SimOptions::default() }) != Outcome::Right)
        .count() as u64;
    failed * SEEDS / seeds
}

const PCT: Schedule = Schedule::Priority { depth: 2 };

#[test]
fn table() {
    use Copies::{Early, Late};
    for (name, ways) in
        ["", "_lax_wait", "_no_barrier_before", "_no_barrier_after", "_no_column_guard", "_no_row_guard"].map(|b| {
            (
                b,
                [
                    (Schedule::InOrder, Early),
                    (Schedule::InOrder, Late),
                    (Schedule::Reverse, Late),
                    (Schedule::Random, Early),
                    (Schedule::Random, Late),
                    (PCT, Early),
                    (PCT, Late),
                ],
            )
        })
    {
        let name: &'static str = Box::leak(format!("sim_test_gemm{name}").into_boxed_str());
        println!("{name}: {:?}", ways.map(|(s, c)| failures(name, s, c)));
    }
}
