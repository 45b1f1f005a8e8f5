//! Whole networks on every device: one training step against the reference executor, the same bits under every
//! schedule, and training runs side by side.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use residuum::control::sgd::{Sgd, Spec};
use residuum::device::sim::{Copies, Schedule, SimOptions};
use residuum::device::Device;
use residuum::graph::{Graph, Interpreter, Mode, ParameterKind, Program};
use residuum::models::{self, BuildOptions};
use residuum::tensor::{DType, HostData, HostTensor, StateDict};
use residuum::train::grad_scale;

use crate::bounds;
use crate::distance::distance;
use crate::harness::DTYPES;
use crate::machine;
use crate::random::Random;

const CLASSES: usize = 10;

/// The longest sum of products of a filter in `graph`.
fn terms(graph: &Graph) -> usize {
    let filters = graph.parameters().iter().filter(|p| p.kind == ParameterKind::ConvWeight);
    filters.map(|p| p.shape.dims()[1..].iter().product()).max().unwrap_or(1)
}

fn training_graph(name: &str, batch: usize, size: usize, dtype: DType) -> Graph {
    let options = BuildOptions { loss: true, smoothing: 0.0, grad_scale: grad_scale(dtype) };
    let model = models::find(name).unwrap();
    let mut graph = model.build(Mode::Train, batch, [3, size, size], CLASSES, options).unwrap();
    graph.differentiate().unwrap();
    graph
}

fn initial(name: &str, graph: &Graph) -> StateDict {
    models::find(name).unwrap().initialise(graph, 1)
}

/// Normally distributed pixels and random labels.
fn batch(seed: &str, n: usize, size: usize) -> (HostTensor, Vec<i32>) {
    let mut random = Random::new(seed);
    let pixels = random.normals(n * 3 * size * size, 0.0, 1.0).into_iter().map(|v| v as f32).collect();
    (HostTensor::f32([n, 3, size, size], pixels), random.labels(n, CLASSES))
}

/// All results of a step: logits, loss, gradients, running statistics.
fn results(logits: HostTensor, loss: HostTensor, gradients: StateDict, state: StateDict) -> StateDict {
    let mut all: StateDict = gradients.into_iter().map(|(name, t)| (format!("grad.{name}"), t)).collect();
    all.extend(state.into_iter().filter(|(name, _)| name.contains("running")));
    all.extend([("logits".into(), logits), ("loss".into(), loss)]);
    all
}

/// Gates for every block of `graph` that may be dropped: the second of every three is closed.
fn gates(graph: &Graph) -> Vec<bool> {
    (0..graph.survival().len()).map(|block| block % 3 != 1).collect()
}

fn step(graph: &Graph, device: &Device, dtype: DType, state: &StateDict, data: &(HostTensor, Vec<i32>)) -> StateDict {
    let mut program = Program::compile(graph, device, dtype, None).unwrap();
    program.load(state).unwrap();
    program.set_input("input", &data.0).unwrap();
    program.set_labels(&data.1).unwrap();
    program.set_gates(&gates(graph)).unwrap();
    program.run().unwrap();
    program.synchronize().unwrap();
    let output = |name| program.output(name).unwrap();
    results(output("logits"), output("loss"), program.gradients().unwrap(), program.state().unwrap())
}

fn reference(graph: &Graph, dtype: DType, state: &StateDict, data: &(HostTensor, Vec<i32>)) -> StateDict {
    let mut it = Interpreter::<f64>::new(graph, dtype);
    it.load(state).unwrap();
    it.set_input("input", &data.0).unwrap();
    it.set_labels(&data.1).unwrap();
    it.set_gates(&gates(graph)).unwrap();
    it.run();
    results(it.output("logits").unwrap(), it.output("loss").unwrap(), it.gradients(), it.state())
}

/// The number of perturbed steps, which show how far a tensor moves under errors like a kernel's.
const PERTURBED: usize = 2;

