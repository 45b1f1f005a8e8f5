//! Stochastic depth: a dropped block is skipped, forward, backward and in its gradients, and nothing else is.

mod runs;
#[cfg(feature = "sim")]
mod watched;

use std::collections::BTreeMap;

use residuum::control::gate::{draw, thresholds};
use residuum::control::sgd::{Sgd, Spec};
use residuum::device::Device;
use residuum::graph::{Builder, ConvOptions, Graph, Interpreter, LossOptions, Mode, Program, ValueId};
use residuum::models::{self, BuildOptions};
use residuum::ops::pool::{Kind, Window};
use residuum::tensor::{DType, HostTensor, StateDict};
use residuum::Result;

use crate::distance::{difference, distance, norm};
use crate::machine;
use crate::random::Random;

const BATCH: usize = 3;
const CLASSES: usize = 5;
const LABELS: [i32; BATCH] = [4, 0, 2];
const SURVIVAL: [f64; 4] = [0.9, 0.8, 0.6, 0.5];

/// Every combination of open and closed blocks.
fn patterns() -> impl Iterator<Item = [bool; 4]> {
    (0..16u32).map(|bits| std::array::from_fn(|block| bits >> block & 1 == 1))
}

fn conv(k: usize, size: usize, stride: usize) -> ConvOptions {
    ConvOptions { k, kernel: [size; 2], stride: [stride; 2], padding: [size / 2; 2], ..Default::default() }
}

/// How the branches are built.
enum Branches {
    /// With gates, or at inference with their shares.
    Droppable,
    /// Each built or left out.
    Fixed([bool; 4]),
}

/// Four blocks: the identity, a projection, a pre-activation, zero padding. Each is one branch and one shortcut.
fn network(mode: Mode, branches: &Branches) -> Graph {
    let mut b = Builder::new(mode);
    let build = |b: &mut Builder| -> Result<()> {
        let x = b.input("input", [BATCH, 11, 9, 3]);
        let x = b.conv2d("stem", x, conv(6, 3, 1))?;
        let x = b.batch_norm("stem_bn", x, 1e-5)?;
        let x = b.relu(x)?;
        let y = block(b, branches, 0, |_| Ok(x), &|b| {
            let f = b.conv2d("a.conv1", x, conv(6, 3, 1))?;
            let f = b.batch_norm("a.bn1", f, 1e-5)?;
            let f = b.relu(f)?;
            let f = b.conv2d("a.conv2", f, conv(6, 1, 1))?;
            b.batch_norm("a.bn2", f, 1e-5)
        })?;
        let x = b.relu(y)?;
        let project = |b: &mut Builder| {
            let s = b.conv2d("b.down", x, conv(8, 1, 2))?;
            b.batch_norm("b.down_bn", s, 1e-5)
        };
        let y = block(b, branches, 1, project, &|b| {
            let f = b.conv2d("b.conv1", x, conv(8, 3, 2))?;
            b.batch_norm("b.bn1", f, 1e-5)
        })?;
        let x = b.relu(y)?;
        let x = block(b, branches, 2, |_| Ok(x), &|b| {
            let f = b.batch_norm("c.bn1", x, 1e-5)?;
            let f = b.relu(f)?;
            let g = b.conv2d("c.conv1", f, ConvOptions { bias: true, ..conv(8, 3, 1) })?;
            let h = b.conv2d("c.conv2", f, conv(8, 1, 1))?;
            b.add(g, h)
        })?;
        let x = block(b, branches, 3, |b| b.shortcut(x, 10, 2, 0), &|b| {
            let f = b.conv2d("d.conv1", x, conv(10, 3, 2))?;
            let f = b.batch_norm("d.bn1", f, 1e-5)?;
            b.relu(f)
        })?;
        let x = b.pool(x, Window::Adaptive([1, 1]), Kind::Average { count_padding: false })?;
        let logits = b.linear("fc", x, CLASSES)?;
        b.output("logits", logits);
        b.loss(logits, LossOptions { smoothing: 0.1, ..Default::default() })?;
        Ok(())
    };
    build(&mut b).unwrap();
    let mut graph = b.finish();
    if mode == Mode::Train {
        graph.differentiate().unwrap();
    }
    graph
}

