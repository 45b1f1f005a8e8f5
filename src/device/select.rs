//! The device type and every way to get a device.

use std::sync::Arc;

use super::backend::Backend;
use super::sim::{self, SimOptions};
use super::{blueprint, Arch};
use crate::{Error, Result};

/// Where a graph runs.
///
/// ```
/// use residuum::device::Device;
///
/// assert_eq!(Device::cpu().kind(), "cpu");
/// println!("this machine's best device: {}", Device::best().kind());
/// assert!(Device::parse("gpu").is_err(), "its names are auto, cpu, cuda, cuda:N and sim");
/// ```
#[derive(Clone, Debug)]
pub enum Device {
    /// The CPU, in plain Rust.
    Cpu,
    /// A device that runs the library's kernels.
    Kernels(Arc<dyn Backend>),
}

impl Device {
    /// The CPU.
    pub fn cpu() -> Self {
        Self::Cpu
    }

    /// The first CUDA device, if it has embedded kernels and a driver that loads them, else the CPU.
    pub fn best() -> Self {
        Self::cuda(0).unwrap_or(Self::Cpu)
    }

    /// The device that a user names: `auto` (the best), `cpu`, `cuda`, `cuda:N` or `sim`. If there is none, the error
    /// says what is missing and how to get it.
    pub fn parse(name: &str) -> Result<Self> {
        let known = || ["auto", "cpu", "cuda", "sim"].map(String::from).into();
        let unknown = || Error::Unknown { kind: "device", name: name.into(), nearest: known() };
        match name {
            "auto" => Ok(Self::best()),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Self::cuda(0),
            "sim" => Self::sim(SimOptions::default()),
            _ => Self::cuda(name.strip_prefix("cuda:").and_then(|n| n.parse().ok()).ok_or_else(unknown)?),
        }
    }

    /// The CUDA device `ordinal`, on a stream of its own. Fails with [`Error::NoDevice`] if the driver, the device or
    /// its embedded kernels are missing, or the driver is too old for the kernels; the error says which and what to do.
    ///
    /// ```no_run
    /// let second = residuum::device::Device::cuda(1)?;
    /// # Ok::<(), residuum::Error>(())
    /// ```
    pub fn cuda(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return super::cuda::open(ordinal).map(Self::Kernels);
        #[cfg(not(feature = "cuda"))]
        Err(without_feature(ordinal))
    }

    /// The CUDA device `ordinal`, with all work on another library's stream: a `CUstream` or `cudaStream_t` of the
    /// device's primary context, 0 for the null stream. No other stream is used, so the work is in order with the
    /// caller's. The caller's memory comes in through [`View::foreign`](super::View::foreign).
    ///
    /// # Safety
    /// `stream` is a valid stream, and outlives the device and everything made from it.
    pub unsafe fn cuda_on_stream(ordinal: usize, stream: u64) -> Result<Self> {
        #[cfg(feature = "cuda")]
        // SAFETY: this function's contract is the callee's.
        return unsafe { super::cuda::open_on_stream(ordinal, stream) }.map(Self::Kernels);
        #[cfg(not(feature = "cuda"))]
        {
            let _ = stream;
            Err(without_feature(ordinal))
        }
    }

    /// A simulated device, which runs the CUDA kernels on the CPU to test them. Fails without the feature `sim`, or if
    /// a variable of `docs/SWITCHES.md` overrides an option with a value that cannot be read.
    pub fn sim(options: SimOptions) -> Result<Self> {
        sim::open(options).map(Self::Kernels)
    }

    /// A device of `arch` that plans and does not run: programs are compiled for it as for a GPU, to see their
    /// launches, memory and costs. Its memory has addresses and sizes but no bytes, so a program of any size fits.
    pub fn blueprint(arch: Arch) -> Self {
        Self::Kernels(blueprint::open(arch))
    }

    /// `cpu`, `cuda`, `sim` or `blueprint`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Kernels(b) => b.kind(),
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn without_feature(_ordinal: usize) -> Error {
    let reason = "this build leaves it out; build with the feature `cuda`".to_string();
    Error::NoDevice { device: "cuda", reason }
}