/// The largest distance that each tensor moves if other ReLUs open than in the rounded reference. In f32 parameters and
/// pixels are off as much as a program's sums, and nothing is rounded. In 16 bits pixels are off by up to half a unit
/// in the last place, so that a third of them are rounded to the other neighbour; stores are rounded as usual.
fn moved(
    graph: &Graph,
    dtype: DType,
    state: &StateDict,
    data: &(HostTensor, Vec<i32>),
    exact: &StateDict,
) -> BTreeMap<String, f64> {
    let sums = dtype == DType::F32;
    let off = if sums { (terms(graph) as f64).sqrt() } else { 0.5 } * dtype.epsilon();
    let mut random = Random::new("moved");
    let mut perturbed = |t: &HostTensor| {
        let values = t.to_real::<f64>().into_iter().zip(random.reals(t.shape.len(), -off, off));
        HostTensor::f32(t.shape.clone(), values.map(|(v, off)| (v * (1.0 + off)) as f32).collect())
    };
    let mut moved: BTreeMap<String, f64> = BTreeMap::new();
    for _ in 0..PERTURBED {
        let mut state = state.clone();
        if sums {
            graph.parameters().iter().for_each(|p| drop(state.insert(p.name.clone(), perturbed(&state[&p.name]))));
        }
        let stored = if sums { DType::F64 } else { dtype };
        let step = reference(graph, stored, &state, &(perturbed(&data.0), data.1.clone()));
        for (name, d) in noise(&step, exact) {
            let most = moved.entry(name).or_default();
            *most = most.max(d);
        }
    }
    moved
}

/// The distance of each tensor of a rounded step from the exact one.
fn noise(rounded: &StateDict, exact: &StateDict) -> BTreeMap<String, f64> {
    rounded.iter().map(|(name, t)| (name.clone(), distance(t, &exact[name]))).collect()
}

/// The simulator under each schedule, with early and late copies in turn.
fn schedules() -> Vec<Device> {
    let orders = [Schedule::InOrder, Schedule::Reverse, Schedule::Random, Schedule::Priority { depth: 3 }];
    let copies = [Copies::Early, Copies::Late, Copies::Random, Copies::Late];
    let options = orders.into_iter().zip(copies);
    options
        .map(|(schedule, copies)| Device::sim(SimOptions { schedule, copies, ..Default::default() }).unwrap())
        .collect()
}

/// A tensor that rounding alone moves by a quarter cannot be judged, since the direction is chance: deep networks on
/// two small images in 16 bits.
const CHANCE: f64 = 0.25;

/// Batches that decide about a tensor that is out of bounds on the first one. Near a ReLU's kink rounding may move a
/// gradient much more than it moved the reference; a wrong gradient is wrong on most batches.
const TRIALS: usize = 5;

/// One step of a network in `dtype` on the simulator and on a GPU if there is one.
fn check_step(name: &str, images: usize, size: usize, dtype: DType) {
    let graph = training_graph(name, images, size, dtype);
    let state = initial(name, &graph);
    let simulators = if cfg!(feature = "sim") && machine::wanted("sim") { schedules() } else { Vec::new() };
    let gpu = machine::gpu(&format!("a step of {name}")).map(Device::Kernels);
    let all: Vec<Device> = simulators.iter().chain(&gpu).cloned().collect();
    let mut wrong = out_of_bounds(&graph, &all, dtype, &state, &batch(name, images, size));
    if wrong.is_empty() {
        return;
    }
    let devices: Vec<Device> = simulators.into_iter().take(1).chain(gpu).collect();
    for trial in 1..TRIALS {
        let again = batch(&format!("{name} {trial}"), images, size);
        for (tensor, more) in out_of_bounds(&graph, &devices, dtype, &state, &again) {
            wrong.entry(tensor).or_default().extend(more);
        }
    }
    let most: Vec<_> = wrong.values().filter(|trials| trials.len() > TRIALS / 2).flatten().collect();
    assert!(most.is_empty(), "{name} {dtype}, out of bounds on most of {TRIALS} batches: {most:#?}");
}

