//! Whole networks against PyTorch in f64: logits, loss, every gradient, running statistics and four SGD steps.
//!
//! `tests/golden/README.md` describes the files. The `cpu` device runs all networks, the reference executor (plain
//! loops) the small ones. With RESIDUUM_LONG=1 the large networks run as well.

use std::collections::BTreeMap;
use std::time::Instant;

use residuum::control::sgd::{Sgd, Spec};
use residuum::device::Device;
use residuum::graph::{Graph, Interpreter, Mode, Program};
use residuum::models::{self, BuildOptions, Model};
use residuum::tensor::philox::fnv1a;
use residuum::tensor::{DType, HostTensor, StateDict};
use serde_json::Value;

/// Relative l2 error of logits, losses and running statistics.
const FORWARD: f64 = 1e-9;
/// Relative l2 error of a gradient.
const BACKWARD: f64 = 1e-7;
/// Relative error of the losses after one to three SGD steps in a network that amplifies rounding (see [`CHAOS`]), by
/// 30 to 900 a step. On resnet101 two float64 runs of torch that differ in one bit of the weights, or in the machine,
/// end 1e-11, 4e-9 and 3e-7 apart.
const CHAOTIC_STEPS: [f64; 3] = [1e-9, 1e-7, 1e-5];
/// A network amplifies rounding if torch's float32 gradients are off by more than this (relative l2, median).
const CHAOS: f64 = 1e-3;
/// A gradient below this share of the largest one is 0 but for rounding: the gradient of a bias before a batch norm. It
/// has no relative error; the library's must be as small.
const NOISE: f64 = 1e-12;

/// The executors of a network.
#[derive(Clone, Copy)]
enum Cost {
    /// The reference executor and the `cpu` device.
    Small,
    /// The `cpu` device.
    Medium,
    /// The `cpu` device, with RESIDUUM_LONG=1 only.
    Long,
}

macro_rules! goldens {
    ($($model:ident: $cost:ident;)*) => {
        $(#[test]
        fn $model() {
            check(stringify!($model), Cost::$cost);
        })*

        /// Every file is tested and every test has its file.
        #[test]
        fn every_file_has_a_test() {
            let tested = std::collections::BTreeSet::from([$(stringify!($model).to_string()),*]);
            let files = std::fs::read_dir(folder()).unwrap().filter_map(|entry| {
                entry.unwrap().file_name().to_str().unwrap().strip_suffix(".json").map(String::from)
            });
            assert_eq!(files.collect::<std::collections::BTreeSet<_>>(), tested);
        }
    };
}

goldens! {
    alexnet: Long;
    densenet121: Small;
    densenet169: Medium;
    densenet40_k12_cifar: Small;
    densenet_bc100_k12_cifar: Medium;
    plain20_cifar: Small;
    preact_resnet164_cifar: Medium;
    resnet18: Small;
    resnet20_cifar: Small;
    resnet20_cifar_bn_after_add: Small;
    resnet20_cifar_conv1x1: Small;
    resnet20_cifar_full_preact: Small;
    resnet20_cifar_option_b: Small;
    resnet20_cifar_relu_before_add: Small;
    resnet20_cifar_relu_only_preact: Small;
    resnet20_cifar_survival05: Small;
    resnet34: Medium;
    resnet50: Medium;
    resnet50_v1: Medium;
    resnet56_cifar: Small;
    resnet101: Medium;
    resnet110_cifar: Medium;
    resnext29_8x64d_cifar: Long;
    resnext50_32x4d: Small;
    vgg11: Long;
    vgg16: Long;
    vgg16_bn: Long;
    wide_resnet50_2: Long;
}

fn folder() -> std::path::PathBuf {
    crate::machine::root().join("tests/golden")
}

fn check(name: &str, cost: Cost) {
    if matches!(cost, Cost::Long) && std::env::var_os("RESIDUUM_LONG").is_none() {
        eprintln!("{name}: skipped without RESIDUUM_LONG=1");
        return;
    }
    let golden = Golden::load(name);
    let model = models::find(name).unwrap();
    golden.check_names(&model);
    if matches!(cost, Cost::Small) {
        golden.check_interpreter(&model);
    }
    golden.check_program(&model);
}

/// A tensor's norm, sum and some of its elements.
struct Summary {
    l2: f64,
    sum: f64,
    samples: Vec<(usize, f64)>,
}

