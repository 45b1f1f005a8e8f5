//! Runs learn, end with the same bits however often they are resumed, and are refused if they are wrong.

use std::sync::LazyLock;

use proptest::prelude::*;
use residuum::control::loss_scale::LossScale;
use residuum::data::{digits, Augment, Dataset, Images, Source, Splits};
use residuum::device::Device;
use residuum::models;
use residuum::tensor::{DType, HostData, HostTensor, StateDict};
use residuum::train::{Checkpoint, Evaluator, Metrics, Observer, Progress, Settings, Trainer};

use crate::data::message;

/// 160 digits for training, 50 for evaluation.
static FEW: LazyLock<Splits> = LazyLock::new(|| {
    let all = digits::read().unwrap();
    Splits { train: first(&all.train, 160), test: first(&all.test, 50) }
});

fn first(data: &Dataset, count: usize) -> Dataset {
    let Images::U8(pixels) = data.images() else { panic!("bytes") };
    let images = Images::U8(pixels[..64 * count].to_vec());
    Dataset::new(images, data.labels()[..count].to_vec(), 10, [1, 8, 8], data.normalize().clone()).unwrap()
}

/// Three epochs of four steps of a small network.
fn settings() -> Settings {
    let augment = Augment { pad: 1, flip: false };
    Settings { model: "resnet8_cifar".into(), epochs: 3, batch: 40, augment, seed: 4, ..Settings::default() }
}

/// Keeps all metrics, and a checkpoint after every step and epoch.
#[derive(Default)]
struct Record {
    metrics: Vec<Metrics>,
    progress: Vec<Progress>,
    checkpoints: Vec<Checkpoint>,
}

impl Observer for Record {
    fn step(&mut self, progress: &Progress, trainer: &Trainer<'_>) -> residuum::Result<()> {
        self.progress.push(*progress);
        self.checkpoints.push(trainer.checkpoint()?);
        Ok(())
    }

    fn epoch(&mut self, metrics: &Metrics, trainer: &Trainer<'_>) -> residuum::Result<()> {
        self.metrics.push(*metrics);
        self.checkpoints.push(trainer.checkpoint()?);
        Ok(())
    }
}

fn run(settings: &Settings) -> Record {
    let mut record = Record::default();
    Trainer::new(settings.clone(), &FEW, &Device::cpu()).unwrap().run(&mut record).unwrap();
    record
}

/// The metrics without times.
fn timeless(metrics: &[Metrics]) -> Vec<Metrics> {
    metrics.iter().map(|m| Metrics { images_per_second: 0.0, seconds: 0.0, ..*m }).collect()
}

#[test]
fn a_resumed_run_ends_with_the_same_bits() {
    resume_everywhere(&settings());
}

/// The first steps, at the initial loss scale, are skipped: resumed runs start with the loss scale between them.
#[test]
fn a_resumed_run_in_f16_ends_with_the_same_bits() {
    let checkpoints = resume_everywhere(&Settings { dtype: DType::F16, ..settings() });
    let scale = |c: &Checkpoint| c.loss_scale.unwrap();
    assert!(scale(&checkpoints[0]) != scale(&checkpoints[5]), "it moves: {:?}", scale(&checkpoints[5]));
}

/// Resumes the run of `settings` from each of its checkpoints, which it returns.
fn resume_everywhere(settings: &Settings) -> Vec<Checkpoint> {
    let whole = run(settings);
    let end = whole.checkpoints.last().unwrap();
    assert_eq!((end.step, end.epoch, whole.metrics.len()), (12, 3, 3));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    for stop in &whole.checkpoints {
        stop.write(&path).unwrap();
        let read = Checkpoint::read(&path).unwrap();
        assert_eq!(read, *stop);
        let mut record = Record::default();
        let mut trainer = Trainer::resume(&read, &FEW, &Device::cpu()).unwrap();
        trainer.run(&mut record).unwrap();
        assert_eq!(trainer.checkpoint().unwrap(), *end, "resumed after {} steps", stop.step);
        let rest = timeless(&whole.metrics[stop.epoch as usize..]);
        assert_eq!(timeless(&record.metrics), rest, "resumed after {} steps", stop.step);
    }
    whole.checkpoints
}