/// True if two steps left equal results. NaN equals NaN: 1,202 layers overflow f16.
fn same_bits(a: &StateDict, b: &StateDict) -> bool {
    let same = |a: &HostTensor, b: &HostTensor| match (&a.data, &b.data) {
        (HostData::F32(a), HostData::F32(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        (a, b) => a == b,
    };
    a.len() == b.len() && a.iter().zip(b).all(|((name, a), (other, b))| name == other && same(a, b))
}

/// The tensors that are out of bounds after a step of `graph` on `devices`, each with one device's result. The
/// simulators must agree in all bits.
fn out_of_bounds(
    graph: &Graph,
    devices: &[Device],
    dtype: DType,
    state: &StateDict,
    data: &(HostTensor, Vec<i32>),
) -> BTreeMap<String, Vec<String>> {
    let exact = reference(graph, DType::F64, state, data);
    let noise = noise(&reference(graph, dtype, state, data), &exact);
    // The loss is one number, which rounding may leave unchanged by chance: it is judged if the logits can be judged.
    let judge = |tensor: &str| noise[tensor] <= CHANCE && (tensor != "loss" || noise["logits"] <= CHANCE);
    let jumps = OnceCell::new();
    let mut wrong: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut first: Option<StateDict> = None;
    for device in devices {
        let found = step(graph, device, dtype, state, data);
        let judged = found.iter().filter(|(tensor, _)| judge(tensor));
        assert!(judged.clone().count() * 10 > found.len(), "{dtype}: too little is left to judge");
        for (tensor, value) in judged {
            let d = distance(value, &exact[tensor]);
            let mut allowed = bounds::network(dtype, noise[tensor], terms(graph));
            if d > allowed {
                let jumps = jumps.get_or_init(|| moved(graph, dtype, state, data, &exact));
                allowed = allowed.max(bounds::jump(jumps[tensor]));
            }
            if d.is_nan() || d > allowed {
                let message = format!("{tensor}: relative distance {d:e}, allowed {allowed:e} on {device:?}");
                wrong.insert(tensor.clone(), vec![message]);
            }
        }
        if device.kind() == "sim" {
            match &first {
                Some(first) => assert!(same_bits(first, &found), "{dtype}: other bits on {device:?}"),
                None => first = Some(found),
            }
        }
    }
    wrong
}

/// Images and their size: small by default, the network's own in the long list.
fn extent() -> (usize, usize) {
    if machine::asked("RESIDUUM_LONG") {
        (3, 32)
    } else {
        (2, 16)
    }
}

#[test]
fn resnet20_steps_in_f32() {
    let (images, size) = extent();
    check_step("resnet20_cifar", images, size, DType::F32);
}

#[test]
fn resnet20_steps_in_f16() {
    let (images, size) = extent();
    check_step("resnet20_cifar", images, size, DType::F16);
}

#[test]
fn resnet20_steps_in_bf16() {
    let (images, size) = extent();
    check_step("resnet20_cifar", images, size, DType::BF16);
}

/// Bottlenecks and compression; slices that start at multiples of 16 bytes and between, in every type. The last block
/// has 48 numbers per channel: with 8, batch norm would amplify rounding without limit.
#[test]
fn densenets_step() {
    for dtype in DTYPES {
        check_step("densenet_bc16_k8_cifar", 3, 16, dtype);
        check_step("densenet13_k3_cifar", 3, 16, dtype);
    }
}

/// A dense block is one buffer, and its gradient a second: nothing is copied, split or added.
#[test]
fn densenets_concatenate_nothing() {
    let mut devices = machine::devices("a plan of a DenseNet");
    devices.retain(|device| matches!(device, Device::Kernels(_)));
    let pools_first = |w: &&[&str]| w[0] == "pool_avg_fwd" && w[1] == "conv2d_fwd";
    let transitions = |ops: &[&str]| ops.windows(2).filter(pools_first).count();
    for name in ["densenet_bc22_k12_cifar", "densenet22_k12_cifar", "densenet121"] {
        let size = if name == "densenet121" { 64 } else { 32 };
        let graph = training_graph(name, 2, size, DType::F32);
        let infer = models::find(name).unwrap().build(Mode::Infer, 2, [3, size, size], CLASSES, Default::default());
        for (graph, device) in devices.iter().flat_map(|d| [(&graph, d), (infer.as_ref().unwrap(), d)]) {
            let ops = Program::compile(graph, device, DType::F32, None).unwrap().ops();
            for absent in ["concat_fwd", "concat_bwd", "sum_fwd", "relu_fwd", "relu_bwd"] {
                assert!(!ops.contains(&absent), "{absent} in {name} on {}: {ops:?}", device.kind());
            }
            let blocks = if name == "densenet121" { 4 } else { 3 };
            assert_eq!(transitions(&ops), blocks - 1, "transitions of {name} pool before they convolve: {ops:?}");
        }
        let copies = Program::compile(&graph, &Device::cpu(), DType::F32, None).unwrap().ops();
        assert!(copies.contains(&"concat_fwd") && copies.contains(&"concat_bwd"), "the host copies");
    }
}

/// The smallest network of each family that is fused in its own way.
#[test]
fn every_kind_of_network_steps() {
    let networks = [
        ("resnet8_cifar_option_b", 16, DType::BF16),
        ("resnet8_cifar_conv1x1", 8, DType::F32),
        ("resnet8_cifar_bn_after_add", 8, DType::F32),
        ("resnet8_cifar_relu_before_add", 8, DType::F32),
        ("resnet8_cifar_relu_only_preact", 8, DType::F32),
        ("resnet8_cifar_relu_only_preact", 16, DType::F16),
        ("resnet8_cifar_full_preact", 8, DType::BF16),
        ("plain8_cifar", 8, DType::F32),
        ("preact_resnet11_cifar", 16, DType::F32),
        ("resnext11_8x4d_cifar", 8, DType::F16),
        ("resnext11_2x12d_cifar", 8, DType::F32),
        ("densenet10_k6_cifar", 8, DType::F32),
        ("densenet_bc16_k12_cifar", 16, DType::BF16),
        ("densenet_bc16_k8_cifar", 8, DType::F32),
        ("densenet_bc10_k16_cifar", 8, DType::F16),
        ("resnet50", 32, DType::F32),
        ("resnet18", 64, DType::BF16),
    ];
    for (name, size, dtype) in networks {
        check_step(name, 2, size, dtype);
    }
}

/// The networks checked at once: two steps of VGG in f64 fill a machine's memory.
const AT_ONCE: usize = 2;

/// Every network of the table in every dtype, at its smallest size. Takes an hour and prints its progress.
#[test]
fn all_networks_step() {
    if !machine::asked("RESIDUUM_LONG") {
        return;
    }
    let rows: Vec<_> = models::all().iter().flat_map(|m| DTYPES.map(|dtype| (m.name().to_string(), dtype))).collect();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let check = || {
        while let Some((name, dtype)) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            let size = match name.as_str() {
                "alexnet" => 63,
                name if name.ends_with("_cifar") => 8,
                _ => 32,
            };
            let began = Instant::now();
            let passed = catch_unwind(|| check_step(name, 2, size, *dtype)).is_ok();
            let verdict = if passed { "passed" } else { "failed" };
            // Not captured as a test's output, which would appear after an hour.
            let _ = writeln!(std::io::stderr(), "{name} {dtype}: {verdict}, {:.0?}", began.elapsed());
            if !passed {
                failed.lock().unwrap().push(format!("{name} {dtype}"));
            }
        }
    };
    thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(check))));
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} steps failed: {failed:?}", failed.len(), rows.len());
}

