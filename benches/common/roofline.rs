//! The limits of GPUs, measured with other software.

use residuum::device::Cost;
use residuum::tensor::DType;

/// A GPU's limits.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    /// A part of the name that the driver gives it.
    name: &'static str,
    /// Bytes per second that a copy reads and writes.
    bytes_a_second: f64,
    /// Operations per second of a matrix product in bf16.
    flops_a_second: f64,
    /// Bytes of the last-level cache.
    cache_bytes: usize,
}

/// More than the last-level cache of any GPU, for those not in the table.
const LARGEST_CACHE: usize = 128 << 20;

/// The GPUs with measured limits.
const GPUS: &[Roofline] =
    &[Roofline { name: "H200", bytes_a_second: 4.3e12, flops_a_second: 790e12, cache_bytes: 50 << 20 }];

impl Roofline {
    /// The limits of the GPU called `name`.
    pub fn of(name: &str) -> Option<Self> {
        GPUS.iter().find(|gpu| name.contains(gpu.name)).copied()
    }

    /// Bytes of a GPU's last-level cache, or more if it is unknown.
    pub fn cache_bytes(gpu: Option<Self>) -> usize {
        gpu.map_or(LARGEST_CACHE, |gpu| gpu.cache_bytes)
    }

    /// The least time of `cost` in seconds, for its bytes or for its operations, whichever is longer. `None` for
    /// f32, whose limit of operations was not measured.
    pub fn seconds(&self, cost: Cost, dtype: DType) -> Option<f64> {
        let bytes = (cost.bytes_read + cost.bytes_written) as f64 / self.bytes_a_second;
        let flops = cost.flops as f64 / self.flops_a_second;
        matches!(dtype, DType::F16 | DType::BF16).then_some(bytes.max(flops))
    }
}
