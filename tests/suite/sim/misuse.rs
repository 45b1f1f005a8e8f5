//! Whatever CUDA forbids is reported, with its reason, its place and the seed.

use std::sync::LazyLock;

use residuum::device::sim::{Schedule, SimOptions};
use residuum::device::{Cost, Launch, View};

use super::{backend, kernel, Params, Run};

static SOURCE: LazyLock<String> =
    LazyLock::new(|| std::fs::read_to_string(crate::machine::root().join("kernels/sim/tests/misuse.cu")).unwrap());

/// `misuse.cu:LINE`, the line that is marked `// line: mark`.
fn line(mark: &str) -> String {
    let marker = format!("// line: {mark}");
    let number = SOURCE.lines().position(|l| l.ends_with(&marker)).expect("a marked line") + 1;
    format!("misuse.cu:{number}")
}

fn every_schedule_reports(run: &Run<'_>, parts: &[&str]) {
    for schedule in Schedule::ALL {
        let options = SimOptions { schedule, seed: 7, ..SimOptions::default() };
        let report = run.go(options).expect_err(run.kernel).to_string();
        for part in [run.kernel, "seed 7", "launch 0"].iter().chain(parts) {
            assert!(report.contains(part), "`{part}` is missing under {schedule}: {report}");
        }
    }
}

