//! The machine's devices, tools and folders, and skipped tests.
//!
//! A test that lacks something prints that it is skipped. Variables turn the skip into a failure:
//! `RESIDUUM_REQUIRE_GPU=1`, `RESIDUUM_REQUIRE_NVCC=1`. `RESIDUUM_LONG=1` turns on long lists of cases;
//! `RESIDUUM_ONLY=cuda` leaves the other devices out.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use residuum::device::sim::SimOptions;
use residuum::device::{Backend, Device};
use residuum::Error;

/// The repository's root: `RESIDUUM_ROOT` if the tests do not run where they were built.
pub fn root() -> PathBuf {
    std::env::var_os("RESIDUUM_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The folder of recorded results that are not part of the project: `RESIDUUM_SHARED`, or `shared` beside the root.
#[cfg(feature = "sim")]
pub fn shared() -> PathBuf {
    std::env::var_os("RESIDUUM_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from)
}

/// True if the environment sets `variable` to 1.
pub fn asked(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

/// True if tests run on devices of `kind`; `RESIDUUM_ONLY` may name another kind.
pub fn wanted(kind: &str) -> bool {
    std::env::var("RESIDUUM_ONLY").map_or(true, |only| only == kind)
}

/// Prints that `what` is skipped for `reason`; panics if `RESIDUUM_REQUIRE_<thing>` is 1.
pub fn skip(thing: &str, what: &str, reason: &str) {
    let variable = format!("RESIDUUM_REQUIRE_{thing}");
    assert!(!asked(&variable), "{variable} is set, but {what} cannot run: {reason}");
    eprintln!("{what}: skipped, {reason}");
}

/// The GPU, or `None` after printing that `what` is skipped. Panics if a GPU with a driver and kernels cannot be used,
/// or if there is none and `RESIDUUM_REQUIRE_GPU` is 1.
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

/// Panics if the simulator is built in.
fn without_simulator(error: &Error) {
    if cfg!(feature = "sim") {
        panic!("{error}");
    }
}

/// The CPU, the simulator if it is built in, and the GPU if there is one: for tests of whole programs.
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