#[test]
fn a_run_with_stochastic_depth_draws_gates_and_resumes_with_the_same_bits() {
    let settings = Settings { model: "resnet8_cifar_survival05_uniform".into(), epochs: 2, ..settings() };
    let whole = run(&settings);
    let plain = run(&Settings { model: "resnet8_cifar".into(), ..settings.clone() });
    let differing = whole.progress.iter().zip(&plain.progress).filter(|(a, b)| a.loss != b.loss).count();
    assert!(differing > 4, "blocks are dropped: {differing} of 8 steps differ");
    for stop in &whole.checkpoints {
        let mut record = Record::default();
        Trainer::resume(stop, &FEW, &Device::cpu()).unwrap().run(&mut record).unwrap();
        let end = record.checkpoints.last().unwrap_or(stop);
        assert_eq!(end, whole.checkpoints.last().unwrap(), "resumed after {} steps", stop.step);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&Settings { epochs: 1, ..settings() }).checkpoints.pop().unwrap())
    };
    let one = on(1);
    assert_eq!(one, on(2));
    assert_eq!(one, on(3));
}

#[test]
fn seeds_differ_and_metrics_are_what_they_say() {
    let one = run(&Settings { epochs: 1, ..settings() });
    let other = run(&Settings { epochs: 1, seed: 5, ..settings() });
    assert_ne!(one.checkpoints[0].state, other.checkpoints[0].state);
    let (metrics, last) = (one.metrics[0], *one.progress.last().unwrap());
    assert_eq!((metrics.epoch, last.epoch, last.step, last.steps), (1, 1, 4, 4));
    assert_eq!((metrics.train_loss, metrics.train_accuracy), (last.loss, last.accuracy));
    assert_eq!(metrics.learning_rate, last.learning_rate);
    assert!((4e-7..1e-6).contains(&metrics.learning_rate), "a one-cycle ends low: {}", metrics.learning_rate);
    assert!(metrics.seconds > 0.0 && metrics.images_per_second > 0.0);
    assert!((metrics.test_accuracy * 50.0).fract() == 0.0);
}

#[test]
fn every_dtype_learns() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let metrics = run(&Settings { dtype, epochs: 8, batch: 20, ..settings() }).metrics;
        let (start, end) = (metrics[0], metrics[7]);
        assert!(end.train_loss < 0.4 * start.train_loss, "{dtype}: {} after {}", end.train_loss, start.train_loss);
        assert!(end.test_accuracy > 0.7, "{dtype}: test accuracy {}", end.test_accuracy);
    }
}

/// Three steps on the simulator and on the CPU. In f32 the two differ by rounding alone; a step multiplies the
/// difference by no more than 10 here.
#[cfg(feature = "sim")]
#[test]
fn the_simulator_trains_as_the_cpu_does() {
    use residuum::device::sim::SimOptions;
    let few = Splits { train: first(&FEW.train, 24), test: first(&FEW.test, 8) };
    let settings = Settings { epochs: 1, batch: 8, ..settings() };
    let on = |device: &Device| {
        let mut record = Record::default();
        Trainer::new(settings.clone(), &few, device).unwrap().run(&mut record).unwrap();
        record
    };
    let simulator = Device::sim(SimOptions::default()).unwrap();
    let scales = |device: &Device| -> Vec<_> {
        let mut record = Record::default();
        let settings = Settings { dtype: DType::F16, ..settings.clone() };
        Trainer::new(settings, &few, device).unwrap().run(&mut record).unwrap();
        record.checkpoints.iter().map(|c| c.loss_scale).collect()
    };
    assert_eq!(scales(&simulator), scales(&Device::cpu()), "the loss scale moves at the same steps");
    let (cpu, sim) = (on(&Device::cpu()), on(&simulator));
    for (step, (a, b)) in cpu.progress.iter().zip(&sim.progress).enumerate() {
        let bound = 1e-6 * 10f64.powi(step as i32);
        assert!((a.loss - b.loss).abs() < bound * a.loss, "step {step}: loss {} on cpu, {} on sim", a.loss, b.loss);
    }
    let mut rest = Record::default();
    let mut trainer = Trainer::resume(&sim.checkpoints[1], &few, &simulator).unwrap();
    trainer.run(&mut rest).unwrap();
    assert_eq!(rest.checkpoints.last(), sim.checkpoints.last(), "a resumed run on the simulator");
}

