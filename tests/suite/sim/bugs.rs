//! Planted bugs and the adversaries that find them, on a pipelined bf16 product of 200x136x128 with exact integers.

use residuum::device::sim::{Copies, Schedule, SimOptions};
use residuum::device::{Cost, Launch, View};
use residuum::half::bf16;

use super::{backend, kernel, Run};

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

const PCT: Schedule = Schedule::Priority { depth: 2 };

/// The number of seeds under which a bug shows; an order that is not random needs one.
fn found(schedule: Schedule, mut shows: impl FnMut(SimOptions) -> bool) -> u64 {
    let seeds = if matches!(schedule, Schedule::InOrder | Schedule::Reverse) { 1 } else { SEEDS };
    let options = |seed| SimOptions { schedule, seed, ..SimOptions::default() };
    (0..seeds).filter(|&seed| shows(options(seed))).count() as u64 * SEEDS / seeds
}

#[test]
fn the_right_product_is_right_and_every_bug_is_found() {
    use Copies::{Early, Late};
    use Outcome::{Fault, Right, Wrong};
    let table = [
        // The outcome with early copies, with late copies.
        ("sim_test_gemm", Right, Right),
        ("sim_test_gemm_lax_wait", Right, Wrong),
        ("sim_test_gemm_no_barrier_before", Wrong, Wrong),
        ("sim_test_gemm_no_barrier_after", Wrong, Wrong),
        ("sim_test_gemm_no_column_guard", Fault, Fault),
        ("sim_test_gemm_no_row_guard", Fault, Fault),
    ];
    for (name, early, late) in table {
        for schedule in [Schedule::InOrder, Schedule::Reverse, Schedule::Random, PCT] {
            for (copies, outcome) in [(Early, early), (Late, late)] {
                let times = found(schedule, |options| run(name, SimOptions { copies, ..options }) == outcome);
                assert_eq!(times, SEEDS, "{name} is {outcome:?} under {schedule} with {copies:?} copies");
            }
        }
    }
}

#[test]
fn each_order_finds_what_the_other_hides() {
    let expected = |name: &str| -> Vec<u32> {
        match name {
            "sim_test_read_next" => (0..64).map(|t| (t + 1).min(63)).collect(),
            "sim_test_read_previous" => (0..64u32).map(|t| t.saturating_sub(1)).collect(),
            _ => (0..256).map(|t| t / 64 + 1).collect(),
        }
    };
    let table = [
        // Of 20 seeds: in order, in reverse, random, by priority.
        ("sim_test_read_next", [20, 0, 20, 20]),
        ("sim_test_read_previous", [0, 20, 20, 20]),
        ("sim_test_chain_blocks", [0, 20, 20, 20]),
    ];
    for (name, times) in table {
        let expected = expected(name);
        let y = vec![0; expected.len()];
        let grid = [expected.len() as u32 / 64, 1, 1];
        let run = Run { kernel: name, grid, x: &[0], y: &y, ..Run::default() };
        let schedules = [Schedule::InOrder, Schedule::Reverse, Schedule::Random, PCT];
        let wrong = schedules.map(|schedule| found(schedule, |options| run.go(options).unwrap() != expected));
        assert_eq!(wrong, times, "{name}");
    }
}
