//! `residuum train`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use residuum::data::{Augment, Source, Splits};
use residuum::models::Model;
use residuum::tensor::DType;
use residuum::train::{Checkpoint, Metrics, Observer, Progress, Schedule, Settings, Trainer};

use crate::device::{self, Choice};
use crate::failure::{note, print, Failure};
use crate::folder::Folder;
use crate::infer::within;
use crate::models::grouped;
use crate::progress::Display;
use crate::signals::clean_up_when_interrupted;

/// Trains a network; with no options, resnet20_cifar on handwritten digits
///
/// Writes checkpoint.safetensors and a line of metrics.jsonl to the run's folder after every epoch, and curves.png and
/// curves.svg. Data sets are read from local files; nothing is downloaded. The digits are part of the program.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  residuum train
  residuum train --seed 3 --out runs/third
  residuum train --model resnet56_cifar --data cifar10:/data/cifar --device cuda --dtype bf16 \\
      --epochs 164 --batch 128 --schedule steps:0.1@81,122
  residuum train --resume --out runs/third

A run that is killed at any moment and resumed ends with the same bits as an uninterrupted one. With
--resume, omitted options are the run's own; an option that contradicts the run is an error.")]
pub struct Args {
    /// The network; see `residuum models` [default: resnet20_cifar]
    #[arg(long, value_name = "NAME", value_parser = crate::models::parse)]
    model: Option<Model>,
    /// The data set: digits, cifar10:DIR, cifar100:DIR or mnist:DIR [default: digits]
    #[arg(long)]
    data: Option<Source>,
    /// The device: auto, cpu, cuda, cuda:N or sim
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// The storage type of activations and weights: f32, f16 or bf16 [default: f32]
    #[arg(long, value_parser = device::training_dtype)]
    dtype: Option<DType>,
    /// Epochs [default: 15]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    epochs: Option<u32>,
    /// Batch size [default: 64]
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    batch: Option<usize>,
    /// Peak learning rate [default: 0.1]
    #[arg(long, value_name = "X", value_parser = positive, allow_negative_numbers = true)]
    lr: Option<f64>,
    /// Learning-rate schedule: constant, steps:FACTOR@EPOCH,EPOCH,..., cosine or onecycle; any but onecycle may be
    /// followed by +warmup:EPOCHS [default: onecycle]
    #[arg(long)]
    schedule: Option<Schedule>,
    /// Momentum, with Nesterov's method unless it is 0 [default: 0.9]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    momentum: Option<f64>,
    /// Weight decay (L2), on all parameters [default: 0.0001]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    weight_decay: Option<f64>,
    /// Label smoothing [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    smoothing: Option<f64>,
    /// Do not augment the training images
    #[arg(long)]
    no_augment: bool,
    /// Seed of initial weights, image order, augmentation and stochastic depth [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The run's folder [default: runs/MODEL-DATA-seedSEED, numbered if that is taken]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Resume from the checkpoint in the run's folder; start anew if it has none yet
    #[arg(long)]
    resume: bool,
    /// Also write a checkpoint every STEPS steps, not only after each epoch
    #[arg(long, value_name = "STEPS", value_parser = at_least_one)]
    checkpoint_every: Option<usize>,
}

/// Parses an integer above 0.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected an integer, at least 1".into())
}

/// Parses a finite number above 0.
fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&x: &f64| x > 0.0 && x.is_finite()).ok_or_else(|| "expected a number above 0".into())
}

impl Args {
    /// `base`, overridden by the options that were given.
    fn over(&self, base: Settings) -> Settings {
        let data = self.data.as_ref().map_or(base.data, Source::to_string);
        let augment = if self.no_augment { Augment::default() } else { base.augment };
        Settings {
            model: self.model.as_ref().map_or(base.model, |model| model.name().to_string()),
            data,
            dtype: self.dtype.unwrap_or(base.dtype),
            epochs: self.epochs.unwrap_or(base.epochs),
            batch: self.batch.unwrap_or(base.batch),
            learning_rate: self.lr.unwrap_or(base.learning_rate),
            schedule: self.schedule.clone().unwrap_or(base.schedule),
            momentum: self.momentum.unwrap_or(base.momentum),
            weight_decay: self.weight_decay.unwrap_or(base.weight_decay),
            smoothing: self.smoothing.unwrap_or(base.smoothing),
            augment,
            seed: self.seed.unwrap_or(base.seed),
        }
    }

    /// The settings of a new run.
    fn settings(&self) -> Result<Settings, Failure> {
        let augment = self.data.as_ref().unwrap_or(&Source::Digits).augment();
        let settings = self.over(Settings { augment, ..Settings::default() });
        settings.check().map_err(|e| Failure::Arguments(e.to_string()))?;
        Ok(settings)
    }

    /// The checkpoint at `path`, with the requested epochs and folder of the data set. Fails if another option
    /// contradicts it.
    fn resumed(&self, path: &Path) -> Result<Checkpoint, Failure> {
        let mut checkpoint = Checkpoint::read(path)?;
        let settings = &mut checkpoint.settings;
        let mut wanted = self.over(settings.clone());
        if wanted.epochs != settings.epochs && !settings.schedule.needs_length() && wanted.epochs > checkpoint.epoch {
            settings.epochs = wanted.epochs;
        }
        if let Some((name, asked, found)) = wanted.difference(settings) {
            let cause = format!("--resume with {name} {asked}: the run of {} has {name} {found}", path.display());
            return Err(Failure::Work(cause));
        }
        std::mem::swap(&mut settings.data, &mut wanted.data);
        Ok(checkpoint)
    }
}

