//! A run between two steps, as one safetensors file: parameters and buffers under torch's names, the velocity of each
//! parameter under `optim.velocity.NAME`, everything else as text beside them.

use std::path::Path;

use super::settings::{parse, Settings};
use crate::control::loss_scale::LossScale;
use crate::data::Normalize;
use crate::models::weights::{self, Metadata};
use crate::tensor::{DType, StateDict};
use crate::{Error, Result};

/// What the optimizer's tensors are called in front of their parameters' names.
const VELOCITY: &str = "optim.velocity.";
/// What all tensors that are not the network's begin with.
const OPTIMIZER: &str = "optim.";

/// Loss and recognised images of the steps of an epoch that are done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// The sum of the steps' losses.
    pub loss: f64,
    /// Images recognised.
    pub correct: f64,
    /// Steps.
    pub steps: usize,
}

/// A run between two steps: all that its remaining steps depend on, but for the images.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What decides the run.
    pub settings: Settings,
    /// The network's classes.
    pub classes: usize,
    /// C, H, W of the images.
    pub input: [usize; 3],
    /// How pixels become the network's input.
    pub normalize: Normalize,
    /// Steps done since the start of the run.
    pub step: usize,
    /// Epochs done, their evaluation counted.
    pub epoch: u32,
    /// What the epoch under way has summed up.
    pub sums: Sums,
    /// Parameters and buffers, in torch's names and shapes.
    pub state: StateDict,
    /// The optimizer's velocity of each parameter, by its name.
    pub velocity: StateDict,
    /// The moving loss scale of a run in f16.
    pub loss_scale: Option<LossScale>,
}

impl Checkpoint {
    /// Writes the checkpoint, all or nothing: into a temporary file, which is on disk before it takes the name. Where
    /// this fails, what was there before is untouched. The same checkpoint gives the same bytes.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut tensors = self.state.clone();
        tensors.extend(self.velocity.iter().map(|(name, v)| (format!("{VELOCITY}{name}"), v.clone())));
        weights::write(path, &tensors, &self.metadata())
    }

    /// Reads a checkpoint; fails where the file is not whole or was not written by a run.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (tensors, metadata) = weights::read_with_metadata(path)?;
        Self::from_parts(tensors, &metadata).map_err(|e| Error::file(path, e.to_string()))
    }

    /// [`Checkpoint::read`] of a file's content.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (tensors, metadata) = weights::from_bytes(bytes)?;
        Self::from_parts(tensors, &metadata)
    }

    fn metadata(&self) -> Metadata {
        let mut metadata = self.settings.to_metadata();
        let list = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
        let pairs = [
            ("library", concat!("residuum ", env!("CARGO_PKG_VERSION")).to_string()),
            ("classes", self.classes.to_string()),
            ("input", self.input.map(|v| v.to_string()).join(",")),
            ("white", self.normalize.white.to_string()),
            ("mean", list(&self.normalize.mean)),
            ("deviation", list(&self.normalize.deviation)),
            ("step", self.step.to_string()),
            ("epoch", self.epoch.to_string()),
            ("epoch_loss", self.sums.loss.to_string()),
            ("epoch_correct", self.sums.correct.to_string()),
            ("epoch_steps", self.sums.steps.to_string()),
        ];
        metadata.extend(pairs.map(|(key, value)| (key.to_string(), value)));
        if let Some(LossScale { scale, good_steps }) = self.loss_scale {
            metadata.insert("loss_scale".into(), scale.to_string());
            metadata.insert("loss_scale_good_steps".into(), good_steps.to_string());
        }
        metadata
    }

    fn from_parts(tensors: StateDict, metadata: &Metadata) -> Result<Self> {
        let (mut state, mut velocity) = (StateDict::new(), StateDict::new());
        for (name, tensor) in tensors {
            match name.strip_prefix(VELOCITY) {
                Some(parameter) => velocity.insert(parameter.into(), tensor),
                None => state.insert(name, tensor),
            };
        }
        let input: Vec<usize> = list(metadata, "input")?;
        let input = <[usize; 3]>::try_from(input)
            .map_err(|found| Error::invalid("metadata `input`", format!("{found:?}, expected three extents")))?;
        let settings = Settings::from_metadata(metadata)?;
        let loss_scale = match settings.dtype {
            DType::F16 => Some(LossScale {
                scale: parse(metadata, "loss_scale")?,
                good_steps: parse(metadata, "loss_scale_good_steps")?,
            }),
            _ => None,
        };
        Ok(Self {
            settings,
            classes: parse(metadata, "classes")?,
            input,
            normalize: Normalize {
                white: parse(metadata, "white")?,
                mean: list(metadata, "mean")?,
                deviation: list(metadata, "deviation")?,
            },
            step: parse(metadata, "step")?,
            epoch: parse(metadata, "epoch")?,
            sums: Sums {
                loss: parse(metadata, "epoch_loss")?,
                correct: parse(metadata, "epoch_correct")?,
                steps: parse(metadata, "epoch_steps")?,
            },
            state,
            velocity,
            loss_scale,
        })
    }
}

/// The network's own tensors of a weights file that may be a checkpoint.
pub fn without_optimizer(mut tensors: StateDict) -> StateDict {
    tensors.retain(|name, _| !name.starts_with(OPTIMIZER));
    tensors
}

/// The comma-separated values of `key`.
fn list<T: std::str::FromStr>(metadata: &Metadata, key: &str) -> Result<Vec<T>> {
    let text: String = parse(metadata, key)?;
    text.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|_| {
        Error::invalid(format!("metadata `{key}`"), format!("`{text}`, expected numbers with commas between them"))
    })
}