fn block(
    b: &mut Builder,
    branches: &Branches,
    index: usize,
    shortcut: impl FnOnce(&mut Builder) -> Result<ValueId>,
    layers: &dyn Fn(&mut Builder) -> Result<ValueId>,
) -> Result<ValueId> {
    match branches {
        Branches::Droppable => {
            let branch = b.branch(SURVIVAL[index], layers)?;
            let shortcut = shortcut(b)?;
            b.join(branch, shortcut)
        }
        Branches::Fixed(open) if open[index] => {
            let branch = layers(b)?;
            let shortcut = shortcut(b)?;
            b.add(shortcut, branch)
        }
        Branches::Fixed(_) => shortcut(b),
    }
}

fn state(graph: &Graph) -> StateDict {
    let mut random = Random::new("depth");
    let mut state = StateDict::new();
    let parameters = graph.parameters().iter().map(|p| (&p.name, &p.shape));
    for (name, shape) in parameters.chain(graph.buffers().iter().map(|b| (&b.name, &b.shape))) {
        let positive = name.ends_with("var") || (name.contains("bn") && name.ends_with("weight"));
        let (low, high) = if positive { (0.5, 1.5) } else { (-0.5, 0.5) };
        let values = random.reals(shape.len(), low, high).into_iter().map(|v| v as f32).collect();
        state.insert(name.clone(), HostTensor::f32(shape.clone(), values));
    }
    state
}

fn input() -> HostTensor {
    let values = Random::new("input").reals(BATCH * 3 * 99, -1.0, 1.0);
    HostTensor::f32([BATCH, 3, 11, 9], values.into_iter().map(|v| v as f32).collect())
}

/// Logits, loss, gradients and running statistics.
type Results = BTreeMap<String, HostTensor>;

fn gather(logits: HostTensor, loss: HostTensor, gradients: StateDict, state: StateDict) -> Results {
    let mut all: Results = gradients.into_iter().map(|(name, t)| (format!("grad.{name}"), t)).collect();
    all.extend(state.into_iter().filter(|(name, _)| name.contains("running")));
    all.extend([("logits".into(), logits), ("loss".into(), loss)]);
    all
}

fn interpret(graph: &Graph, state: &StateDict, open: Option<&[bool]>) -> Results {
    let mut it = Interpreter::<f64>::new(graph, DType::F64);
    it.load(state).unwrap();
    it.set_input("input", &input()).unwrap();
    it.set_labels(&LABELS).unwrap();
    // A run must not read an earlier run's results.
    it.run();
    it.load(state).unwrap();
    if let Some(open) = open {
        it.set_gates(open).unwrap();
    }
    it.run();
    gather(it.output("logits").unwrap(), it.output("loss").unwrap(), it.gradients(), it.state())
}

fn compile(graph: &Graph, device: &Device, dtype: DType, state: &StateDict, sgd: Option<Sgd>) -> Program {
    let mut program = Program::compile(graph, device, dtype, sgd).unwrap();
    program.load(state).unwrap();
    program.set_input("input", &input()).unwrap();
    program.set_labels(&LABELS).unwrap();
    program
}

fn run(program: &mut Program) -> Results {
    program.run().unwrap();
    program.synchronize().unwrap();
    let output = |name| program.output(name).unwrap();
    gather(output("logits"), output("loss"), program.gradients().unwrap(), program.state().unwrap())
}

fn values(t: &HostTensor) -> Vec<f64> {
    t.to_real()
}

fn is_zero(t: &HostTensor) -> bool {
    values(t).iter().all(|&v| v == 0.0)
}

#[test]
fn a_dropped_block_is_as_if_it_were_not_built() {
    let graph = network(Mode::Train, &Branches::Droppable);
    let state = state(&graph);
    assert_eq!(graph.survival(), SURVIVAL);
    let mut program = compile(&graph, &Device::cpu(), DType::F64, &state, None);
    for open in patterns() {
        let small = network(Mode::Train, &Branches::Fixed(open));
        let own = |name: &str| {
            state.contains_key(name) && {
                let parameter = small.parameters().iter().any(|p| p.name == name);
                parameter || small.buffers().iter().any(|b| b.name == name)
            }
        };
        let part = state.iter().filter(|(name, _)| own(name)).map(|(n, t)| (n.clone(), t.clone())).collect();
        let expected = interpret(&small, &part, None);
        program.load(&state).unwrap();
        program.set_gates(&open).unwrap();
        assert_eq!(program.gates().unwrap(), open);
        for (kind, found) in [("reference", interpret(&graph, &state, Some(&open))), ("cpu", run(&mut program))] {
            for (name, tensor) in &found {
                let label = format!("{name} on {kind} with gates {open:?}");
                match (expected.get(name), name.strip_prefix("grad.")) {
                    (Some(e), _) => assert!(distance(tensor, e) <= 1e-11, "{label}: {:e}", distance(tensor, e)),
                    (None, Some(_)) => assert!(is_zero(tensor), "{label}: a dropped block has no gradient"),
                    (None, None) => assert_eq!(values(tensor), values(&state[name]), "{label}: frozen"),
                }
            }
            assert!(expected.keys().all(|name| found.contains_key(name)));
        }
    }
}

