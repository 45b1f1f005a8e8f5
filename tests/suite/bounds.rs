//! All tolerances of the kernel tests, computed from the storage type and the length of the reduction. They bound the
//! result before it is stored; the harness adds the rounding to the storage type.
//!
//! A bound is raised only with a reason in the commit.

use residuum::tensor::DType;

/// The unit roundoff of f32: half the distance from 1 to the next number.
pub const U: f64 = 1.0 / (1u64 << 24) as f64;

/// A sum of `terms` products whose magnitudes add up to `magnitude`, in f32 with any order of additions: each term is
/// rounded once as a product and at most `terms` times in sums.
pub fn sum(terms: usize, magnitude: f64) -> f64 {
    (terms as f64 + 1.0) * U * magnitude
}

/// A sum of `terms` products on tensor cores, in blocks of eight: each block is added to the sum in f32 with
/// truncation. Eight more cover later additions: sums of sums, the epilogue.
pub fn tensor_core_sum(terms: usize, magnitude: f64) -> f64 {
    (terms as f64 / 8.0 + 8.0) * 2.0 * U * magnitude
}

/// The largest error of rounding a number of this magnitude to `dtype`, unless it is subnormal.
pub fn stored(dtype: DType, magnitude: f64) -> f64 {
    dtype.epsilon() / 2.0 * magnitude
}

/// A sum of at most `terms` quotients of whole numbers whose magnitudes add up to `magnitude`: each is a product with a
/// rounded reciprocal.
pub fn quotients(terms: usize, magnitude: f64) -> f64 {
    (terms as f64 + 2.0) * U * magnitude
}

/// A mean of `pixels` positive numbers that a block sums: groups of 32 in each of at least 8 threads, the groups, 8
/// levels of a tree, and a division.
pub fn tree_mean(pixels: usize, mean: f64) -> f64 {
    (32.0 + pixels as f64 / (8.0 * 32.0) + 1.0 + 8.0 + 1.0) * U * mean
}

/// The additions between an element and the sum over `rows` rows of a channel: 16 rows of a thread, 8 levels of a tree,
/// then bands of at least 64 rows, an eighth of them per thread, and 3 more levels.
pub fn band_depth(rows: usize) -> f64 {
    16.0 + 8.0 + rows as f64 / (64.0 * 8.0) + 1.0 + 3.0
}

/// The exact statistics of a channel.
#[derive(Clone, Copy, Debug)]
pub struct Channel {
    /// Elements.
    pub rows: usize,
    /// Their mean.
    pub mean: f64,
    /// The largest distance of an element from the mean.
    pub spread: f64,
    /// The biased variance.
    pub var: f64,
}

impl Channel {
    /// The error of a mean computed from differences to one element, each at most twice the spread; merges, and adding
    /// the element back, round the mean itself.
    pub fn mean_bound(&self) -> f64 {
        band_depth(self.rows) * U * (self.mean.abs() + 2.0 * self.spread)
    }

    /// The error of a variance computed from squares of such differences; a merge adds the squared distance of two
    /// means, each off by less than the mean's bound.
    pub fn var_bound(&self) -> f64 {
        let squares = band_depth(self.rows) * U * 4.0 * self.spread * self.spread;
        let distances = 2.0 * 2.0 * self.spread.min(self.var.sqrt()) * self.mean_bound();
        squares + distances
    }

    /// The error of 1 / sqrt(var + eps): half the relative error of the variance, and four roundings.
    pub fn invstd_bound(&self, eps: f64) -> f64 {
        let invstd = 1.0 / (self.var + eps).sqrt();
        0.5 * invstd.powi(3) * self.var_bound() + 4.0 * U * invstd
    }
}

/// The error of `gamma (x - mean) invstd + beta` if mean and invstd are off by `off`.
pub fn normalised(x: f64, channel: (f64, f64), gamma: f64, beta: f64, off: (f64, f64)) -> f64 {
    let ((mean, invstd), (mean_off, invstd_off)) = (channel, off);
    let from_mean = gamma.abs() * (invstd * mean_off + (x - mean).abs() * invstd_off);
    from_mean + 6.0 * U * (gamma * (x - mean) * invstd).abs() + 2.0 * U * beta.abs()
}

