//! Batches of normalised, augmented images; the seed and the epoch decide their order.

use rayon::prelude::*;

use super::augment::{Augment, Draw};
use super::dataset::{Dataset, Images};
use super::stream::{Purpose, Stream};
use crate::device::threads;
use crate::tensor::{HostData, HostTensor};
use crate::{Error, Result};

/// A batch of images and labels, ready for a network. See the [module](super) for an example.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The normalised images, f32, NCHW.
    pub input: HostTensor,
    /// The label of each.
    pub labels: Vec<i32>,
    /// The images that count. Fewer than all only in the last batch of a test set, which repeats its last image.
    pub valid: usize,
}

impl Batch {
    /// Image `i` as a batch of one, `[1, C, H, W]`.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn image(&self, i: usize) -> HostTensor {
        let [c, h, w] = [1, 2, 3].map(|axis| self.input.shape.dims()[axis]);
        let len = c * h * w;
        let HostData::F32(pixels) = &self.input.data else { unreachable!("a loader makes f32") };
        HostTensor::f32([1, c, h, w], pixels[i * len..][..len].to_vec())
    }
}

/// Cuts a [`Dataset`] into batches, which do not depend on threads. See the [module](super) for an example.
#[derive(Clone, Debug)]
pub struct Loader<'a> {
    data: &'a Dataset,
    batch: usize,
    augment: Augment,
    seed: u64,
    tables: Vec<Vec<f32>>,
}

impl<'a> Loader<'a> {
    /// Shuffled and augmented batches of `batch` images. Fails if `batch` is 0 or more than the images.
    pub fn train(data: &'a Dataset, batch: usize, augment: Augment, seed: u64) -> Result<Self> {
        let most = data.len();
        Error::check((1..=most).contains(&batch), "batch", || {
            format!("{batch}, expected 1..={most} (the number of training images)")
        })?;
        Ok(Self { data, batch, augment, seed, tables: tables(data) })
    }

    /// Batches of `batch` images in their own order, without augmentation. Fails if `batch` is 0 or there is no image.
    pub fn test(data: &'a Dataset, batch: usize) -> Result<Self> {
        let problem = || format!("{batch} of {} images, expected at least 1", data.len());
        Error::check(batch > 0 && !data.is_empty(), "batch", problem)?;
        Ok(Self { data, batch, augment: Augment::default(), seed: 0, tables: tables(data) })
    }

    /// The full batches of a training epoch. Left-over images are dropped; the next epoch has another order.
    pub fn steps(&self) -> usize {
        self.data.len() / self.batch
    }

    /// The shuffled order of the images in `epoch`.
    pub fn order(&self, epoch: u32) -> Vec<u32> {
        Stream::new(self.seed, Purpose::Shuffle, epoch, 0).permutation(self.data.len())
    }

    /// Training batch `step` (in `0..steps`) of `epoch`; `order` is [`order`](Self::order)'s for that epoch.
    pub fn batch(&self, order: &[u32], epoch: u32, step: usize) -> Batch {
        let indices = &order[step * self.batch..][..self.batch];
        self.gather(indices, self.batch, |index| self.augment.draw(self.seed, epoch, index))
    }

    /// All images once, normalised, in their own order. The last batch repeats the last image to be full.
    pub fn in_order(&self) -> impl Iterator<Item = Batch> + '_ {
        let len = self.data.len();
        (0..len.div_ceil(self.batch)).map(move |step| {
            let first = step * self.batch;
            let indices: Vec<u32> = (first..first + self.batch).map(|i| i.min(len - 1) as u32).collect();
            self.gather(&indices, self.batch.min(len - first), |_| Draw::IDENTITY)
        })
    }

    fn gather(&self, indices: &[u32], valid: usize, draw: impl Fn(u32) -> Draw + Sync) -> Batch {
        let [c, h, w] = self.data.shape();
        let mut pixels = vec![0.0; indices.len() * c * h * w];
        threads::ensure();
        pixels.par_chunks_exact_mut(c * h * w).zip(indices).for_each(|(image, &index)| {
            self.image(index, draw(index), image);
        });
        let labels = indices.iter().map(|&i| self.data.labels()[i as usize]).collect();
        Batch { input: HostTensor::f32([indices.len(), c, h, w], pixels), labels, valid }
    }

    /// Writes image `index`, transformed by `draw`, to `out`.
    fn image(&self, index: u32, draw: Draw, out: &mut [f32]) {
        let [c, h, w] = self.data.shape();
        let base = index as usize * c * h * w;
        for (channel, plane) in out.chunks_exact_mut(h * w).enumerate() {
            let first = base + channel * h * w;
            let black = self.data.normalize().apply(channel, 0.0);
            for (i, value) in plane.iter_mut().enumerate() {
                *value = draw.source(i / w, i % w, h, w).map_or(black, |p| self.value(channel, first + p));
            }
        }
    }

    fn value(&self, channel: usize, pixel: usize) -> f32 {
        match self.data.images() {
            Images::U8(v) => self.tables[channel][usize::from(v[pixel])],
            Images::F32(v) => self.data.normalize().apply(channel, v[pixel]),
        }
    }
}

/// For each channel, the normalised value of each byte.
fn tables(data: &Dataset) -> Vec<Vec<f32>> {
    (0..data.shape()[0]).map(|c| (0..=255u8).map(|v| data.normalize().apply(c, f32::from(v))).collect()).collect()
}
