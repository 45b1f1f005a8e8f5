//! The devices that the kernels of an op are tested on.

use std::sync::{Arc, LazyLock};

use residuum::device::sim::{Arithmetic, Copies, Schedule, SimOptions};
use residuum::device::{Arch, Backend, Device};

use crate::machine;

/// The variants of the simulator that a case needs. All but the first have every schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// One schedule, which finds the most bugs: for long lists of cases.
    Quick,
    /// Every schedule: for kernels without asynchronous copies and tensor cores.
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
    /// Machines of one group give equal bits.
    pub group: &'static str,
    /// The narrowest sweep that has this machine.
    sweep: Sweep,
    /// True if launches run as a recording.
    pub replayed: bool,
}

static MACHINES: LazyLock<Vec<Machine>> = LazyLock::new(|| {
    let mut machines = simulators();
    machines.extend(gpu());
    machines.retain(|m| machine::wanted(m.backend.kind()));
    if machines.is_empty() {
        eprintln!("kernel tests skipped: no usable GPU, and built without the feature `sim`");
    }
    machines
});

/// The simulator under every schedule, and with slightly inexact approximate instructions; for the wider sweeps also
/// with early copies, and with the sums of both generations of tensor cores.
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
        Err(e) => {
            if cfg!(feature = "sim") {
                panic!("{e}");
            }
            None
        }
    })
    .collect()
}

/// The GPU, with single launches and with a recording.
fn gpu() -> Vec<Machine> {
    let Some(backend) = machine::gpu("the kernels on a GPU") else { return Vec::new() };
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