#[test]
fn gradients_through_open_and_closed_gates_agree_with_differences() {
    let graph = network(Mode::Train, &Branches::Droppable);
    let state = state(&graph);
    let open = [true, false, true, true];
    let gradients = interpret(&graph, &state, Some(&open));
    let loss = |state: &StateDict| values(&interpret(&graph, state, Some(&open))["loss"])[0];
    for p in graph.parameters() {
        let direction = Random::new(&p.name).reals(p.shape.len(), -1.0, 1.0);
        let moved = |by: f64| {
            let v = values(&state[&p.name]).iter().zip(&direction).map(|(a, d)| a + by * d).collect();
            let mut state = state.clone();
            state.insert(p.name.clone(), HostTensor::f64(p.shape.clone(), v));
            loss(&state)
        };
        let h = 1e-5;
        let difference = (moved(h) - moved(-h)) / (2.0 * h);
        let gradient = values(&gradients[&format!("grad.{}", p.name)]);
        let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
        let error = (difference - slope).abs();
        assert!(error <= 1e-6 * (1.0 + slope.abs()), "{}: {slope:e} by rule, {difference:e} by difference", p.name);
    }
}

#[test]
fn inference_scales_each_branch_by_its_survival_probability() {
    let graph = network(Mode::Infer, &Branches::Droppable);
    let state = state(&graph);
    let found = interpret(&graph, &state, None);
    let all = interpret(&network(Mode::Infer, &Branches::Fixed([true; 4])), &state, None);
    assert!(distance(&found["logits"], &all["logits"]) > 1e-3, "the shares count");
    let mut program = compile(&graph, &Device::cpu(), DType::F64, &state, None);
    let fused = run(&mut program);
    let d = distance(&fused["logits"], &found["logits"]);
    assert!(d <= 1e-12, "fused: {d:e}");
    let ops = program.ops();
    let joins = ops.iter().filter(|name| **name == "sum_scaled").count();
    assert_eq!(joins, 1, "only the branch that does not end in a batch norm keeps an op: {ops:?}");
    assert!(program.gates().unwrap().is_empty());
    assert!(program.set_gates(&[true; 4]).is_err(), "there are no gates at inference");
}

#[test]
fn fusion_leaves_a_pass_for_each_block_end_alone() {
    let train = network(Mode::Train, &Branches::Droppable);
    let ops = Program::compile(&train, &Device::cpu(), DType::F32, None).unwrap().ops();
    let joins = ops.iter().filter(|name| **name == "sum_gated").count();
    assert_eq!(joins, 4, "a branch adds its gradient in place: {ops:?}");
    let whole = models::find("resnet20_cifar_survival05").unwrap();
    let graph = whole.build(Mode::Infer, 2, [3, 16, 16], 10, BuildOptions::default()).unwrap();
    let ops = Program::compile(&graph, &Device::cpu(), DType::F32, None).unwrap().ops();
    assert!(
        !ops.iter()
            .any(|name| name.starts_with("sum_gated") || name.starts_with("sum_scaled") || name.starts_with("relu")),
        "{ops:?}"
    );
}

