//! What the machine has: devices, tools and folders; and what a test does without.
//!
//! A test that needs something that is not here prints that it skipped. Where the thing must be there, a variable turns
//! the skip into a failure: `RESIDUUM_REQUIRE_GPU=1`, `RESIDUUM_REQUIRE_NVCC=1`. `RESIDUUM_LONG=1` turns on long lists of
//! cases; `RESIDUUM_ONLY=cuda` leaves the other devices out.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use residuum::device::sim::{Arithmetic, Copies, Schedule, SimOptions};
use residuum::device::{Arch, Backend, Device};
use residuum::Error;

/// The repository's root: `RESIDUUM_ROOT` where the tests run elsewhere than they were built.
pub fn root() -> PathBuf {
    std::env::var_os("RESIDUUM_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The folder with recorded results that are not the project's: `RESIDUUM_SHARED`, or `shared` beside the root.
pub fn shared() -> PathBuf {
    std::env::var_os("RESIDUUM_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from)
}

/// Whether the environment sets `variable` to 1.
pub fn asked(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

/// Whether tests run on devices of `kind`: `RESIDUUM_ONLY` names another.
pub fn wanted(kind: &str) -> bool {
    std::env::var("RESIDUUM_ONLY").map_or(true, |only| only == kind)
}

/// Says that `what` is skipped for `reason`; fails where `RESIDUUM_REQUIRE_<thing>` is 1.
pub fn skip(thing: &str, what: &str, reason: &str) {
    let variable = format!("RESIDUUM_REQUIRE_{thing}");
    assert!(!asked(&variable), "{variable} is set, but {what} cannot run: {reason}");
    eprintln!("{what}: skipped, {reason}");
}

/// The GPU, or `None` after saying that `what` is skipped. Fails where there is one that cannot be used, and where
/// `RESIDUUM_REQUIRE_GPU` is 1 and there is none.
pub fn gpu(what: &str) -> Option<Arc<dyn Backend>> {
    static GPU: LazyLock<Result<Device, Error>> = LazyLock::new(|| Device::cuda(0));
    match &*GPU {
        Ok(Device::Kernels(backend)) => Some(backend.clone()),
        Ok(Device::Cpu) => unreachable!("Device::cuda gives a GPU"),
        Err(error @ Error::NoDevice { .. }) => {
            skip("GPU", what, &error.to_string());
            None
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

/// Fails where the simulator is built in.
fn without_simulator(error: &Error) {
    if cfg!(feature = "sim") {
        panic!("{error}");
    }
}

/// The CPU, the simulator where it is built in, and the GPU where there is one: for tests of whole programs.
pub fn devices(what: &str) -> Vec<Device> {
    let mut devices = vec![Device::cpu()];
    match Device::sim(SimOptions::default()) {
        Ok(device) => devices.push(device),
        Err(error) => without_simulator(&error),
    }
    devices.extend(gpu(what).map(Device::Kernels));
    devices.retain(|device| wanted(device.kind()));
    devices
}

/// Which variants of the simulator a case needs; all schedules are in each but the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// One schedule, the one that finds most: for long lists of cases.
    Quick,
    /// Nothing more: for kernels without asynchronous copies and tensor cores.
    Schedules,
    /// Early and late copies.
    Copies,
    /// Early and late copies, and every arithmetic of the tensor cores.
    TensorCores,
}

/// A device that a case runs on.
pub struct Machine {
    /// Printed on failure.
    pub label: String,
    /// The device.
    pub backend: Arc<dyn Backend>,
    /// Machines of one group give the same bits.
    pub group: &'static str,
    /// The least sweep that it belongs to.
    sweep: Sweep,
    /// Whether the launches run as a recorded list.
    pub replayed: bool,
}

static MACHINES: LazyLock<Vec<Machine>> = LazyLock::new(|| {
    let mut machines = simulators();
    machines.extend(gpus());
    machines.retain(|m| wanted(m.backend.kind()));
    if machines.is_empty() {
        eprintln!("kernel tests skipped: no usable GPU, and built without the feature `sim`");
    }
    machines
});

/// The simulator under every schedule; with approximate instructions a little off; for the wider sweeps also with early
/// copies, and with the sums of both generations of tensor cores.
fn simulators() -> Vec<Machine> {
    let plain = SimOptions::default();
    let schedules = Schedule::ALL.map(|schedule| {
        let sweep = if schedule == (Schedule::Priority { depth: 2 }) { Sweep::Quick } else { Sweep::Schedules };
        (SimOptions { schedule, ..plain }, "exact", sweep)
    });
    let early = [Schedule::InOrder, Schedule::Random, Schedule::Priority { depth: 2 }]
        .map(|schedule| (SimOptions { schedule, copies: Copies::Early, ..plain }, "exact", Sweep::Copies));
    let approximate = [(SimOptions { approximate: true, ..plain }, "approximate", Sweep::Schedules)];
    let generations = [(Arch::Sm80, Arithmetic::Sm80, "sm80"), (Arch::Sm90, Arithmetic::Sm90, "sm90")];
    let cores = generations.into_iter().flat_map(|(arch, arithmetic, group)| {
        let of = move |schedule, copies| SimOptions { arch, arithmetic, schedule, copies, ..plain };
        [of(Schedule::InOrder, Copies::Late), of(Schedule::Priority { depth: 2 }, Copies::Random)]
            .map(|options| (options, group, Sweep::TensorCores))
    });
    let all = schedules.into_iter().chain(approximate).chain(early).chain(cores);
    all.filter_map(|(options, group, sweep)| match Device::sim(options) {
        Ok(Device::Kernels(backend)) => {
            Some(Machine { label: format!("sim ({options})"), backend, group, sweep, replayed: false })
        }
        Ok(Device::Cpu) => None,
        Err(error) => {
            without_simulator(&error);
            None
        }
    })
    .collect()
}

/// The GPU, once as its launches come and once as a recorded list.
fn gpus() -> Vec<Machine> {
    let Some(backend) = gpu("the kernels on a GPU") else { return Vec::new() };
    let as_machine = |(label, replayed): (&str, bool)| Machine {
        label: label.into(),
        backend: backend.clone(),
        group: "cuda",
        sweep: Sweep::Quick,
        replayed,
    };
    [("cuda", false), ("cuda, replayed", true)].map(as_machine).into()
}

/// The devices of a sweep.
pub fn machines(sweep: Sweep) -> impl Iterator<Item = &'static Machine> {
    MACHINES.iter().filter(move |m| m.sweep as usize <= sweep as usize)
}
