//! Programs on a blueprint: launches and memory, without a run.

use residuum::device::{Arch, Device};
use residuum::graph::{Builder, Graph, LossOptions, Mode, Program, Runs};
use residuum::models::{self, BuildOptions};
use residuum::tensor::DType;
use residuum::train::Settings;

fn training(name: &str, batch: usize) -> Graph {
    let model = models::find(name).unwrap();
    let options = BuildOptions { loss: true, ..BuildOptions::default() };
    let mut graph = model.build(Mode::Train, batch, [3, 16, 16], 10, options).unwrap();
    graph.differentiate().unwrap();
    graph
}

#[cfg(feature = "sim")]
#[test]
fn a_blueprint_has_the_launches_and_the_arena_of_a_device() {
    use residuum::device::sim::SimOptions;

    let graph = training("resnet20_cifar", 4);
    let optimizer = || Some(Settings::default().optimizer().unwrap());
    for (arch, dtype) in [(Arch::Sm80, DType::BF16), (Arch::Sm90, DType::F32)] {
        let device = Device::sim(SimOptions { arch, ..SimOptions::default() }).unwrap();
        let program = Program::compile(&graph, &device, dtype, optimizer()).unwrap();
        let planned = Program::compile(&graph, &Device::blueprint(arch), dtype, optimizer()).unwrap();
        assert_eq!(planned.steps(), program.steps());
        assert!(!planned.steps().is_empty());
        assert_eq!(planned.plan().arena_bytes, program.plan().arena_bytes);
    }
}

#[test]
fn a_blueprint_runs_nothing_and_says_so() {
    let device = Device::blueprint(Arch::Sm90);
    assert_eq!(device.kind(), "blueprint");
    let mut program = Program::compile(&training("resnet20_cifar", 4), &device, DType::BF16, None).unwrap();
    for error in [program.run().unwrap_err(), program.output("loss").unwrap_err(), program.state().unwrap_err()] {
        assert!(error.to_string().contains("on a blueprint"), "{error}");
    }
}

#[test]
fn operands_of_the_backward_pass_are_saved_once() {
    let mut b = Builder::new(Mode::Train);
    let x = b.input("input", [4, 1, 1, 8]);
    let hidden = b.linear("first", x, 16).unwrap();
    let active = b.relu(hidden).unwrap();
    let logits = b.linear("second", active, 10).unwrap();
    b.loss(logits, LossOptions::default()).unwrap();
    let mut graph = b.finish();
    let saved = |graph: &Graph| {
        let program = Program::compile(graph, &Device::blueprint(Arch::Sm90), DType::BF16, None).unwrap();
        program.plan().saved_activation_bytes
    };
    assert_eq!(saved(&graph), 0, "there is no backward pass");
    graph.differentiate().unwrap();
    // The input, the ReLU's output, which two ops read, the logits and the labels; not the ReLU's input.
    assert_eq!(saved(&graph), 4 * (8 * 2 + 16 * 2 + 10 * 2 + 4));
}

/// Megabytes per image, moved and saved for the backward pass, at most: half of separate passes.
#[test]
fn networks_stay_within_their_bytes() {
    const BATCH: usize = 256;
    for (name, mode, bytes, saved) in [
        ("resnet50", Mode::Train, 257.0, 35.0),
        ("resnext50_32x4d", Mode::Train, 316.0, 42.0),
        ("densenet121", Mode::Train, 200.0, 15.0),
        ("resnet50", Mode::Infer, 58.0, 0.0),
    ] {
        let train = mode == Mode::Train;
        let options = BuildOptions { loss: train, ..Default::default() };
        let mut graph = models::find(name).unwrap().build(mode, BATCH, [3, 224, 224], 1000, options).unwrap();
        if train {
            graph.differentiate().unwrap();
        }
        let optimizer = train.then(|| Settings::default().optimizer().unwrap());
        let program = Program::compile(&graph, &Device::blueprint(Arch::Sm90), DType::BF16, optimizer).unwrap();
        let per_image = |bytes: u64| bytes as f64 / BATCH as f64 / 1e6;
        let found = per_image(program.steps().iter().map(|step| step.cost.bytes()).sum());
        assert!(found <= bytes, "{name}: {found} MB per image, at most {bytes}");
        let found = per_image(program.plan().saved_activation_bytes as u64);
        assert!(found <= saved, "{name}: {found} MB saved per image, at most {saved}");
    }
}