#[test]
fn a_network_steps_with_dropped_blocks() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        check_step("resnet20_cifar_survival05", 2, 8, dtype);
    }
    for kind in ["_option_b", "_conv1x1", "_bn_after_add", "_relu_before_add", "_relu_only_preact", "_full_preact"] {
        check_step(&format!("resnet8_cifar{kind}_survival05"), 2, 8, DType::F32);
    }
    check_step("resnext11_2x8d_cifar_survival05", 2, 8, DType::F32);
}

#[test]
fn the_bounds_of_networks_notice_a_wrong_weight() {
    for dtype in [DType::F32, DType::F16] {
        let graph = training_graph("resnet20_cifar", 2, 16, dtype);
        let (state, data) = (initial("resnet20_cifar", &graph), batch("resnet20_cifar", 2, 16));
        let exact = reference(&graph, DType::F64, &state, &data);
        let noise = noise(&reference(&graph, dtype, &state, &data), &exact);
        let mut wrong = state.clone();
        let mut weights: Vec<f32> = state["layer3.2.conv2.weight"].to_real();
        weights[..terms(&graph)].iter_mut().for_each(|w| *w = -*w);
        wrong.insert("layer3.2.conv2.weight".into(), HostTensor::f32([64, 64, 3, 3], weights));
        let found = reference(&graph, dtype, &wrong, &data);
        let moved = moved(&graph, dtype, &state, &data, &exact);
        let notices = |name: &str| {
            let allowed = bounds::network(dtype, noise[name], terms(&graph)).max(bounds::jump(moved[name]));
            distance(&found[name], &exact[name]) > allowed
        };
        assert!(notices("logits"), "{dtype}: one filter of 64 in the last block has the wrong sign");
    }
}

#[test]
fn training_goes_the_same_way_on_every_device() {
    let name = "resnet8_cifar";
    let spec = Spec { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 1e-4 };
    let graph = training_graph(name, 8, 8, DType::F32);
    let state = initial(name, &graph);
    let data: Vec<_> = (0..3).map(|i| batch(&format!("batch {i}"), 8, 8)).collect();
    let losses = |device: &Device| -> Vec<f64> {
        let mut program = Program::compile(&graph, device, DType::F32, Some(Sgd::new(spec).unwrap())).unwrap();
        program.load(&state).unwrap();
        program.set_learning_rate(0.02).unwrap();
        (0..9)
            .map(|i| {
                program.set_input("input", &data[i % 3].0).unwrap();
                program.set_labels(&data[i % 3].1).unwrap();
                program.run().unwrap();
                program.output("loss").unwrap().to_real::<f64>()[0]
            })
            .collect()
    };
    let devices = machine::devices("a training run");
    let expected = losses(&Device::cpu());
    assert!(expected[8] < 0.8 * expected[2], "the loss falls: {expected:?}");
    for device in devices {
        let found = losses(&device);
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= 1e-3 * b, "{}: {found:?}, on the CPU {expected:?}", device.kind());
        }
    }
}
