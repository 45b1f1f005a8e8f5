//! Layers that the families share. Shapes are the graph's: NHWC.

use crate::graph::{Builder, ConvOptions, ValueId};
use crate::ops::pool::{Kind, Window};
use crate::Result;

/// The eps of batch norm, as in torchvision's residual networks.
pub(super) const EPS: f64 = 1e-5;

/// A square convolution with `k` output channels, without bias; its padding keeps the size at stride 1.
pub(super) fn conv(k: usize, kernel: usize, stride: usize) -> ConvOptions {
    ConvOptions { k, kernel: [kernel; 2], stride: [stride; 2], padding: [kernel / 2; 2], ..ConvOptions::default() }
}

/// Batch norm and ReLU.
pub(super) fn norm_relu(b: &mut Builder, name: &str, x: ValueId) -> Result<ValueId> {
    let x = b.batch_norm(name, x, EPS)?;
    b.relu(x)
}

/// Square max pooling, sizes rounded down.
pub(super) fn max_pool(b: &mut Builder, x: ValueId, kernel: usize, stride: usize, padding: usize) -> Result<ValueId> {
    let window = Window::Sliding { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 2], ceil: false };
    b.pool(x, window, Kind::Max)
}

/// Average pooling over disjoint squares, sizes rounded up; a square at the border averages the image's pixels in it.
pub(super) fn average_pool(b: &mut Builder, x: ValueId, size: usize) -> Result<ValueId> {
    let window = Window::Sliding { kernel: [size; 2], stride: [size; 2], padding: [0; 2], ceil: true };
    b.pool(x, window, Kind::Average { count_padding: false })
}

/// Adaptive average pooling to `size` x `size` pixels; 1 is global average pooling.
pub(super) fn average_to(b: &mut Builder, x: ValueId, size: usize) -> Result<ValueId> {
    b.pool(x, Window::Adaptive([size; 2]), Kind::Average { count_padding: false })
}

/// A number in decimal without leading zeros, from 1 to 99999.
pub(super) fn number(digits: &str) -> Option<usize> {
    let canonical = digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    canonical.then(|| digits.parse().ok()).flatten()
}
