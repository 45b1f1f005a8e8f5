//! What GPUs can do at most, as far as it was measured.

use residuum::device::Cost;
use residuum::tensor::DType;

/// A GPU's limits.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    /// A part of the name that the driver gives it.
    name: &'static str,
    /// Bytes that a copy reads and writes in a second.
    bytes_a_second: f64,
    /// Operations of a matrix product in bf16 in a second.
    flops_a_second: f64,
    /// Bytes of the last cache before memory.
    cache_bytes: usize,
}

/// Larger than the last cache of any GPU, for those that are not in the table.
const LARGEST_CACHE: usize = 128 << 20;

/// The GPUs whose limits are known: measured, not from a data sheet.
const GPUS: &[Roofline] =
    &[Roofline { name: "H200", bytes_a_second: 4.3e12, flops_a_second: 790e12, cache_bytes: 50 << 20 }];

impl Roofline {
    /// The limits of the GPU that calls itself `name`.
    pub fn of(name: &str) -> Option<Self> {
        GPUS.iter().find(|gpu| name.contains(gpu.name)).copied()
    }

    /// Bytes of the last cache of a GPU, or more where it is unknown.
    pub fn cache_bytes(gpu: Option<Self>) -> usize {
        gpu.map_or(LARGEST_CACHE, |gpu| gpu.cache_bytes)
    }

    /// The least seconds that `cost` takes: those of its bytes or of its operations, whichever are more. Nothing where
    /// the operations' limit is unknown: it was measured for 16-bit products.
    pub fn seconds(&self, cost: Cost, dtype: DType) -> Option<f64> {
        let bytes = (cost.bytes_read + cost.bytes_written) as f64 / self.bytes_a_second;
        let flops = cost.flops as f64 / self.flops_a_second;
        matches!(dtype, DType::F16 | DType::BF16).then_some(bytes.max(flops))
    }
}
