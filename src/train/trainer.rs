//! Runs: training and evaluation, step by step.

use std::time::{Duration, Instant};

use super::batches::Batches;
use super::checkpoint::{Checkpoint, Sums};
use super::evaluate::{Evaluation, Evaluator};
use super::metrics::{Metrics, Progress};
use super::schedule::Length;
use super::settings::Settings;
use crate::control::loss_scale;
use crate::data::{Batch, Dataset, Loader, Splits};
use crate::device::Device;
use crate::graph::{Graph, Mode, Program};
use crate::models::{self, BuildOptions, Model};
use crate::tensor::{HostTensor, StateDict};
use crate::{Error, Result};

/// Callbacks of a run. An error ends the run, which returns it.
///
/// ```
/// use residuum::train::{Metrics, Observer, Progress, Trainer};
///
/// /// Keeps the metrics of all epochs and writes a checkpoint every 100 steps.
/// struct Keep(Vec<Metrics>);
///
/// impl Observer for Keep {
///     fn step(&mut self, _: &Progress, trainer: &Trainer<'_>) -> residuum::Result<()> {
///         match trainer.step().is_multiple_of(100) {
///             true => trainer.checkpoint()?.write("checkpoint.safetensors"),
///             false => Ok(()),
///         }
///     }
///
///     fn epoch(&mut self, metrics: &Metrics, _: &Trainer<'_>) -> residuum::Result<()> {
///         self.0.push(*metrics);
///         Ok(())
///     }
/// }
/// ```
pub trait Observer {
    /// Called after each step. A checkpoint of `trainer` can be taken here.
    fn step(&mut self, progress: &Progress, trainer: &Trainer<'_>) -> Result<()> {
        let _ = (progress, trainer);
        Ok(())
    }

    /// Called after each epoch and its evaluation.
    fn epoch(&mut self, metrics: &Metrics, trainer: &Trainer<'_>) -> Result<()>;
}

/// A training run. Equal settings, images and device give the same bits, also if the run was interrupted and resumed.
///
/// An epoch takes full batches in an order of its own and drops left-over images. The [module](super) has an example.
#[derive(Debug)]
pub struct Trainer<'a> {
    settings: Settings,
    splits: &'a Splits,
    model: Model,
    loader: Loader<'a>,
    length: Length,
    parameter_count: usize,
    program: Program,
    evaluator: Evaluator,
    step: usize,
    sums: Sums,
}

impl<'a> Trainer<'a> {
    /// A new run, with initial weights. Fails on invalid settings, and if the network does not fit the images.
    pub fn new(settings: Settings, splits: &'a Splits, device: &Device) -> Result<Self> {
        let (mut trainer, state) = Self::prepare(settings, splits, device)?;
        trainer.program.load(&state)?;
        trainer.draw_gates_from(0)?;
        Ok(trainer)
    }

    /// Resumes the run of `checkpoint`. Fails if its tensors are not the network's, or the images are not of its kind.
    pub fn resume(checkpoint: &Checkpoint, splits: &'a Splits, device: &Device) -> Result<Self> {
        let Checkpoint { settings, classes, input, step, sums, .. } = checkpoint;
        let (found, shape) = (splits.train.classes(), splits.train.shape());
        Error::check(found == *classes && shape == *input, "data", || {
            format!("{found} classes, shape {shape:?}; the checkpoint is of {classes} classes, shape {input:?}")
        })?;
        let (mut trainer, _) = Self::prepare(settings.clone(), splits, device)?;
        trainer.program.load(&checkpoint.state)?;
        trainer.program.load_velocity(&checkpoint.velocity)?;
        if let Some(loss_scale) = checkpoint.loss_scale {
            trainer.program.load_loss_scale(loss_scale)?;
        }
        let steps = trainer.length.steps;
        let epochs = checkpoint.epoch as usize;
        let consistent = sums.steps <= steps && epochs * steps + sums.steps == *step && *step <= trainer.length.total();
        Error::check(consistent, "step of the checkpoint", || {
            let run = format!("a run of {} epochs of {steps} steps", settings.epochs);
            format!("{step} ({} after {epochs} epochs), inconsistent with {run}", sums.steps)
        })?;
        (trainer.step, trainer.sums) = (*step, *sums);
        trainer.draw_gates_from(*step)?;
        Ok(trainer)
    }

    /// Draws the gates of stochastic depth on the device from `step` on.
    fn draw_gates_from(&mut self, step: usize) -> Result<()> {
        Error::check(u32::try_from(step).is_ok(), "step", || format!("{step}, expected less than 2^32"))?;
        self.program.draw_gates(self.settings.seed, step as u32)
    }

