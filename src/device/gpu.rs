//! What GPUs can do at most: the rooflines that launches are held against.

use super::{Arch, Cost};
use crate::tensor::DType;

/// A GPU's speed, as far as it bounds a launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// The generation whose kernels it runs.
    pub arch: Arch,
    /// Bytes that its memory moves in a second.
    pub bytes_per_second: f64,
    /// Operations in a second on f32, without tensor cores, as this library's kernels compute.
    pub f32_flops_per_second: f64,
    /// Operations in a second of the tensor cores on f16, added in f32.
    pub f16_flops_per_second: f64,
    /// The same on bf16.
    pub bf16_flops_per_second: f64,
    /// Where the figures are from.
    pub source: String,
}

impl Gpu {
    /// The GPUs that the library knows; the first is the default. Any other is a value of this type.
    pub fn known() -> Vec<Self> {
        let row =
            |name: &str, arch, bytes_per_second, f32_flops_per_second, half_flops_per_second, source: &str| Self {
                name: name.into(),
                arch,
                bytes_per_second,
                f32_flops_per_second,
                f16_flops_per_second: half_flops_per_second,
                bf16_flops_per_second: half_flops_per_second,
                source: source.into(),
            };
        vec![
            row(
                "H200",
                Arch::Sm90,
                4.3e12,
                67e12,
                790e12,
                "bandwidth and bf16 as measured, f16 as bf16, f32 of NVIDIA's data sheet",
            ),
            row("H100", Arch::Sm90, 3.35e12, 67e12, 989e12, "NVIDIA's data sheet of the SXM5 module, dense"),
            row("A100", Arch::Sm80, 2.039e12, 19.5e12, 312e12, "NVIDIA's data sheet of the 80 GB SXM4 module, dense"),
        ]
    }

    /// The seconds that something of `cost` in a program of `dtype` takes at least: those of its bytes or those of its
    /// operations, whichever are more.
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
