//! `residuum eval`.

use std::path::PathBuf;

use residuum::data::Source;
use residuum::models::{self, Model};
use residuum::tensor::DType;
use residuum::train::{Checkpoint, Evaluator};

use crate::device::{self, Choice};
use crate::failure::{note, print, Failure};
use crate::identity;
use crate::infer::{warn_not_finite, within};

/// Evaluates a checkpoint on the test images of a data set
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  residuum eval --checkpoint runs/resnet20_cifar-digits-seed0/checkpoint.safetensors
  residuum eval --checkpoint runs/mine/checkpoint.safetensors --data cifar10:/data/cifar \\
      --device cuda --dtype bf16")]
pub struct Args {
    /// The checkpoint of a run
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// The expected network; a checkpoint of another is refused [default: the checkpoint's]
    #[arg(long, value_name = "NAME", value_parser = crate::models::parse)]
    model: Option<Model>,
    /// The data set: digits, cifar10:DIR, cifar100:DIR or mnist:DIR [default: the run's]
    #[arg(long)]
    data: Option<Source>,
    /// The device: auto, cpu, cuda, cuda:N or sim
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// The storage type: f32, f64 (on cpu only), f16 or bf16 [default: the run's]
    #[arg(long, value_parser = device::dtype)]
    dtype: Option<DType>,
    /// The batch size
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = crate::train::at_least_one)]
    batch: usize,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let checkpoint = Checkpoint::read(&args.checkpoint)?;
    identity::check(&args.checkpoint, &checkpoint.settings.model, args.model.as_ref())?;
    let source = match &args.data {
        Some(source) => source.clone(),
        None => checkpoint.settings.data.parse().map_err(|e| within(&args.checkpoint, e))?,
    };
    let data = source.read()?.test;
    for (what, found, expected) in [
        ("classes", format!("{}", data.classes()), format!("{}", checkpoint.classes)),
        ("images of shape", format!("{:?}", data.shape()), format!("{:?}", checkpoint.input)),
    ] {
        if found != expected {
            let network = args.checkpoint.display();
            return Err(Failure::Work(format!("--data {source}: {what} {found}, but {network} has {expected}")));
        }
    }
    let model = models::find(&checkpoint.settings.model).map_err(|e| within(&args.checkpoint, e))?;
    let dtype = args.dtype.unwrap_or(checkpoint.settings.dtype);
    let batch = args.batch.min(data.len());
    let device = args.device.open()?;
    let mut evaluator = Evaluator::new(&model, data.shape(), data.classes(), batch, &device, dtype)?;
    let report = evaluator.load(&checkpoint.state).map_err(|e| within(&args.checkpoint, e))?;
    for (name, index) in report.non_finite {
        let text = format!("tensor `{name}` is NaN or infinite at element {index}");
        note("warning", &format!("{}: {text}", args.checkpoint.display()));
    }
    let found = evaluator.run(&data)?;
    if found.non_finite > 0 {
        let layer = evaluator.first_non_finite(&checkpoint.state).unwrap_or(None);
        warn_not_finite(&args.checkpoint, found.non_finite, found.images, layer);
    }
    if args.json {
        return print(
            &serde_json::json!({
                "loss": found.loss,
                "accuracy": found.accuracy(),
                "correct": found.correct,
                "images": found.images,
            })
            .to_string(),
        );
    }
    let (percent, name) = (100.0 * found.accuracy(), source.name());
    let counts = format!("{} of {} test images of {name}", found.correct, found.images);
    print(&format!("loss {:.4}, accuracy {percent:.2} % ({counts})", found.loss))
}