    /// The compiled run, and its initial weights.
    fn prepare(settings: Settings, splits: &'a Splits, device: &Device) -> Result<(Self, StateDict)> {
        settings.check()?;
        let train = &splits.train;
        let alike = splits.test.classes() == train.classes() && splits.test.shape() == train.shape();
        Error::check(alike, "data", || "the test images are not of the training images' shape and classes".into())?;
        let model = models::find(&settings.model)?;
        let loader = Loader::train(train, settings.batch, settings.augment, settings.seed)?;
        let mut graph = Self::graph(&model, &settings, train)?;
        graph.differentiate()?;
        let state = model.initialise(&graph, settings.seed);
        let parameter_count = graph.parameter_count();
        let program = Program::compile(&graph, device, settings.dtype, Some(settings.optimizer()?))?;
        let evaluator = Evaluator::new(&model, train.shape(), train.classes(), settings.batch, device, settings.dtype)?;
        let length = Length { epochs: settings.epochs, steps: loader.steps() };
        let (step, sums) = (0, Sums::default());
        let run = Self { settings, splits, model, loader, length, parameter_count, program, evaluator, step, sums };
        Ok((run, state))
    }

    /// The training graph, with its loss.
    fn graph(model: &Model, settings: &Settings, train: &Dataset) -> Result<Graph> {
        let options = BuildOptions { loss: true, smoothing: settings.smoothing, grad_scale: 1.0 };
        model.build(Mode::Train, settings.batch, train.shape(), train.classes(), options)
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The length of the run.
    pub fn length(&self) -> Length {
        self.length
    }

    /// The number of trained parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameter_count
    }

    /// The steps done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// The epochs done, evaluation included.
    pub fn epoch(&self) -> u32 {
        ((self.step - self.sums.steps) / self.length.steps) as u32
    }

