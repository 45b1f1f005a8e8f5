//! A run between two steps, as one safetensors file: parameters and buffers under torch's names, the velocity of each
//! parameter as `optim.velocity.NAME`, everything else as metadata.

use std::path::Path;

use super::settings::{parse, Settings};
use crate::control::loss_scale::LossScale;
use crate::data::Normalize;
use crate::models::weights::{self, Metadata};
use crate::tensor::{DType, StateDict};
use crate::{Error, Result};

const VELOCITY: &str = "optim.velocity.";
const OPTIMIZER: &str = "optim.";

/// The sums over the steps of an epoch so far. See [`Checkpoint`] for an example.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// The sum of the steps' losses.
    pub loss: f64,
    /// Correctly classified images.
    pub correct: f64,
    /// The number of steps.
    pub steps: usize,
}

/// A run between two steps: the whole state of its remaining steps, except the images.
///
/// ```
/// use residuum::data::{digits, Dataset, Images, Splits};
/// use residuum::device::Device;
/// use residuum::train::{Checkpoint, Settings, Trainer};
///
/// // Eight digits to train on and to test on.
/// let all = digits::read()?.train;
/// let Images::U8(pixels) = all.images() else { unreachable!("digits are bytes") };
/// let few = Images::U8(pixels[..8 * 64].to_vec());
/// let few = Dataset::new(few, all.labels()[..8].to_vec(), 10, all.shape(), all.normalize().clone())?;
/// let splits = Splits { train: few.clone(), test: few };
///
/// let settings = Settings { model: "resnet8_cifar".into(), batch: 8, ..Settings::default() };
/// let checkpoint = Trainer::new(settings, &splits, &Device::cpu())?.checkpoint()?;
/// let path = std::env::temp_dir().join(format!("residuum-doc-{}.safetensors", std::process::id()));
/// checkpoint.write(&path)?;
/// let trainer = Trainer::resume(&Checkpoint::read(&path)?, &splits, &Device::cpu())?;
/// assert_eq!(trainer.checkpoint()?, checkpoint);
/// # std::fs::remove_file(&path).expect("the file");
/// # Ok::<(), residuum::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The settings.
    pub settings: Settings,
    /// The number of classes.
    pub classes: usize,
    /// The shape of the images: C, H, W.
    pub input: [usize; 3],
    /// The normalisation of pixels.
    pub normalize: Normalize,
    /// The steps done.
    pub step: usize,
    /// The epochs done, evaluation included.
    pub epoch: u32,
    /// The sums of the current epoch.
    pub sums: Sums,
    /// Parameters and buffers under torch's names, in torch's layout (OIHW, `[out, in]`).
    pub state: StateDict,
    /// The velocity of each parameter, by its name and in its layout.
    pub velocity: StateDict,
    /// The dynamic loss scale of a run in f16.
    pub loss_scale: Option<LossScale>,
}

impl Checkpoint {
    /// Writes the checkpoint atomically: to a temporary file that is synced and then renamed. If this fails, an
    /// existing file is untouched. Equal checkpoints give equal bytes.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut tensors = self.state.clone();
        tensors.extend(self.velocity.iter().map(|(name, v)| (format!("{VELOCITY}{name}"), v.clone())));
        weights::write(path, &tensors, &self.metadata())
    }

    /// Reads a checkpoint. Fails if the file is truncated or was not written by a run.
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
        let classes = parse(metadata, "classes")?;
        let (white, mean, deviation) =
            (parse(metadata, "white")?, list(metadata, "mean")?, list(metadata, "deviation")?);
        let normalize = Normalize { white, mean, deviation };
        let (step, epoch) = (parse(metadata, "step")?, parse(metadata, "epoch")?);
        let [loss, correct] = [parse(metadata, "epoch_loss")?, parse(metadata, "epoch_correct")?];
        let sums = Sums { loss, correct, steps: parse(metadata, "epoch_steps")? };
        Ok(Self { settings, classes, input, normalize, step, epoch, sums, state, velocity, loss_scale })
    }
}

/// Removes the optimizer's tensors, if `tensors` are a checkpoint's.
pub fn without_optimizer(mut tensors: StateDict) -> StateDict {
    tensors.retain(|name, _| !name.starts_with(OPTIMIZER));
    tensors
}

/// The comma-separated values of `key`.
fn list<T: std::str::FromStr>(metadata: &Metadata, key: &str) -> Result<Vec<T>> {
    let text: String = parse(metadata, key)?;
    text.split(',')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map_err(|_| Error::invalid(format!("metadata `{key}`"), format!("`{text}`, expected comma-separated numbers")))
}