#[test]
fn momentum_and_decay_move_a_dropped_block() {
    let graph = network(Mode::Train, &Branches::Droppable);
    let state = state(&graph);
    let spec = Spec { momentum: 0.9, dampening: 0.0, nesterov: false, weight_decay: 0.125 };
    for device in machine::devices("steps with dropped blocks") {
        let (dtype, bound) = if device.kind() == "cpu" { (DType::F64, 1e-14) } else { (DType::F32, 1e-6) };
        let mut program = compile(&graph, &device, dtype, &state, Some(Sgd::new(spec).unwrap()));
        program.set_learning_rate(0.25).unwrap();
        program.run().unwrap();
        for closed in 0..2 {
            let (before, velocity) = (program.state().unwrap(), program.velocity().unwrap());
            program.set_gates(&[true, false, true, false]).unwrap();
            program.run().unwrap();
            let after = program.state().unwrap();
            for name in ["b.conv1.weight", "b.bn1.weight", "b.bn1.bias", "d.conv1.weight", "d.bn1.weight"] {
                let pull = values(&before[name]).into_iter().map(|p| 0.125 * p);
                let v: Vec<f64> = values(&velocity[name]).iter().zip(pull).map(|(v, g)| 0.9 * v + g).collect();
                let moved = values(&before[name]).iter().zip(&v).map(|(p, v)| p - 0.25 * v).collect();
                let expected = HostTensor::f64(before[name].shape.clone(), moved);
                let d = distance(&after[name], &expected);
                assert!(d <= bound, "{name} in step {closed} on {}: {d:e}", device.kind());
                assert!(distance(&after[name], &before[name]) > 1e-3, "{name} moves");
            }
            for name in ["b.bn1.running_mean", "d.bn1.running_var"] {
                assert_eq!(after[name], before[name], "{name} on {}", device.kind());
            }
            assert_ne!(after["b.down_bn.running_mean"], before["b.down_bn.running_mean"], "the shortcut's counts");
        }
    }
}

#[test]
fn every_step_draws_the_gates_of_seed_step_and_block() {
    let graph = network(Mode::Train, &Branches::Droppable);
    let (state, thresholds) = (state(&graph), thresholds(&SURVIVAL).unwrap());
    for device in machine::devices("drawn gates") {
        let mut program = compile(&graph, &device, DType::F32, &state, None);
        let mut seen = std::collections::BTreeSet::new();
        for (seed, first) in [(0, 0), (u64::MAX - 5, 1000)] {
            program.draw_gates(seed, first).unwrap();
            for step in first..first + 6 {
                let drawn = run(&mut program);
                let open = draw(&thresholds, seed, step);
                assert_eq!(program.gates().unwrap(), open, "seed {seed}, step {step} on {}", device.kind());
                seen.insert(open.clone());
                // A run with these gates set gives the same results.
                let mut given = compile(&graph, &device, DType::F32, &program.state().unwrap(), None);
                given.set_gates(&open).unwrap();
                let given = run(&mut given);
                let same = |name: &&String| !name.contains("running");
                assert!(drawn.keys().filter(same).all(|name| drawn[name] == given[name]), "step {step}");
            }
        }
        assert!(seen.len() > 3, "{seen:?}");
        program.set_gates(&[false; 4]).unwrap();
        program.run().unwrap();
        assert_eq!(program.gates().unwrap(), [false; 4], "set gates are not drawn");
    }
}

#[test]
fn misuse_is_an_error() {
    let mut b = Builder::new(Mode::Train);
    let x = b.input("input", [2, 4, 4, 8]);
    for survival in [-0.5, 1.5, f64::NAN] {
        assert!(b.branch(survival, |_| Ok(x)).is_err(), "{survival}");
    }
    let nested = b.branch(0.5, |b| {
        let inner = b.branch(0.5, |_| Ok(x))?;
        b.join(inner, x)
    });
    assert!(nested.unwrap_err().to_string().contains("branch in a branch"));
    let mut inside = None;
    let branch = b.branch(0.5, |b| {
        let y = b.conv2d("conv", x, conv(8, 3, 1))?;
        inside = Some(y);
        Ok(y)
    });
    let y = b.join(branch.unwrap(), x).unwrap();
    let y = b.add(y, inside.unwrap()).unwrap();
    b.output("y", y);
    let message = Program::compile(&b.finish(), &Device::cpu(), DType::F32, None).unwrap_err().to_string();
    assert!(message.contains("sum_fwd") && message.contains("may be dropped"), "{message}");
    let graph = network(Mode::Train, &Branches::Droppable);
    let mut it = Interpreter::<f32>::new(&graph, DType::F32);
    assert!(it.set_gates(&[true; 3]).unwrap_err().to_string().contains("3 for 4 blocks"));
}