    /// The state of the run. Fails with [`Error::Diverged`] if a number in it is not finite: good checkpoints remain.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let (state, velocity) = (self.program.state()?, self.program.velocity()?);
        for (kind, tensors) in [("tensor", &state), ("velocity", &velocity)] {
            if let Some((name, _)) = tensors.iter().find(|(_, tensor)| tensor.first_non_finite().is_some()) {
                return Err(self.diverged(format!("{kind} `{name}` is not finite"), name, &state));
            }
        }
        let (settings, train) = (self.settings.clone(), &self.splits.train);
        let (classes, input, normalize) = (train.classes(), train.shape(), train.normalize().clone());
        let (step, epoch, sums, loss_scale) = (self.step, self.epoch(), self.sums, self.program.loss_scale()?);
        Ok(Checkpoint { settings, classes, input, normalize, step, epoch, sums, state, velocity, loss_scale })
    }

    /// Runs to the end.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<()> {
        while self.epoch() < self.length.epochs {
            let metrics = self.run_epoch(observer)?;
            observer.epoch(&metrics, self)?;
        }
        Ok(())
    }

    /// Evaluates the network on the test images. Fails with [`Error::Diverged`] if a logit is not finite.
    pub fn evaluate(&mut self) -> Result<Evaluation> {
        let state = self.program.state()?;
        self.evaluator.load(&state)?;
        let found = self.evaluator.run(&self.splits.test)?;
        if found.non_finite > 0 {
            let what = format!("the logits of {} of {} test images are not finite", found.non_finite, found.images);
            let layer = self.evaluator.first_non_finite(&state).ok().flatten();
            return Err(Error::Diverged { what, step: self.step, learning_rate: self.last_rate(), layer });
        }
        Ok(found)
    }

    /// The first layer whose output is not finite in the last step, which took `batch` and had a non-finite loss. It is
    /// found on the CPU from the weights, which such a step does not change; `None` if all outputs are finite there.
    fn lost_in_step(&self, batch: &Batch) -> Result<Option<String>> {
        let graph = Self::graph(&self.model, &self.settings, &self.splits.train)?;
        let mut state = self.program.state()?;
        // The step changed the running statistics, which training does not read.
        for buffer in graph.buffers() {
            state.insert(buffer.name.clone(), HostTensor::f32(buffer.shape.clone(), vec![0.0; buffer.shape.len()]));
        }
        let inputs = (&batch.input, Some((&*batch.labels, &*self.program.gates()?)));
        models::first_non_finite(&graph, &state, self.settings.dtype, inputs)
    }

    /// The error of a network `state` whose tensor `name` is not finite.
    fn diverged(&self, what: String, name: &str, state: &StateDict) -> Error {
        let image = Loader::test(&self.splits.test, 1).ok().and_then(|loader| loader.in_order().next());
        // A failed search leaves the layer out of the error.
        let find = |image: Batch| self.model.first_non_finite(state, &image.input, self.settings.dtype).ok().flatten();
        let layer = image.and_then(find).or_else(|| name.rsplit_once('.').map(|(layer, _)| layer.into()));
        Error::Diverged { what, step: self.step, learning_rate: self.last_rate(), layer }
    }

    fn last_rate(&self) -> f64 {
        self.rate(self.step.saturating_sub(1))
    }

    /// Runs to the end of the epoch and evaluates; calls [`Observer::step`], but not [`Observer::epoch`]. Fails with
    /// [`Error::Diverged`] if a loss or a logit is not finite.
    pub fn run_epoch(&mut self, observer: &mut dyn Observer) -> Result<Metrics> {
        let start = Instant::now();
        let (epoch, first) = (self.epoch(), self.sums.steps);
        let loader = self.loader.clone();
        let order = loader.order(epoch);
        let batch = |step| loader.batch(&order, epoch, step);
        let training = std::thread::scope(|scope| {
            // Dropped with the last step, even if it fails.
            let mut batches = Batches::new(scope, first..loader.steps(), &batch);
            self.steps(&mut || batches.next(), observer)
        })?;
        self.check_loss_scale()?;
        let test = self.evaluate()?;
        let Sums { loss, correct, steps } = std::mem::take(&mut self.sums);
        let images = ((steps - first) * self.settings.batch) as f64;
        Ok(Metrics {
            epoch: epoch + 1,
            train_loss: loss / steps as f64,
            train_accuracy: correct / (steps * self.settings.batch) as f64,
            test_loss: test.loss,
            test_accuracy: test.accuracy(),
            learning_rate: self.last_rate(),
            images_per_second: images / training.as_secs_f64(),
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// Takes a step on each of `batches`; returns their time without the observer's.
    ///
    /// While the device runs a step, the next batch is made, rounded and copied to the other place of the inputs.
    fn steps(&mut self, batches: &mut dyn FnMut() -> Option<Batch>, observer: &mut dyn Observer) -> Result<Duration> {
        let mut time = Duration::ZERO;
        let mut start = Instant::now();
        let first = self.sums.steps;
        let mut next = self.feed(batches)?;
        while let Some(batch) = next {
            let rate = self.rate(self.step);
            self.program.set_learning_rate(rate)?;
            self.program.run()?;
            next = self.feed(batches)?;
            let [loss, correct] = self.results()?;
            self.step += 1;
            if !loss.is_finite() {
                let what = format!("the loss became {loss}");
                // A failed search leaves the layer out of the error.
                let layer = self.lost_in_step(&batch).ok().flatten();
                return Err(Error::Diverged { what, step: self.step, learning_rate: rate, layer });
            }
            self.sums =
                Sums { loss: self.sums.loss + loss, correct: self.sums.correct + correct, steps: self.sums.steps + 1 };
            time += start.elapsed();
            let Sums { loss, correct, steps } = self.sums;
            let progress = Progress {
                epoch: self.epoch() + 1,
                epochs: self.length.epochs,
                step: steps,
                steps: self.length.steps,
                loss: loss / steps as f64,
                accuracy: correct / (steps * self.settings.batch) as f64,
                learning_rate: rate,
                images_per_second: ((steps - first) * self.settings.batch) as f64 / time.as_secs_f64(),
            };
            observer.step(&progress, self)?;
            start = Instant::now();
        }
        Ok(time)
    }

    /// Sets the next batch as the input of the next step, and returns it.
    fn feed(&mut self, batches: &mut dyn FnMut() -> Option<Batch>) -> Result<Option<Batch>> {
        let Some(batch) = batches() else { return Ok(None) };
        self.program.set_input("input", &batch.input)?;
        self.program.set_labels(&batch.labels)?;
        Ok(Some(batch))
    }

    /// Waits for the step: its loss and its number of correctly classified images.
    fn results(&self) -> Result<[f64; 2]> {
        let scalar = |name: &str| Ok::<f64, Error>(self.program.output(name)?.to_real::<f64>()[0]);
        Ok([scalar("loss")?, scalar("correct")?])
    }

    /// Fails if gradients are not finite even at the least loss scale: every step would be skipped.
    fn check_loss_scale(&self) -> Result<()> {
        let stuck = Some(loss_scale::LossScale { scale: loss_scale::LEAST, good_steps: 0 });
        Error::check(self.program.loss_scale()? != stuck, "loss scale", || {
            let problem = format!("at its minimum by step {}, and gradients are not finite", self.step);
            format!("{problem}; try a lower learning rate or bf16")
        })
    }

    fn rate(&self, step: usize) -> f64 {
        self.settings.schedule.rate(self.settings.learning_rate, step, self.length)
    }
}