/// A golden file.
struct Golden {
    name: String,
    seed: u64,
    input: [usize; 4],
    classes: usize,
    labels: Vec<i32>,
    parameters: Vec<(String, Vec<usize>)>,
    buffers: Vec<(String, Vec<usize>)>,
    parameter_count: usize,
    eval_logits: Summary,
    train_logits: Summary,
    loss: f64,
    gradients: BTreeMap<String, Summary>,
    running: BTreeMap<String, Summary>,
    learning_rate: f64,
    sgd: Sgd,
    sgd_losses: [f64; 4],
    /// How far torch's float32 gradients are from these.
    noise: f64,
}

impl Golden {
    fn load(name: &str) -> Self {
        let path = folder().join(format!("{name}.json"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["model"], name);
        let number = |v: &Value| v.as_f64().unwrap();
        let sgd = &json["sgd"];
        Self {
            name: name.into(),
            seed: json["seed"].as_u64().unwrap(),
            input: extents(&json["input_shape_nchw"]).try_into().unwrap(),
            classes: json["classes"].as_u64().unwrap() as usize,
            labels: list(&json["labels"]).iter().map(|v| v.as_i64().unwrap() as i32).collect(),
            parameters: shapes(&json["parameters"]),
            buffers: shapes(&json["buffers"]),
            parameter_count: json["parameter_count"].as_u64().unwrap() as usize,
            eval_logits: summary(&json["eval_logits"]),
            train_logits: summary(&json["train_logits"]),
            loss: number(&json["loss"]),
            gradients: summaries(&json["gradients"]),
            running: summaries(&json["running"]),
            learning_rate: number(&sgd["lr"]),
            sgd: Sgd::new(Spec {
                momentum: number(&sgd["momentum"]),
                dampening: 0.0,
                nesterov: false,
                weight_decay: number(&sgd["weight_decay"]),
            })
            .unwrap(),
            sgd_losses: std::array::from_fn(|i| number(&json["sgd_losses"][i])),
            noise: number(&json["float32_noise"]["gradient_median"]),
        }
    }

    fn build(&self, model: &Model, mode: Mode) -> Graph {
        let [n, c, h, w] = self.input;
        let options = BuildOptions { loss: mode == Mode::Train, ..Default::default() };
        let mut graph = model.build(mode, n, [c, h, w], self.classes, options).unwrap();
        if mode == Mode::Train {
            graph.differentiate().unwrap();
        }
        graph
    }

    fn state(&self) -> StateDict {
        let tensors = self.parameters.iter().chain(&self.buffers);
        tensors.map(|(name, shape)| (name.clone(), fill(name, shape, self.seed))).collect()
    }

    fn images(&self) -> HostTensor {
        fill("input", &self.input, self.seed)
    }

    fn check_names(&self, model: &Model) {
        let graph = self.build(model, Mode::Infer);
        let mut found: Vec<_> = graph.parameters().iter().map(|p| (p.name.clone(), p.shape.dims().to_vec())).collect();
        let mut expected = self.parameters.clone();
        if self.parameters.iter().any(|(name, _)| name == "norm.weight") {
            // In these files the stem's batch norm follows the units; torchvision has no such network.
            found.sort();
            expected.sort();
        }
        assert_eq!(found, expected);
        assert_eq!(graph.parameter_count(), self.parameter_count);
        let found: BTreeMap<_, _> = graph.buffers().iter().map(|b| (b.name.clone(), b.shape.dims().to_vec())).collect();
        let expected = self.buffers.iter().filter(|(name, _)| !name.ends_with("num_batches_tracked"));
        assert_eq!(found, expected.cloned().collect());
        let state = self.state();
        assert_eq!(model.classes_of(&state).unwrap(), self.classes);
        assert_eq!(model.channels_of(&state).unwrap(), self.input[1]);
        let classes = self.classes as f64;
        let labels: Vec<_> = (0..self.input[0]).map(|i| (unit("labels", self.seed, i) * classes) as i32).collect();
        assert_eq!(labels, self.labels);
    }

    /// The `cpu` device: fused and planned.
    fn check_program(&self, model: &Model) {
        let start = Instant::now();
        let mut worst = Worst::default();
        let compile = |graph: &Graph, optimizer: Option<Sgd>| {
            let mut program = Program::compile(graph, &Device::cpu(), DType::F64, optimizer).unwrap();
            program.load(&self.state()).unwrap();
            program.set_input("input", &self.images()).unwrap();
            program
        };
        let mut program = compile(&self.build(model, Mode::Infer), None);
        program.run().unwrap();
        worst.compare("eval_logits", &program.output("logits").unwrap(), &self.eval_logits, FORWARD);
        drop(program);

        let mut program = compile(&self.build(model, Mode::Train), Some(self.sgd));
        program.set_labels(&self.labels).unwrap();
        program.set_learning_rate(self.learning_rate).unwrap();
        program.run().unwrap();
        worst.compare("train_logits", &program.output("logits").unwrap(), &self.train_logits, FORWARD);
        worst.scalar("loss", first(&program.output("loss").unwrap()), self.loss, FORWARD);
        self.compare_gradients(&mut worst, &program.gradients().unwrap());
        self.compare_running(&mut worst, &program.state().unwrap());
        let [before, after @ ..] = self.sgd_losses;
        worst.scalar("loss before a step", self.loss, before, FORWARD);
        let tolerances = if self.noise > CHAOS { CHAOTIC_STEPS } else { [FORWARD; 3] };
        for ((step, expected), tolerance) in (1..).zip(after).zip(tolerances) {
            program.run().unwrap();
            let found = first(&program.output("loss").unwrap());
            worst.scalar(&format!("loss after step {step}"), found, expected, tolerance);
        }
        worst.report(&self.name, "cpu", start);
    }

    /// The reference executor: unfused, op by op.
    fn check_interpreter(&self, model: &Model) {
        let start = Instant::now();
        let mut worst = Worst::default();
        let graph = self.build(model, Mode::Infer);
        let mut eval = Interpreter::<f64>::new(&graph, DType::F64);
        eval.load(&self.state()).unwrap();
        eval.set_input("input", &self.images()).unwrap();
        eval.run();
        worst.compare("eval_logits", &eval.output("logits").unwrap(), &self.eval_logits, FORWARD);

        let graph = self.build(model, Mode::Train);
        let mut train = Interpreter::<f64>::new(&graph, DType::F64);
        train.load(&self.state()).unwrap();
        train.set_input("input", &self.images()).unwrap();
        train.set_labels(&self.labels).unwrap();
        train.run();
        worst.compare("train_logits", &train.output("logits").unwrap(), &self.train_logits, FORWARD);
        worst.scalar("loss", first(&train.output("loss").unwrap()), self.loss, FORWARD);
        self.compare_gradients(&mut worst, &train.gradients());
        self.compare_running(&mut worst, &train.state());
        worst.report(&self.name, "reference", start);
    }

    fn compare_gradients(&self, worst: &mut Worst, found: &StateDict) {
        assert!(found.keys().eq(self.gradients.keys()), "names of the gradients");
        let noise = NOISE * self.gradients.values().map(|s| s.l2).fold(0.0, f64::max);
        for (name, expected) in &self.gradients {
            let shape = &self.parameters.iter().find(|(n, _)| n == name).unwrap().1;
            assert_eq!(found[name].shape.dims(), shape, "{name}");
            if expected.l2 > noise {
                worst.compare(name, &found[name], expected, BACKWARD);
            } else {
                worst.note(&format!("{name}: l2"), norm(found[name].to_real::<f64>().into_iter()), 0.0, noise);
            }
        }
    }

    fn compare_running(&self, worst: &mut Worst, found: &StateDict) {
        for (name, expected) in &self.running {
            worst.compare(name, &found[name], expected, FORWARD);
        }
        for (name, _) in self.buffers.iter().filter(|(name, _)| name.ends_with("num_batches_tracked")) {
            assert_eq!(found[name], HostTensor::i64([], vec![1]), "{name}");
        }
    }
}

/// Compares numbers and keeps the largest errors, relative to their tolerances.
#[derive(Default)]
struct Worst {
    share: f64,
    what: String,
}

impl Worst {
    fn compare(&mut self, what: &str, found: &HostTensor, expected: &Summary, tolerance: f64) {
        let v = found.to_real::<f64>();
        let n = v.len() as f64;
        self.note(&format!("{what}: l2"), norm(v.iter().copied()), expected.l2, tolerance * expected.l2);
        self.note(&format!("{what}: sum"), v.iter().sum(), expected.sum, tolerance * expected.l2 * n.sqrt());
        // The samples' error is relative to the samples, or to the root mean square of the tensor.
        let usual = expected.l2 * (expected.samples.len() as f64 / n).sqrt();
        let bound = tolerance * usual.max(norm(expected.samples.iter().map(|s| s.1)));
        let error = norm(expected.samples.iter().map(|&(i, s)| v[i] - s));
        assert!(!expected.samples.is_empty(), "{what}: no samples");
        self.note(&format!("{what}: samples"), error, 0.0, bound);
    }

