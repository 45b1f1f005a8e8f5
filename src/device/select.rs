//! Which device: by name, the best there is, or on another library's stream.

use super::sim::SimOptions;
use super::Device;
use crate::{Error, Result};

/// What [`Device::parse`] understands.
const NAMES: [&str; 4] = ["auto", "cpu", "cuda", "sim"];

impl Device {
    /// The first CUDA device if there is one, with embedded kernels for it and a driver that loads them, else the CPU.
    pub fn best() -> Self {
        Self::cuda(0).unwrap_or(Self::Cpu)
    }

    /// The device that a user names: `auto` (the best), `cpu`, `cuda`, `cuda:N` or `sim`. Fails where there is none of
    /// that kind, with what is missing and how to get it.
    pub fn parse(name: &str) -> Result<Self> {
        let unknown = || Error::Unknown {
            kind: "device",
            name: name.to_string(),
            nearest: NAMES.iter().map(|n| n.to_string()).collect(),
        };
        match name {
            "auto" => Ok(Self::best()),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Self::cuda(0),
            "sim" => Self::sim(SimOptions::default()),
            _ => Self::cuda(name.strip_prefix("cuda:").and_then(|n| n.parse().ok()).ok_or_else(unknown)?),
        }
    }

    /// The CUDA device `ordinal`, on a stream of its own. Fails with [`Error::NoDevice`] where the driver, the device or
    /// the embedded kernels for it are missing, or the driver is too old for the kernels; the error says which and what
    /// to do.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return super::cuda::open(ordinal);
        #[cfg(not(feature = "cuda"))]
        Err(without_feature(ordinal))
    }

    /// The CUDA device `ordinal`, with all work on a stream of another library: a `CUstream` or `cudaStream_t` of the
    /// device's primary context, 0 for the null stream. Nothing is done on any other stream, so the caller's work before
    /// and after on `stream` is ordered with it. Memory of the caller comes in through [`View::foreign`].
    ///
    /// # Safety
    /// `stream` is a valid stream, and outlives the device and everything made of it.
    ///
    /// [`View::foreign`]: super::View::foreign
    pub unsafe fn cuda_on_stream(ordinal: usize, stream: u64) -> Result<Self> {
        #[cfg(feature = "cuda")]
        // SAFETY: the caller's promise is the function's.
        return unsafe { super::cuda::open_on_stream(ordinal, stream) };
        #[cfg(not(feature = "cuda"))]
        {
            let _ = stream;
            Err(without_feature(ordinal))
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn without_feature(_ordinal: usize) -> Error {
    let reason = "this build leaves it out; build with the feature `cuda`".to_string();
    Error::NoDevice { device: "cuda", reason }
}
