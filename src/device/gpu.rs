//! The rooflines of GPUs, which bound the speed of launches.

use super::launch::Cost;
use super::Arch;
use crate::tensor::DType;

/// The speeds of a GPU that bound a launch.
///
/// ```
/// use residuum::device::{Cost, Gpu};
/// use residuum::tensor::DType;
///
/// let h200 = &Gpu::known()[0];
/// let copy = Cost { flops: 0, bytes_read: 1 << 30, bytes_written: 1 << 30 };
/// assert!(h200.seconds(copy, DType::BF16) > 0.4e-3);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// The generation whose kernels it runs.
    pub arch: Arch,
    /// Memory bandwidth, in bytes per second.
    pub bytes_per_second: f64,
    /// f32 operations per second without tensor cores, as this library's kernels compute.
    pub f32_flops_per_second: f64,
    /// f16 operations per second on tensor cores, summed in f32.
    pub f16_flops_per_second: f64,
    /// bf16 operations per second on tensor cores, summed in f32.
    pub bf16_flops_per_second: f64,
    /// The source of the figures.
    pub source: String,
}

impl Gpu {
    /// The GPUs that the library knows, the default first. For any other, construct a value.
    pub fn known() -> Vec<Self> {
        let row = |name: &str, arch, bytes_per_second, f32_flops_per_second, half, source: &str| Self {
            name: name.into(),
            arch,
            bytes_per_second,
            f32_flops_per_second,
            f16_flops_per_second: half,
            bf16_flops_per_second: half,
            source: source.into(),
        };
        vec![
            row("H200", Arch::Sm90, 4.3e12, 67e12, 790e12, "measured by other software, f16 as bf16; f32 data sheet"),
            row("H100", Arch::Sm90, 3.35e12, 67e12, 989e12, "NVIDIA's data sheet of the SXM5 module, dense"),
            row("A100", Arch::Sm80, 2.039e12, 19.5e12, 312e12, "NVIDIA's data sheet of the 80 GB SXM4 module, dense"),
        ]
    }

    /// The least seconds for `cost` in a program of `dtype`: the longer of the times for its bytes and its operations.
    pub fn seconds(&self, cost: Cost, dtype: DType) -> f64 {
        let flops_per_second = match dtype {
            DType::F16 => self.f16_flops_per_second,
            DType::BF16 => self.bf16_flops_per_second,
            DType::F32 | DType::F64 => self.f32_flops_per_second,
        };
        let memory = cost.bytes() as f64 / self.bytes_per_second;
        memory.max(cost.flops as f64 / flops_per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_memory_and_arithmetic_counts() {
        let gpu = &Gpu::known()[0];
        let moves = Cost { flops: 1, bytes_read: 3_000_000_000, bytes_written: 1_300_000_000 };
        assert_eq!(gpu.seconds(moves, DType::BF16), 1e-3);
        let computes = Cost { flops: 790_000_000_000, ..moves };
        assert_eq!(gpu.seconds(computes, DType::BF16), 1e-3);
        assert_eq!(gpu.seconds(Cost { flops: 67_000_000_000_000, ..moves }, DType::F32), 1.0);
    }
}