#[test]
fn an_evaluation_does_not_depend_on_the_batch_and_ignores_padding() {
    let checkpoint = run(&Settings { epochs: 2, ..settings() }).checkpoints.pop().unwrap();
    let model = models::find("resnet8_cifar").unwrap();
    let evaluate = |batch| {
        let mut evaluator = Evaluator::new(&model, [1, 8, 8], 10, batch, &Device::cpu(), DType::F64).unwrap();
        evaluator.load(&checkpoint.state).unwrap();
        evaluator.run(&FEW.test).unwrap()
    };
    let whole = evaluate(50);
    assert_eq!(whole.images, 50);
    for batch in [1, 7, 49, 64] {
        let found = evaluate(batch);
        assert_eq!((found.correct, found.images), (whole.correct, whole.images), "batch {batch}");
        assert!((found.loss - whole.loss).abs() < 1e-12 * whole.loss, "batch {batch}: {found:?}, {whole:?}");
    }
    let mut other = Evaluator::new(&model, [1, 8, 8], 12, 50, &Device::cpu(), DType::F32).unwrap();
    assert_eq!(message(other.run(&FEW.test)), "classes: 12 in the network, 10 in the data");
}

#[test]
fn impossible_runs_are_refused() {
    let start = |change: fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        message(Trainer::new(settings, &FEW, &Device::cpu()))
    };
    assert_eq!(start(|s| s.batch = 0), "batch: 0, expected at least 1");
    assert_eq!(start(|s| s.batch = 161), "batch: 161, expected 1..=160 (the number of training images)");
    assert_eq!(start(|s| s.epochs = 0), "epochs: 0, expected at least 1");
    assert_eq!(start(|s| s.learning_rate = 0.0), "learning rate: 0, expected a number above 0");
    assert!(start(|s| s.learning_rate = f64::NAN).starts_with("learning rate: NaN"));
    assert!(start(|s| s.momentum = 1.5).starts_with("momentum: 1.5"));
    assert!(start(|s| s.smoothing = 1.0).contains("smoothing: 1, expected"));
    assert!(start(|s| s.augment.pad = usize::MAX).contains("expected at most 65536"));
    assert!(start(|s| s.schedule = "cosine+warmup:3".parse().unwrap()).contains("a warm-up of 3 epochs in a run of 3"));
    assert!(start(|s| s.model = "resnet9_cifar".into()).contains("unknown model `resnet9_cifar`"));
}

/// Ends a run in one of its steps.
enum Ending {
    Error(usize),
    Panic(usize),
    Never,
}

impl Observer for Ending {
    fn step(&mut self, _: &Progress, trainer: &Trainer<'_>) -> residuum::Result<()> {
        match self {
            Self::Error(step) if *step == trainer.step() => {
                Err(residuum::Error::invalid("observer", format!("ends step {step}")))
            }
            Self::Panic(step) if *step == trainer.step() => panic!("the observer panics in step {step}"),
            _ => Ok(()),
        }
    }

    fn epoch(&mut self, _: &Metrics, _: &Trainer<'_>) -> residuum::Result<()> {
        Ok(())
    }
}

/// The end of a run of 32 steps an epoch, as text. Fails if it takes a minute: an epoch takes a second, and the thread
/// that makes its batches must not wait for a step that never comes.
fn ending(change: fn(&mut Settings), mut observer: Ending) -> String {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut settings = Settings { batch: 5, epochs: 1, schedule: "constant".parse().unwrap(), ..settings() };
        change(&mut settings);
        let mut trainer = Trainer::new(settings, &FEW, &Device::cpu()).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| trainer.run(&mut observer)));
        send.send(match outcome {
            Ok(result) => message(result),
            Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
        })
    });
    receive.recv_timeout(std::time::Duration::from_secs(60)).expect("the run ends")
}

#[test]
fn a_run_that_fails_in_any_step_ends_at_once() {
    for step in [1, 2, 27, 28, 29, 31, 32] {
        assert_eq!(ending(|_| (), Ending::Error(step)), format!("observer: ends step {step}"));
        assert_eq!(ending(|_| (), Ending::Panic(step)), format!("the observer panics in step {step}"));
    }
    // The loss of the second or a later step is not finite.
    let text = ending(|s| s.learning_rate = 1e30, Ending::Never);
    assert!(text.starts_with("the loss became ") && text.contains(" at step "), "{text}");
    assert!(text.contains("learning rate 1e30 (the first layer"), "{text}");
}

#[test]
fn a_network_that_is_not_finite_becomes_no_checkpoint() {
    // One step: its loss is finite, its parameters are too large.
    let settings =
        Settings { learning_rate: 1e20, schedule: "constant".parse().unwrap(), batch: 160, epochs: 1, ..settings() };
    let mut trainer = Trainer::new(settings.clone(), &FEW, &Device::cpu()).unwrap();
    let mut record = Record::default();
    let text = message(trainer.run(&mut record));
    assert!(text.starts_with("the logits of 50 of 50 test images are not finite at step 1, learning rate 1"), "{text}");
    assert!(text.contains("(the first layer whose output is not finite: "), "{text}");
    assert_eq!((record.checkpoints.len(), record.metrics.len()), (1, 0), "one in the step, none of the epoch");

    // A learning rate that overflows f32 leaves infinities in the first step.
    let settings = Settings { learning_rate: 1e300, ..settings };
    let mut trainer = Trainer::new(settings, &FEW, &Device::cpu()).unwrap();
    let mut record = Record::default();
    let text = message(trainer.run(&mut record));
    assert!(text.contains(" is not finite at step 1, learning rate 1e300") && text.contains("first layer"), "{text}");
    assert_eq!(record.checkpoints.len(), 0);
}

