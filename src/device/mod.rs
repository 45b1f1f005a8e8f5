//! Devices, which run graphs.
//!
//! A [`Device`] is the CPU, or a [`Backend`] that runs the library's kernels. All backends take the same [`Launch`]es.
//! Outside this folder nothing names the simulator, and only the crate's re-export names cudarc.
//!
//! | to get | call |
//! |---|---|
//! | the best of this machine | [`Device::best`] |
//! | a device by name: `auto`, `cpu`, `cuda`, `cuda:1`, `sim` | [`Device::parse`] |
//! | the CPU | [`Device::cpu`] |
//! | a GPU | [`Device::cuda`]; on another library's stream [`Device::cuda_on_stream`] |
//! | the simulator of the kernels, for tests | [`Device::sim`] |
//! | a device to plan for, which runs nothing | [`Device::blueprint`] |
//!
//! [`doctor::report`] lists the devices of this machine, `docs/SWITCHES.md` the environment variables that affect them.
//!
//! To launch a kernel by hand: [allocate](Backend::allocate) [`Memory`], take [`View`]s of it, bind them in a
//! [`Launch`], and give it to [`Backend::launch`], or repeat it with a [`Recording`].

mod allocator;
mod backend;
mod blueprint;
#[doc(hidden)]
pub mod conditions;
#[doc(hidden)]
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod doctor;
#[cfg(feature = "cuda")]
pub mod embedded;
mod gpu;
mod launch;
mod memory;
mod recording;
mod select;
pub mod sim;
pub(crate) mod table;
pub mod threads;

use std::fmt;
use std::str::FromStr;

pub use self::allocator::ExitWhereMemoryEnds;
pub use self::backend::{Backend, Replay};
pub use self::gpu::Gpu;
pub use self::launch::{Cost, Launch};
pub use self::memory::{DeviceId, Memory, SideQueue, View};
pub use self::recording::Recording;
pub use self::select::Device;
use crate::tensor::DType;

/// A GPU generation, for which kernels are chosen. `ARCHITECTURE.md` lists what a new one needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// Compute capability 8.0 and later: `mma.sync`, `cp.async`.
    Sm80 = 80,
    /// Compute capability 9.0: Hopper.
    Sm90 = 90,
}

impl Arch {
    /// Every generation.
    pub const ALL: [Self; 2] = [Self::Sm80, Self::Sm90];

    /// All names, for messages: `sm_80 or sm_90`.
    pub fn known() -> String {
        Self::ALL.map(|arch| arch.to_string()).join(" or ")
    }

    /// Bytes of shared memory that a block may take on every GPU that runs the generation's kernels.
    pub fn shared_limit(self) -> u32 {
        match self {
            Self::Sm80 => 99 * 1024, // compute capability 8.6, 8.9 and 12.x; 8.0 allows 163 KiB
            Self::Sm90 => 227 * 1024,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", *self as u32)
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|arch| arch.to_string() == text).ok_or_else(|| format!("expected {}", Self::known()))
    }
}

/// The generation and dtype for which an op chooses its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The generation of the device.
    pub arch: Arch,
    /// The storage type of the program.
    pub dtype: DType,
}

impl Target {
    /// The same device, for kernels that compute in f32.
    pub fn in_f32(self) -> Self {
        Self { dtype: DType::F32, ..self }
    }
}

/// An entry point of the embedded kernels: `<op>[_fused]_<pass>_<dtype>[_<tile>[_<tile>]][_<form>][_sm<NN>]`; `_fused`:
/// operands are transformed as they are loaded or stored. [`Launch`] has an example.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// The name of the entry.
    pub name: &'static str,
    /// Bytes of its parameter struct; a test compares them with the compiled kernel's.
    pub params_bytes: usize,
    /// Threads in a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// The only GPU generation that runs it; `None` if all do.
    pub family: Option<Arch>,
}

impl Kernel {
    /// The entry `name` that takes a `P` by value.
    pub const fn new<P: bytemuck::Pod>(name: &'static str, threads: u32, shared_bytes: u32) -> Self {
        Self { name, params_bytes: size_of::<P>(), threads, shared_bytes, family: None }
    }
}