#[test]
fn names_give_the_rule() {
    let graph = |name: &str| {
        let model = models::find(name).unwrap();
        model.build(Mode::Infer, 1, model.input(), model.classes(), BuildOptions::default()).unwrap()
    };
    let depth = |name: &str| graph(name).survival().iter().sum::<f64>();
    let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
    assert!(near(depth("resnet110_cifar_survival05"), 40.25) && near(depth("resnet1202_cifar_survival05"), 449.75));
    assert!(near(depth("resnet110_cifar_survival05_uniform"), 27.0));
    assert!(near(depth("resnet1202_cifar_survival05_uniform"), 300.0));
    let survival = graph("resnet110_cifar_survival05").survival();
    assert!(survival.len() == 54 && near(survival[0], 1.0 - 0.5 / 54.0) && near(survival[53], 0.5));
    assert!(near(graph("resnet50_survival08").survival()[15], 0.8));
    assert!(near(graph("preact_resnet164_cifar_survival075").survival()[53], 0.75));
    assert!(near(depth("resnet18_survival10"), 8.0), "with a survival probability of 1 nothing is dropped");
    for name in ["resnext29_8x64d_cifar_survival05", "wide_resnet50_2_survival05", "resnet20_cifar_option_b_survival05"]
    {
        let (with, without) = (graph(name), graph(name.strip_suffix("_survival05").unwrap()));
        let names =
            |g: &Graph| g.parameters().iter().map(|p| p.name.clone()).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(names(&with), names(&without), "{name}");
        assert_eq!(with.macs(), without.macs(), "{name}");
    }
    for suffix in ["5", "00", "11", "050", "0.5", "05_linear", "05_uniform_uniform", "00001"] {
        assert!(models::find(&format!("resnet20_cifar_survival{suffix}")).is_err(), "{suffix}");
    }
    assert!(models::find("plain20_cifar_survival05").is_err(), "without a shortcut nothing can be dropped");
    assert!(models::find("vgg11_survival05").is_err());
}

/// Blocks of every family, each closed in turn, fused and planned, against the reference.
#[test]
fn every_order_and_shortcut_can_be_dropped() {
    let cifar = [
        "",
        "_average",
        "_option_b",
        "_conv1x1",
        "_bn_after_add",
        "_relu_before_add",
        "_relu_only_preact",
        "_full_preact",
    ];
    let mut names: Vec<String> = cifar.iter().map(|kind| format!("resnet8_cifar{kind}_survival05")).collect();
    names.extend(["preact_resnet11_cifar_survival05", "resnext11_2x8d_cifar_survival05_uniform"].map(String::from));
    for name in names {
        let model = models::find(&name).unwrap();
        let options = BuildOptions { loss: true, ..Default::default() };
        let mut graph = model.build(Mode::Train, 2, [3, 8, 8], 10, options).unwrap();
        graph.differentiate().unwrap();
        let state = model.initialise(&graph, 3);
        let pixels = Random::new(&name).normals(2 * 3 * 64, 0.0, 1.0);
        let x = HostTensor::f64([2, 3, 8, 8], pixels);
        let mut program = Program::compile(&graph, &Device::cpu(), DType::F64, None).unwrap();
        program.set_input("input", &x).unwrap();
        program.set_labels(&[1, 7]).unwrap();
        let mut it = Interpreter::<f64>::new(&graph, DType::F64);
        it.set_input("input", &x).unwrap();
        it.set_labels(&[1, 7]).unwrap();
        for bits in 0..8u32 {
            let open: Vec<bool> = (0..3).map(|block| bits >> block & 1 == 1).collect();
            it.load(&state).unwrap();
            it.set_gates(&open).unwrap();
            it.run();
            program.load(&state).unwrap();
            program.set_gates(&open).unwrap();
            let found = run(&mut program);
            let expected = gather(it.output("logits").unwrap(), it.output("loss").unwrap(), it.gradients(), it.state());
            let largest = expected.values().map(norm).fold(0.0, f64::max);
            for (tensor, value) in &found {
                // A weight whose scale the next batch norm removes has a gradient of rounding errors alone.
                let bound = 1e-9 * norm(&expected[tensor]) + 1e-12 * largest;
                let error = difference(value, &expected[tensor]);
                assert!(error <= bound, "{name} with gates {open:?}, {tensor}: {error:e}, allowed {bound:e}");
            }
        }
    }
}