#[test]
fn the_first_layer_that_is_not_finite_is_named() {
    let model = models::find("resnet8_cifar").unwrap();
    let state = run(&Settings { epochs: 1, ..settings() }).checkpoints.pop().unwrap().state;
    let image = HostTensor::f32([1, 1, 8, 8], (0..64).map(|i| i as f32 / 32.0 - 1.0).collect());
    let blamed = |tensor: &str, value: f32, dtype| {
        let mut state = state.clone();
        let HostData::F32(values) = &mut state.get_mut(tensor).unwrap().data else { panic!("f32") };
        values[0] = value;
        model.first_non_finite(&state, &image, dtype).unwrap()
    };
    assert_eq!(blamed("conv1.weight", 1.0, DType::F32), None);
    assert_eq!(blamed("conv1.weight", f32::NAN, DType::F32).as_deref(), Some("conv1"));
    assert_eq!(blamed("layer2.0.bn1.bias", f32::INFINITY, DType::F32).as_deref(), Some("layer2.0.bn1"));
    assert_eq!(blamed("fc.bias", f32::NAN, DType::F64).as_deref(), Some("fc"));
    assert_eq!(blamed("layer1.0.bn2.bias", 1e5, DType::F32), None);
    assert_eq!(blamed("layer1.0.bn2.bias", 1e5, DType::F16).as_deref(), Some("layer1.0.bn2"), "more than f16 holds");
}

#[test]
fn an_evaluation_counts_images_whose_logits_are_not_finite() {
    let mut state = run(&Settings { epochs: 1, ..settings() }).checkpoints.pop().unwrap().state;
    let model = models::find("resnet8_cifar").unwrap();
    let mut evaluator = Evaluator::new(&model, [1, 8, 8], 10, 7, &Device::cpu(), DType::F32).unwrap();
    evaluator.load(&state).unwrap();
    assert_eq!(evaluator.run(&FEW.test).unwrap().non_finite, 0);
    assert_eq!(evaluator.first_non_finite(&state).unwrap(), None);
    let HostData::F32(bias) = &mut state.get_mut("fc.bias").unwrap().data else { panic!("f32") };
    bias[3] = f32::INFINITY;
    evaluator.load(&state).unwrap();
    let found = evaluator.run(&FEW.test).unwrap();
    assert_eq!((found.non_finite, found.correct, found.images), (50, 0, 50));
    assert_eq!(evaluator.first_non_finite(&state).unwrap().as_deref(), Some("fc"));
}

/// The last block's gradients overflow f16 at any scale, while its outputs and the loss are in range.
#[test]
fn a_run_whose_every_step_is_skipped_says_so() {
    let mut checkpoint = Trainer::new(Settings { dtype: DType::F16, ..settings() }, &FEW, &Device::cpu())
        .and_then(|trainer| trainer.checkpoint())
        .unwrap();
    assert_eq!(checkpoint.loss_scale, Some(LossScale::default()));
    for (name, factor) in [("layer3.0.conv2.weight", 1e-4), ("layer3.0.bn2.weight", 1e3), ("fc.weight", 1e3)] {
        let tensor = checkpoint.state.get_mut(name).unwrap();
        let scaled = tensor.to_real::<f32>().iter().map(|v| v * factor).collect();
        *tensor = HostTensor::f32(tensor.shape.clone(), scaled);
    }
    checkpoint.loss_scale = Some(LossScale { scale: 4.0, good_steps: 9 });
    let mut trainer = Trainer::resume(&checkpoint, &FEW, &Device::cpu()).unwrap();
    let text = message(trainer.run(&mut Record::default()));
    assert!(text.starts_with("loss scale: at its minimum by step 4, and gradients are not finite"), "{text}");
    let after = trainer.checkpoint().unwrap();
    assert_eq!(after.state["fc.weight"], checkpoint.state["fc.weight"]);
    assert!(after.velocity.is_empty());
}