    fn scalar(&mut self, what: &str, found: f64, expected: f64, tolerance: f64) {
        self.note(what, found, expected, tolerance * expected.abs());
    }

    fn note(&mut self, what: &str, found: f64, expected: f64, bound: f64) {
        let error = (found - expected).abs();
        assert!(error <= bound, "{what}: {found}, expected {expected}: off by {error:e}, allowed {bound:e}");
        if error > self.share * bound {
            (self.share, self.what) = (error / bound, what.into());
        }
    }

    fn report(&self, name: &str, executor: &str, start: Instant) {
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{name} on {executor}: worst error {:.1e} of its bound ({}), {seconds:.1} s", self.share, self.what);
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

fn first(tensor: &HostTensor) -> f64 {
    tensor.to_real::<f64>()[0]
}

/// The fill rule's u.
fn unit(name: &str, seed: u64, i: usize) -> f64 {
    let mut z = (fnv1a(name) ^ seed).wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f64 / f64::from(1 << 24)
}

/// The tensor that the fill rule gives `name`.
fn fill(name: &str, shape: &[usize], seed: u64) -> HostTensor {
    let len = shape.iter().product();
    let value: Box<dyn Fn(f64) -> f64> = match name.rsplit('.').next() {
        Some("num_batches_tracked") => return HostTensor::i64(shape, vec![0; len]),
        Some("running_var") => Box::new(|u| 0.5 + u),
        Some("running_mean" | "bias") => Box::new(|u| (2.0 * u - 1.0) * 0.1),
        Some("weight") if shape.len() == 1 => Box::new(|u| 0.25 + 0.5 * u),
        Some("weight") => {
            let fan_in: usize = shape[1..].iter().product();
            let bound = f64::from((6.0 / fan_in as f64) as f32).sqrt();
            Box::new(move |u| (2.0 * u - 1.0) * bound)
        }
        Some("input") => Box::new(|u| (2.0 * u - 1.0) * 3f64.sqrt()),
        _ => panic!("no rule fills {name}"),
    };
    HostTensor::f32(shape, (0..len).map(|i| value(unit(name, seed, i)) as f32).collect())
}

/// The comparison detects one wrong number of a size that the tolerance forbids.
#[test]
fn a_wrong_number_is_noticed() {
    let values: Vec<f64> = (0..1000).map(|i| unit("values", 1, i) - 0.5).collect();
    let sample = |i: usize| (i, values[i]);
    let expected = Summary {
        l2: norm(values.iter().copied()),
        sum: values.iter().sum(),
        samples: (0..1000).step_by(100).map(sample).collect(),
    };
    let error = expected.l2 / 1000f64.sqrt() * BACKWARD;
    for (index, change, noticed) in [
        (100, 0.0, false),
        (100, 0.5 * error, false),
        (100, 8.0 * error, true),
        (101, 1e5 * error, true),
        (101, f64::NAN, true),
    ] {
        let mut found = values.clone();
        found[index] += change;
        let found = HostTensor::f64([1000], found);
        let result = std::panic::catch_unwind(|| Worst::default().compare("x", &found, &expected, BACKWARD));
        assert_eq!(result.is_err(), noticed, "element {index} changed by {change:e}");
    }
}

fn list(json: &Value) -> &[Value] {
    json.as_array().unwrap()
}

fn extents(json: &Value) -> Vec<usize> {
    list(json).iter().map(|v| v.as_u64().unwrap() as usize).collect()
}

fn shapes(json: &Value) -> Vec<(String, Vec<usize>)> {
    list(json).iter().map(|pair| (pair[0].as_str().unwrap().into(), extents(&pair[1]))).collect()
}

fn summary(json: &Value) -> Summary {
    let sample = |pair: &Value| (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
    Summary {
        l2: json["l2"].as_f64().unwrap(),
        sum: json["sum"].as_f64().unwrap(),
        samples: list(&json["samples"]).iter().map(sample).collect(),
    }
}

fn summaries(json: &Value) -> BTreeMap<String, Summary> {
    json.as_object().unwrap().iter().map(|(name, value)| (name.clone(), summary(value))).collect()
}
