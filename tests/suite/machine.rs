//! What the machine has: devices, tools and folders; and what a test does without.
//!
//! A test that needs something that is not here prints that it skipped. Where the thing must be there, a variable turns
//! the skip into a failure: `RESIDUUM_REQUIRE_GPU=1`, `RESIDUUM_REQUIRE_NVCC=1`. `RESIDUUM_LONG=1` turns on long lists
//! of cases; `RESIDUUM_ONLY=cuda` leaves the other devices out.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use residuum::device::sim::SimOptions;
use residuum::device::{Backend, Device};
use residuum::Error;

/// The repository's root: `RESIDUUM_ROOT` where the tests run elsewhere than they were built.
pub fn root() -> PathBuf {
    std::env::var_os("RESIDUUM_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The folder with recorded results that are not the project's: `RESIDUUM_SHARED`, or `shared` beside the root.
#[cfg(feature = "sim")]
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

/// The GPU, or `None` after saying that `what` is skipped. Fails where one cannot be used that has a driver and kernels
/// that fit it, and where `RESIDUUM_REQUIRE_GPU` is 1 and there is none.
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