/// The error of `keep * old + momentum * new` if the new value is off by `new_off`.
pub fn moved(old: f64, new: f64, momentum: f64, new_off: f64) -> f64 {
    momentum * new_off + 4.0 * U * (old.abs() + momentum * new.abs())
}

/// A sum over a channel whose magnitudes add up to `magnitude`; each term is rounded `roundings` times.
pub fn channel_sum(rows: usize, roundings: usize, magnitude: f64) -> f64 {
    (band_depth(rows) + roundings as f64) * U * magnitude
}

/// The largest error of expf or logf on a device, in units of the last place of the result.
const FUNCTION_ULPS: f64 = 4.0;

/// The error of log sum e^(l - max): each power rounds its argument and its result, the sum rounds once for each class
/// of a thread and each level of the tree.
fn log_sum(classes: usize, range: f64) -> f64 {
    let depth = classes as f64 / 256.0 + 1.0 + 8.0;
    let powers = (range + 2.0 * FUNCTION_ULPS + depth) * U;
    powers + 2.0 * FUNCTION_ULPS * U * (classes as f64).ln().max(1.0)
}

/// The loss of an image whose logits spread over `range`.
pub fn image_loss(classes: usize, range: f64) -> f64 {
    let shifted = (classes as f64 / 256.0 + 12.0) * U * range;
    log_sum(classes, range) + 2.0 * shifted
}

/// The mean of `n` losses, each off by `off`, none larger than `largest`.
pub fn mean_loss(n: usize, largest: f64, off: f64) -> f64 {
    off + (n as f64 / 256.0 + 1.0 + 8.0 + 1.0) * U * largest
}

/// The gradient `scale (share - target)` of a logit, where `share` is a softmax.
pub fn logit_gradient(classes: usize, range: f64, scale: f64, share: f64, target: f64) -> f64 {
    scale * (share * (log_sum(classes, range) + (range + 2.0 * FUNCTION_ULPS + 2.0) * U) + 4.0 * U * (share + target))
}

/// A step of the optimizer on one element, from the magnitudes of its terms.
pub fn step(magnitude: f64) -> f64 {
    8.0 * U * magnitude
}

/// The largest distance of a tensor of a network's training step from the exact one (relative l2), if the reference
/// executor, which computes in f64 and rounds stored values, is `noise` away. Kernels store the same values but sum in
/// f32 and in other orders, so that some values are rounded to the other neighbour: another error of the same kind and
/// size. Three times the noise leaves room for chance, on most batches. In f32 the sums round as coarsely as the
/// stores, once for each of up to `terms` terms: at random, sqrt(terms) as much. Four units in the last place are for
/// tensors with almost no noise.
pub fn network(dtype: DType, noise: f64, terms: usize) -> f64 {
    let sums = if dtype == DType::F32 { (terms as f64).sqrt() } else { 1.0 };
    3.0 * sums * noise + 4.0 * dtype.epsilon()
}

/// As above, from the distance that a tensor `moved` in a step with errors like a kernel's: in f32 sqrt(terms)
/// roundings of parameters and pixels, in 16 bits pixels that are rounded to the other neighbour. It includes the
/// effect of ReLUs near their kink; three times the distance leaves room for chance.
pub fn jump(moved: f64) -> f64 {
    3.0 * moved
}

/// The largest distance of a tensor from the exact one in an f32 graph of a few layers over a few pixels, relative to
/// its size or to a hundredth of the largest gradient: a wiring error is as large as the gradient itself.
pub const WIRING: f64 = 2e-3;

/// As above, if the reference executor that rounds stored values is `noise` away: batch norms over two or three values
/// amplify it, and kernels also sum in f32.
pub fn wiring(bound: f64, noise: f64) -> f64 {
    bound + 30.0 * noise
}