/// Bytes per image that a training step in bf16 moves if no block is dropped.
fn bytes_of_a_step(name: &str, batch: usize) -> u64 {
    let model = models::find(name).unwrap();
    let options = BuildOptions { loss: true, ..Default::default() };
    let mut graph = model.build(Mode::Train, batch, model.input(), model.classes(), options).unwrap();
    graph.differentiate().unwrap();
    let optimizer = Settings::default().optimizer().unwrap();
    let program = Program::compile(&graph, &Device::blueprint(Arch::Sm90), DType::BF16, Some(optimizer)).unwrap();
    let kept = program.steps().iter().filter(|step| !matches!(step.runs, Runs::Without(_)));
    kept.map(|step| step.cost.bytes()).sum::<u64>() / batch as u64
}

#[test]
fn gates_cost_next_to_nothing() {
    let [with, without] =
        ["resnet110_cifar_survival05", "resnet110_cifar"].map(|name| bytes_of_a_step(name, 128) as f64);
    assert!((with - without).abs() < 0.001 * without, "{with} bytes per image with gates, {without} without");
}

/// At most, in thousands per image.
#[test]
fn batch_norms_of_every_kind_are_in_pieces() {
    for (name, batch, most) in [
        ("resnet110_cifar", 128, 20_400),
        ("preact_resnet164_cifar", 128, 58_600),
        ("resnet110_cifar_full_preact", 128, 20_000),
        ("vgg16_bn", 256, 202_500),
    ] {
        let found = bytes_of_a_step(name, batch);
        assert!(found <= most * 1000, "{name}: {found} bytes per image");
    }
}

/// This thread's processor time in nanoseconds: unlike wall time, it does not grow with the machine's load.
fn thread_time() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let clock =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
    stat.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_else(clock)
}

/// The least of three times to plan a program.
fn time_to_plan(name: &str, mode: Mode) -> u64 {
    let plan = || {
        let start = thread_time();
        let train = mode == Mode::Train;
        let model = models::find(name).unwrap();
        let options = BuildOptions { loss: train, ..Default::default() };
        let mut graph = model.build(mode, 8, model.input(), model.classes(), options).unwrap();
        if train {
            graph.differentiate().unwrap();
        }
        let optimizer = train.then(|| Settings::default().optimizer().unwrap());
        let program = Program::compile(&graph, &Device::blueprint(Arch::Sm90), DType::BF16, optimizer).unwrap();
        assert!(!program.steps().is_empty());
        thread_time() - start
    };
    (0..3).map(|_| plan()).min().unwrap()
}

/// Eight times the depth takes about eight times as long; comparing every layer with every other would take 64.
#[test]
fn planning_takes_time_linear_in_depth() {
    for (shallow, deep, mode) in [
        ("resnet500_cifar", "resnet4004_cifar", Mode::Train),
        ("resnet500_cifar_survival05", "resnet4004_cifar_survival05", Mode::Train),
        ("preact_resnet506_cifar", "preact_resnet4052_cifar", Mode::Train),
        ("resnet2000_cifar_survival05", "resnet16004_cifar_survival05", Mode::Infer),
    ] {
        let [short, long] = [shallow, deep].map(|name| time_to_plan(name, mode) as f64);
        assert!(long < 24.0 * short, "{deep} takes {} times as long as {shallow}", long / short);
    }
}

/// Planning allocates nothing of a program's size.
#[test]
fn a_blueprint_of_any_size_is_planned() {
    let model = models::find("wide_resnet101_29").unwrap();
    let options = BuildOptions { loss: true, ..Default::default() };
    let mut graph = model.build(Mode::Train, 1, model.input(), model.classes(), options).unwrap();
    graph.differentiate().unwrap();
    let optimizer = Some(Settings::default().optimizer().unwrap());
    let program = Program::compile(&graph, &Device::blueprint(Arch::Sm90), DType::F32, optimizer).unwrap();
    assert!(program.plan().arena_bytes > 200 << 30, "{} bytes", program.plan().arena_bytes);
}
