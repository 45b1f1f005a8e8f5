//! The only table of GPU targets, for which nvcc compiles the kernels.
//!
//! A new generation of GPUs is a row here, a variant of `device::Arch` and, only if they pay off, `smNN_*.cu` files.

/// A target for which nvcc compiles a kernel file.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The output: machine code `sm_NN`, or PTX `compute_NN` that a driver compiles for other chips.
    pub code: &'static str,
    /// The virtual architecture that the source is compiled for.
    pub compute: &'static str,
    /// Files named `smNN_*.cu` are compiled for the targets of family NN alone.
    pub family: u32,
}

/// Machine code for the A100 family and for Hopper; PTX for every later chip. The PTX of `compute_90a` runs only on
/// its own chip, so the older PTX is kept.
pub const TARGETS: &[Target] = &[
    Target { code: "sm_80", compute: "compute_80", family: 80 },
    Target { code: "sm_90a", compute: "compute_90a", family: 90 },
    Target { code: "compute_80", compute: "compute_80", family: 80 },
];

impl Target {
    /// The argument of nvcc's `-gencode`.
    pub fn gencode(&self) -> String {
        format!("arch={},code={}", self.compute, self.code)
    }

    /// True if the kernel file of this name (`fwd.cu`, `sm90_fwd.cu`) is compiled for this target.
    pub fn takes(&self, file_name: &str) -> bool {
        family(file_name).is_none_or(|family| family == self.family)
    }
}

/// The NN of a file named `smNN_*.cu`.
pub fn family(file_name: &str) -> Option<u32> {
    file_name.strip_prefix("sm")?.split_once('_')?.0.parse().ok()
}
