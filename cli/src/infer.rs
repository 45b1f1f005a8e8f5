//! `residuum infer`.

use std::path::{Path, PathBuf};

use residuum::graph::{Graph, Mode, Program, StateReport};
use residuum::models::{weights, BuildOptions, Model};
use residuum::tensor::{DType, HostData, HostTensor, StateDict};
use residuum::train::checkpoint::without_optimizer;

use crate::device::{self, Choice};
use crate::failure::{note, Failure};
use crate::identity;
use crate::signals::clean_up_when_interrupted;

/// The most images of a batch; more are run in several.
const PART: usize = 64;

/// Runs a network on a batch of images
///
/// Reads the tensor `input` (NCHW, already normalised) of the input file and writes the tensor `logits` [N, classes].
/// The number of classes comes from the weights, the batch and the image size from the input.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  residuum infer --model resnet50 --weights resnet50.safetensors --input x.safetensors \\
      --output y.safetensors
  residuum infer --weights runs/mine/checkpoint.safetensors --input x.safetensors \\
      --output y.safetensors --dtype bf16 --device cuda

Any torchvision state dict works, under its own names or all of them behind one prefix (module.):
  safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()},
                              \"resnet50.safetensors\")
A checkpoint names its network; another --model is refused even if its tensors have the same shapes.
With stochastic depth, inference weights each branch by its survival probability.")]
pub struct Args {
    #[command(flatten)]
    pub network: Network,
    /// The file to write: `logits`
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// A network, its weights and its input.
#[derive(Debug, clap::Args)]
pub struct Network {
    /// The network; see `residuum models` [default: the one that the weights file names]
    #[arg(long, value_name = "NAME", value_parser = crate::models::parse)]
    pub model: Option<Model>,
    /// The weights: a state dict under torchvision's names, or a checkpoint of `residuum train`
    #[arg(long, value_name = "FILE")]
    pub weights: PathBuf,
    /// The images: the tensor `input`, NCHW
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// The device: auto, cpu, cuda, cuda:N or sim
    #[arg(long, default_value = "auto")]
    pub device: Choice,
    /// The storage type of activations and weights: f32, f64 (on cpu only), f16 or bf16
    #[arg(long, default_value = "f32", value_parser = device::dtype)]
    pub dtype: DType,
}

impl Network {
    /// The network and its weights, without the optimizer's tensors.
    pub fn read_weights(&self) -> Result<(Model, StateDict), Failure> {
        let (tensors, metadata) = weights::read_with_metadata(&self.weights)?;
        let model = identity::model(&self.weights, &metadata, self.model.as_ref())?;
        let mut state = without_optimizer(tensors);
        if let Some(prefix) = model.strip_prefix(&mut state) {
            note("note", &format!("{}: all names begin with `{prefix}`, which is removed", self.weights.display()));
        }
        Ok((model, state))
    }

    /// The number of classes of `state`, read from the weights file.
    pub fn classes(&self, model: &Model, state: &StateDict) -> Result<usize, Failure> {
        model.classes_of(state).map_err(|e| within(&self.weights, e))
    }

    /// Fails unless `state`, read from the weights file, fits `graph`. Warns of non-finite tensors.
    pub fn check(&self, graph: &Graph, state: &StateDict) -> Result<(), Failure> {
        let StateReport { non_finite } = weights::check(&self.weights, graph, state)?;
        for (name, index) in non_finite {
            let text = format!("tensor `{name}` is NaN or infinite at element {index}");
            note("warning", &format!("{}: {text}", self.weights.display()));
        }
        Ok(())
    }

    /// Removes the tensor `input` from `tensors`, read from the input file, and returns it with N and [C, H, W].
    pub fn take_input(&self, tensors: &mut StateDict) -> Result<(HostTensor, usize, [usize; 3]), Failure> {
        let input = take(&self.input, tensors, "input")?;
        let &[n, c, h, w] = input.shape.dims() else {
            return Err(wrong(&self.input, "input", &format!("shape {}, expected N, C, H, W", input.shape)));
        };
        if input.is_empty() {
            return Err(wrong(&self.input, "input", &format!("shape {}, expected no 0 in it", input.shape)));
        }
        if matches!(input.data, HostData::I64(_)) {
            return Err(wrong(&self.input, "input", "integers, expected floating-point numbers"));
        }
        Ok((input, n, [c, h, w]))
    }

