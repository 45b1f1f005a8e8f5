//! The settings of a run, and their text form in a checkpoint.

use std::fmt::Display;
use std::str::FromStr;

use super::schedule::Schedule;
use crate::control::sgd;
use crate::data::Augment;
use crate::models::weights::Metadata;
use crate::tensor::DType;
use crate::{Error, Result};

/// The largest padding of the augmentation, in pixels.
const PAD: usize = 1 << 16;

/// The settings of a run. With the images and the device they decide its bits. See the [module](super) for an example.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The network's name, as [`crate::models::find`] takes it.
    pub model: String,
    /// The data set, as [`crate::data::Source`] is written; for the record only.
    pub data: String,
    /// The storage type.
    pub dtype: DType,
    /// Passes over the training images.
    pub epochs: u32,
    /// The batch size.
    pub batch: usize,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The learning-rate schedule.
    pub schedule: Schedule,
    /// Momentum; Nesterov unless it is 0.
    pub momentum: f64,
    /// Weight decay (L2), on all parameters.
    pub weight_decay: f64,
    /// Label smoothing, in 0..1.
    pub smoothing: f64,
    /// The augmentation of the training images.
    pub augment: Augment,
    /// The seed of the initial weights, the order of the images, the augmentation and stochastic depth.
    pub seed: u64,
}

impl Default for Settings {
    /// resnet20_cifar on the digits in f32, without augmentation: 15 epochs, batch size 64, one-cycle with a peak
    /// learning rate of 0.1, momentum 0.9, weight decay 1e-4, seed 0.
    fn default() -> Self {
        Self {
            model: "resnet20_cifar".into(),
            data: "digits".into(),
            dtype: DType::F32,
            epochs: 15,
            batch: 64,
            learning_rate: 0.1,
            schedule: Schedule::ONE_CYCLE,
            momentum: 0.9,
            weight_decay: 1e-4,
            smoothing: 0.0,
            augment: Augment::default(),
            seed: 0,
        }
    }
}

/// A fixed loss scale for a backward pass without an optimizer in `dtype`: 256 in f16, whose smallest positive number
/// is 6e-8, else 1. With an optimizer f16 has a dynamic one: see [`loss_scale`](crate::control::loss_scale).
pub fn grad_scale(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 256.0,
        _ => 1.0,
    }
}

impl Settings {
    /// The optimizer. Fails on invalid momentum or weight decay.
    pub fn optimizer(&self) -> Result<sgd::Sgd> {
        let Self { momentum, weight_decay, .. } = *self;
        sgd::Sgd::new(sgd::Spec { momentum, dampening: 0.0, nesterov: momentum > 0.0, weight_decay })
    }

    /// Fails on the first invalid setting: no epoch, a batch size of 0, a learning rate that is not positive and
    /// finite, label smoothing outside 0..1, shifts of too many pixels, a warm-up not shorter than the run, or an
    /// invalid momentum or weight decay. The names of the model and of the data set are not checked.
    pub fn check(&self) -> Result<()> {
        let Self { learning_rate: rate, smoothing, augment: Augment { pad, .. }, .. } = self;
        Error::check(self.epochs > 0, "epochs", || "0, expected at least 1".into())?;
        Error::check(self.batch > 0, "batch", || "0, expected at least 1".into())?;
        let positive = *rate > 0.0 && rate.is_finite();
        Error::check(positive, "learning rate", || format!("{rate}, expected a number above 0"))?;
        let fraction = (0.0..1.0).contains(smoothing);
        Error::check(fraction, "smoothing", || format!("{smoothing}, expected at least 0, less than 1"))?;
        Error::check(*pad <= PAD, "augmentation", || format!("shifts of {pad} pixels, expected at most {PAD}"))?;
        self.schedule.check(self.epochs)?;
        self.optimizer().map(|_| ())
    }

    /// The settings as text, in which numbers keep all their bits.
    pub fn to_metadata(&self) -> Metadata {
        let pairs: [(&str, &dyn Display); 14] = [
            ("model", &self.model),
            ("data", &self.data),
            ("dtype", &self.dtype),
            ("epochs", &self.epochs),
            ("batch", &self.batch),
            ("learning_rate", &self.learning_rate),
            ("schedule", &self.schedule),
            ("momentum", &self.momentum),
            ("weight_decay", &self.weight_decay),
            ("smoothing", &self.smoothing),
            ("augment_pad", &self.augment.pad),
            ("augment_flip", &self.augment.flip),
            ("seed", &self.seed),
            ("optimizer", &"sgd"),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    /// Parses the text of [`Settings::to_metadata`]. Fails on the first missing or invalid setting.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        Ok(Self {
            model: parse(metadata, "model")?,
            data: parse(metadata, "data")?,
            dtype: parse(metadata, "dtype")?,
            epochs: parse(metadata, "epochs")?,
            batch: parse(metadata, "batch")?,
            learning_rate: parse(metadata, "learning_rate")?,
            schedule: parse(metadata, "schedule")?,
            momentum: parse(metadata, "momentum")?,
            weight_decay: parse(metadata, "weight_decay")?,
            smoothing: parse(metadata, "smoothing")?,
            augment: Augment { pad: parse(metadata, "augment_pad")?, flip: parse(metadata, "augment_flip")? },
            seed: parse(metadata, "seed")?,
        })
    }

    /// The first setting in which `self` and `other` differ, with both values. The folder of the data does not count.
    pub fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let set = |settings: &Self| {
            let mut metadata = settings.to_metadata();
            if let Some(data) = metadata.get_mut("data") {
                data.truncate(data.find(':').unwrap_or(data.len()));
            }
            metadata
        };
        let there = set(other);
        // The model comes first: it is the most likely mistake.
        let mut here: Vec<_> = set(self).into_iter().collect();
        here.sort_by_key(|(key, _)| key != "model");
        here.into_iter().find(|(key, value)| there.get(key) != Some(value)).map(|(key, value)| {
            let found = there.get(&key).cloned().unwrap_or_default();
            (key, value, found)
        })
    }
}

pub(super) fn parse<T: FromStr>(metadata: &Metadata, key: &str) -> Result<T> {
    let what = || format!("metadata `{key}`");
    let text = metadata.get(key).ok_or_else(|| Error::invalid(what(), "missing: not a checkpoint of a run"))?;
    text.parse().map_err(|_| Error::invalid(what(), format!("`{text}`, not a value that a run writes")))
}