fn misuse(kernel: &'static str) -> Run<'static> {
    Run { kernel, x: &[0; 40], y: &[0; 40], n: 40, ..Run::default() }
}

#[test]
fn deadlock() {
    let (barrier, shuffle) = (line("deadlock barrier"), line("deadlock shuffle"));
    let parts = [
        "deadlock",
        "block (0, 0, 0)",
        &format!("threads 0-32: wait in __syncthreads at sim/tests/{barrier} (33 of 64 arrived)"),
        &format!("threads 33-63: wait in a shuffle at sim/tests/{shuffle} with mask 0xffffffff (for threads 32)"),
    ];
    every_schedule_reports(&misuse("sim_test_deadlock"), &parts);
}

#[test]
fn divergent_barrier() {
    every_schedule_reports(
        &misuse("sim_test_divergent"),
        &["divergent barrier", &line("divergent even"), &line("divergent odd")],
    );
}

#[test]
fn wrong_masks() {
    every_schedule_reports(
        &misuse("sim_test_two_masks"),
        &["mismatch in a warp", "0xffffffff", "0xfffffffe", &line("two masks")],
    );
    every_schedule_reports(&misuse("sim_test_not_in_mask"), &["is not in its own mask", &line("not in mask")]);
    every_schedule_reports(
        &misuse("sim_test_two_operations"),
        &["mismatch in a warp", "__syncwarp", "a vote", &line("two operations")],
    );
}

#[test]
fn stray_accesses() {
    // 40 words are 160 bytes, a multiple of 16: the buffer ends at the guard page.
    let past = "0 bytes past the end of a buffer of 160 bytes";
    every_schedule_reports(&misuse("sim_test_read_past"), &["block (0, 0, 0) thread", "read of", past]);
    every_schedule_reports(&misuse("sim_test_write_past"), &["block (0, 0, 0) thread", "write to", past]);
    every_schedule_reports(&misuse("sim_test_write_before"), &["write to 4 bytes before a buffer of 160 bytes"]);
    every_schedule_reports(&misuse("sim_test_null_pointer"), &["thread 9: read of 0x00000000"]);
    every_schedule_reports(&misuse("sim_test_stack_overflow"), &["stack overflow"]);
}

#[test]
fn a_tail_shorter_than_the_alignment_is_watched() {
    let run = Run { y: &[0; 41], n: 41, ..misuse("sim_test_write_past") };
    every_schedule_reports(&run, &["write to 0 bytes past the end of a buffer of 164 bytes"]);
}

#[test]
fn stray_shared_accesses() {
    every_schedule_reports(&misuse("sim_test_shared_past"), &["byte 256 of ", "shared memory"]);
    every_schedule_reports(
        &misuse("sim_test_shared_before"),
        &["block (0, 0, 0): a thread wrote to 4 bytes before the block's shared memory"],
    );
    let short = Run { shared: 252, ..misuse("sim_test_shared_past") };
    every_schedule_reports(&short, &["252", "shared memory"]);
}

#[test]
fn misaligned_wide_accesses() {
    let not = "not at a multiple of its size";
    every_schedule_reports(
        &misuse("sim_test_unaligned_load"),
        &["one access of 16 bytes", "byte 4 of a buffer of 160 bytes", not],
    );
    every_schedule_reports(
        &misuse("sim_test_unaligned_store"),
        &["thread 1", "one access of 8 bytes", "byte 12 of 256 bytes of shared memory", not],
    );
}

#[test]
fn tensor_core_operands() {
    every_schedule_reports(
        &misuse("sim_test_unaligned_matrix"),
        &["ldmatrix", "is not that of 16 aligned bytes", &line("unaligned matrix")],
    );
    every_schedule_reports(&misuse("sim_test_matrix_after_exit"), &["ldmatrix", "exited", "0x00000008"]);
}

#[test]
fn endless_waiting() {
    for schedule in [Schedule::InOrder, Schedule::Random] {
        let run = Run { grid: [2, 1, 1], ..misuse("sim_test_spin") };
        let report = run.go(SimOptions { schedule, ..SimOptions::default() }).expect_err("a spin").to_string();
        assert!(report.contains("no progress at") && report.contains(&line("spin")), "{report}");
    }
}

#[test]
fn launches_that_do_not_fit() {
    let sim = backend(SimOptions::default());
    let view = View::whole(sim.allocate(160).unwrap());
    let params = Params { x: view.address(), y: view.address(), n: 40, unused: 0 };
    let launch = |name, threads, shared| {
        // SAFETY: none of these launches starts.
        let launch = unsafe {
            Launch::new(
                kernel::<Params>(name, threads, shared),
                [1, 1, 1],
                &params,
                Cost::default(),
                vec![view.clone()],
            )
        };
        sim.launch(&launch).expect_err("a launch that does not fit").to_string()
    };
    assert!(launch("sim_test_nothing", 64, 0).contains("no kernel of this name"));
    assert!(launch("sim_test_add_one", 32, 0).contains("compiled for 64"));
    assert!(launch("sim_test_add_one", 64, 200_000).contains("200000 bytes of shared memory"));
    let other = kernel::<u64>("sim_test_add_one", 64, 0);
    // SAFETY: as above.
    let launch = unsafe { Launch::new(other, [1, 1, 1], &0u64, Cost::default(), vec![view.clone()]) };
    let report = sim.launch(&launch).expect_err("8 bytes of parameters").to_string();
    assert!(report.contains("8 bytes of parameters, the kernel takes 24"), "{report}");
}

#[test]
fn a_device_goes_on_after_a_fault() {
    for _ in 0..3 {
        assert!(misuse("sim_test_read_past").go(SimOptions::default()).is_err());
        assert!(misuse("sim_test_deadlock").go(SimOptions::default()).is_err());
        let run = Run { kernel: "sim_test_add_one", x: &[4], y: &[0], n: 1, ..Run::default() };
        assert_eq!(run.go(SimOptions::default()).unwrap(), [5]);
    }
}

#[test]
fn many_threads_launch_at_once() {
    std::thread::scope(|scope| {
        for t in 0..16u64 {
            scope.spawn(move || {
                for seed in 0..20 {
                    let schedule = Schedule::ALL[(t + seed) as usize % Schedule::ALL.len()];
                    let options = SimOptions { schedule, seed, ..SimOptions::default() };
                    assert!(misuse("sim_test_read_past").go(options).is_err());
                    let x: Vec<u32> = (0..64).collect();
                    let run = Run { kernel: "sim_test_block_sum", x: &x, y: &[0], n: 64, ..Run::default() };
                    assert_eq!(run.go(options).unwrap(), [2016]);
                }
            });
        }
    });
}