/// The least interval between two drawings of the curves.
const REDRAW: Duration = Duration::from_secs(5);

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let settings = args.settings()?;
    clean_up_when_interrupted();
    let folder = match (&args.out, args.resume) {
        (Some(path), _) => Folder::claim(path.clone()),
        (None, true) => Folder::latest(&settings),
        (None, false) => Folder::fresh(&settings),
    }?;
    if !args.resume && folder.holds_run()? {
        let path = folder.path().display();
        return Err(Failure::Work(format!("--out {path}: a run exists already; --resume continues it")));
    }
    let path = folder.checkpoint();
    let goes_on = args.resume && folder.has_checkpoint()?;
    let checkpoint = goes_on.then(|| args.resumed(&path)).transpose()?;
    let settings = checkpoint.as_ref().map_or(settings, |c| c.settings.clone());
    let source: Source = settings.data.parse().map_err(|e| within(&path, e))?;
    let splits = source.read()?;
    let device = args.device.open()?;
    let mut trainer = match &checkpoint {
        Some(checkpoint) => Trainer::resume(checkpoint, &splits, &device).map_err(|e| within(&path, e))?,
        None => Trainer::new(settings, &splits, &device)?,
    };
    let history = folder.rewind(trainer.epoch())?;
    let mut output = RunOutput {
        folder,
        history,
        last: None,
        every: args.checkpoint_every,
        display: Display::new(),
        drawn: Instant::now(),
        undrawn: None,
    };
    output.introduce(&args, &trainer, &splits, device.kind());
    let outcome = trainer.run(&mut output);
    output.display.finish();
    outcome?;
    output.conclude(&mut trainer)
}

/// The output of a run: its folder and its progress.
struct RunOutput {
    folder: Folder,
    /// The metrics of the epochs so far.
    history: Vec<Metrics>,
    /// The last epoch that this process ran.
    last: Option<Metrics>,
    every: Option<usize>,
    display: Display,
    drawn: Instant,
    /// Why the curves could not be drawn, as reported.
    undrawn: Option<String>,
}

impl RunOutput {
    fn introduce(&mut self, args: &Args, trainer: &Trainer<'_>, splits: &Splits, device: &str) {
        let settings = trainer.settings();
        self.display.line(&format!(
            "{} ({} parameters) on {}: {} training and {} test images; {device}, {}; {}",
            settings.model,
            grouped(trainer.parameter_count() as u64),
            settings.data,
            grouped(splits.train.len() as u64),
            grouped(splits.test.len() as u64),
            settings.dtype,
            self.folder.path().display()
        ));
        if args.resume && trainer.step() == 0 {
            self.display.line("no checkpoint yet: starting anew");
        } else if args.resume {
            let (epoch, step) = (trainer.epoch(), trainer.step());
            self.display.line(&format!("resumed after {epoch} epochs, {step} steps"));
        }
    }

    /// Draws the curves, unless metrics are missing: then older curves are kept. A failure does not end the run; each
    /// cause is reported once.
    fn draw(&mut self, trainer: &Trainer<'_>) {
        if self.history.len() != trainer.epoch() as usize {
            return;
        }
        let settings = trainer.settings();
        let title = format!("{} on {}, seed {}", settings.model, settings.data, settings.seed);
        let problem = self.folder.draw(&title, &self.history).err().map(|e| e.to_string());
        if let Some(problem) = problem.as_ref().filter(|problem| self.undrawn.as_ref() != Some(problem)) {
            note("warning", &format!("the curves are not drawn: {problem}"));
        }
        self.undrawn = problem;
        self.drawn = Instant::now();
    }

    fn conclude(&mut self, trainer: &mut Trainer<'_>) -> Result<(), Failure> {
        self.draw(trainer);
        // Reports what this process measured: the metrics file may be another network's.
        let (accuracy, loss) = match self.last {
            Some(m) => (m.test_accuracy, m.test_loss),
            None => {
                let found = trainer.evaluate()?;
                (found.accuracy(), found.loss)
            }
        };
        let curves = if self.undrawn.is_some() { "" } else { ", curves.png, curves.svg" };
        let folder = self.folder.path().display();
        let files = format!("checkpoint.safetensors, metrics.jsonl{curves}");
        print(&format!("test accuracy {:.2} %, loss {loss:.4}; {folder}: {files}", 100.0 * accuracy))
    }
}

impl Observer for RunOutput {
    fn step(&mut self, progress: &Progress, trainer: &Trainer<'_>) -> residuum::Result<()> {
        self.display.step(progress);
        // The last step of an epoch is followed by the epoch's checkpoint.
        let due = self.every.is_some_and(|every| trainer.step().is_multiple_of(every));
        if due && progress.step < progress.steps {
            self.folder.check()?;
            trainer.checkpoint()?.write(self.folder.checkpoint())?;
        }
        Ok(())
    }

    fn epoch(&mut self, metrics: &Metrics, trainer: &Trainer<'_>) -> residuum::Result<()> {
        let checkpoint = trainer.checkpoint()?;
        self.folder.check()?;
        // The line comes before the checkpoint: a resume can drop surplus lines but not restore missing ones.
        self.folder.append(metrics)?;
        checkpoint.write(self.folder.checkpoint())?;
        self.history.push(*metrics);
        self.last = Some(*metrics);
        self.display.epoch(metrics, trainer.settings().epochs);
        if self.drawn.elapsed() > REDRAW {
            self.draw(trainer);
        }
        Ok(())
    }
}