    /// Fails unless the images have `state`'s number of channels.
    pub fn check_channels(&self, model: &Model, state: &StateDict, found: usize) -> Result<(), Failure> {
        let expected = model.channels_of(state).map_err(|e| within(&self.weights, e))?;
        if found != expected {
            let problem = format!("{found} channels, expected {expected} as in {}", self.weights.display());
            return Err(wrong(&self.input, "input", &problem));
        }
        Ok(())
    }
}

/// Warns that the logits of `count` of `images` images are not finite with the weights at `path`; `layer` is the first
/// such layer.
pub fn warn_not_finite(path: &Path, count: usize, images: usize, layer: Option<String>) {
    let first = layer.map_or(String::new(), |layer| format!(" (the first layer whose output is not finite: {layer})"));
    note("warning", &format!("{}: the logits of {count} of {images} images are not finite{first}", path.display()));
}

/// Removes a tensor from `tensors`, read from `path`.
pub fn take(path: &Path, tensors: &mut StateDict, name: &str) -> Result<HostTensor, Failure> {
    tensors.remove(name).ok_or_else(|| {
        let others: Vec<_> = tensors.keys().take(5).map(|k| format!("`{k}`")).collect();
        let also = if others.is_empty() { String::new() } else { format!("; the file holds {}", others.join(", ")) };
        wrong(path, name, &format!("missing{also}"))
    })
}

/// The failure of tensor `name` of `path`.
pub fn wrong(path: &Path, name: &str, problem: &str) -> Failure {
    Failure::Work(format!("{}: tensor `{name}`: {problem}", path.display()))
}

/// The failure of the file at `path` with `error`.
pub fn within(path: &Path, error: residuum::Error) -> Failure {
    Failure::Work(format!("{}: {error}", path.display()))
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let network = &args.network;
    let (model, state) = network.read_weights()?;
    let classes = network.classes(&model, &state)?;
    let (input, n, shape) = network.take_input(&mut weights::read(&network.input)?)?;
    network.check_channels(&model, &state, shape[0])?;
    let part = n.min(PART);
    let graph = model.build(Mode::Infer, part, shape, classes, BuildOptions::default())?;
    network.check(&graph, &state)?;
    let device = network.device.open()?;
    let mut program = Program::compile(&graph, &device, network.dtype, None)?;
    program.load(&state)?;
    let image = shape.iter().product::<usize>();
    let mut logits = Vec::with_capacity(n * classes);
    for first in (0..n).step_by(part) {
        let rows = part.min(n - first);
        program.set_input("input", &window(&input, first * image, rows * image, part, shape))?;
        program.run()?;
        logits.extend_from_slice(&program.output("logits")?.to_real::<f64>()[..rows * classes]);
    }
    let lost: Vec<usize> = (0..n).filter(|i| !logits[i * classes..][..classes].iter().all(|v| v.is_finite())).collect();
    if let Some(&first) = lost.first() {
        let layer = model.first_non_finite(&state, &window(&input, first * image, image, 1, shape), network.dtype);
        warn_not_finite(&network.weights, lost.len(), n, layer.unwrap_or(None));
    }
    let logits = match network.dtype {
        DType::F64 => HostTensor::f64([n, classes], logits),
        _ => HostTensor::f32([n, classes], logits.into_iter().map(|v| v as f32).collect()),
    };
    clean_up_when_interrupted();
    Ok(weights::write(&args.output, &StateDict::from([("logits".into(), logits)]), &Default::default())?)
}

/// `part` images (NCHW): `len` elements of `input` from `first` on, then zeros.
fn window(input: &HostTensor, first: usize, len: usize, part: usize, [c, h, w]: [usize; 3]) -> HostTensor {
    fn cut<T: Copy + Default>(all: &[T], first: usize, len: usize, total: usize) -> Vec<T> {
        let mut cut = all[first..first + len].to_vec();
        cut.resize(total, T::default());
        cut
    }
    let (shape, total) = ([part, c, h, w], part * c * h * w);
    match &input.data {
        HostData::F32(v) => HostTensor::f32(shape, cut(v, first, len, total)),
        HostData::F64(v) => HostTensor::f64(shape, cut(v, first, len, total)),
        HostData::I64(v) => HostTensor::i64(shape, cut(v, first, len, total)),
    }
}