#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let good = run(&Settings { epochs: 1, ..settings() }).checkpoints.pop().unwrap();
    let resume = |change: &dyn Fn(&mut Checkpoint)| {
        let mut checkpoint = good.clone();
        change(&mut checkpoint);
        message(Trainer::resume(&checkpoint, &FEW, &Device::cpu()))
    };
    let text = resume(&|c| c.settings.model = "resnet14_cifar".into());
    assert!(text.contains("tensor `layer1.1.") && text.contains("missing"), "{text}");
    assert!(resume(&|c| c.classes = 12).contains("10 classes, shape [1, 8, 8]; the checkpoint is of 12 classes"));
    assert!(resume(&|c| c.input = [3, 8, 8]).contains("shape [3, 8, 8]"));
    assert!(resume(&|c| c.step = 5).contains("inconsistent with a run of 1 epochs of 4 steps"));
    assert!(resume(&|c| c.sums.steps = usize::MAX).contains("inconsistent"));
    assert!(resume(&|c| drop(c.velocity.remove("conv1.weight"))).contains("velocity `conv1.weight`: missing"));
    let flat = HostTensor::f32([9], vec![0.0; 9]);
    assert!(resume(&|c| drop(c.state.insert("conv1.weight".into(), flat.clone()))).contains("shape [9], expected"));
}

fn two_tensors() -> Checkpoint {
    Checkpoint {
        settings: Settings { learning_rate: 0.1 + 0.2, seed: u64::MAX, ..settings() },
        classes: 10,
        input: [1, 8, 8],
        normalize: digits::normalize(),
        step: 5,
        epoch: 1,
        sums: residuum::train::checkpoint::Sums { loss: 0.1, correct: 7.0, steps: 1 },
        state: StateDict::from([
            ("a.weight".into(), HostTensor::f32([2], vec![f32::NAN, -0.0])),
            ("a.num_batches_tracked".into(), HostTensor::i64([], vec![5])),
        ]),
        velocity: StateDict::from([("a.weight".into(), HostTensor::f32([2], vec![1.0, 2.0]))]),
        loss_scale: None,
    }
}

#[test]
fn checkpoints_keep_every_bit_and_say_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.safetensors");
    let checkpoint = two_tensors();
    checkpoint.write(&path).unwrap();
    let read = Checkpoint::read(&path).unwrap();
    assert_eq!(read.settings, checkpoint.settings);
    let HostData::F32(weight) = &read.state["a.weight"].data else { panic!("f32") };
    assert_eq!(weight.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), [f32::NAN.to_bits(), (-0.0f32).to_bits()]);
    let bytes = std::fs::read(&path).unwrap();
    read.write(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    let (tensors, metadata) = models::weights::read_with_metadata(&path).unwrap();
    assert!(tensors.contains_key("optim.velocity.a.weight"));
    assert_eq!(residuum::train::checkpoint::without_optimizer(tensors).len(), 2);
    for (key, value) in [("model", "resnet8_cifar"), ("seed", "18446744073709551615"), ("input", "1,8,8")] {
        assert_eq!(metadata[key], value);
    }
    assert!(metadata["library"].starts_with("residuum "));
}

#[test]
fn a_weights_file_is_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    models::weights::write(&path, &two_tensors().state, &Default::default()).unwrap();
    let text = message(Checkpoint::read(&path));
    assert!(text.ends_with("w.safetensors: metadata `input`: missing: not a checkpoint of a run"), "{text}");
}

#[test]
fn every_truncation_of_a_checkpoint_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.safetensors");
    two_tensors().write(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        message(Checkpoint::read(&path));
    }
}

#[test]
fn settings_differ_by_name_and_the_folder_of_the_data_does_not_count() {
    let one = Settings { data: "cifar10:/a".into(), ..settings() };
    let other = Settings { data: "cifar10:/b".into(), ..settings() };
    assert_eq!(one.difference(&other), None);
    let other = Settings { model: "resnet20_cifar".into(), batch: 7, ..other };
    let expected = ("model".to_string(), "resnet8_cifar".to_string(), "resnet20_cifar".to_string());
    assert_eq!(one.difference(&other), Some(expected));
    assert_eq!(Settings::from_metadata(&one.to_metadata()).unwrap(), one);
    assert!(Source::Digits.augment() == Augment { pad: 1, flip: false });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_of_a_checkpoint_give_an_error_or_a_checkpoint(at: proptest::sample::Index, flip in 1u8..=255) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.safetensors");
        two_tensors().write(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        std::fs::write(&path, bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::read(&path) {
            // No trainer accepts the checkpoint: its tensors are not the network's.
            prop_assert!(Trainer::resume(&checkpoint, &FEW, &Device::cpu()).is_err());
        }
    }
}
