//! Graphs: programs against the interpreter, gradients against differences, state dicts, memory.

mod ready;

use residuum::control::sgd::{Sgd, Spec};
use residuum::device::Device;
use residuum::graph::{Builder, ConvOptions, Graph, Interpreter, LossOptions, Mode, Program};
use residuum::ops::pool::{Kind, Window};
use residuum::tensor::{DType, HostData, HostTensor, StateDict};

use crate::distance::distance;
use crate::machine::devices;
use crate::random::Random;

const BATCH: usize = 3;
const CLASSES: usize = 5;

/// A network with every op: stem, pooling, an identity block, a projection block, an option A block, a biased
/// convolution, both ends.
fn network(mode: Mode) -> Graph {
    let mut b = Builder::new(mode);
    let conv = |k, size: usize, stride| ConvOptions {
        k,
        kernel: [size; 2],
        stride: [stride; 2],
        padding: [size / 2; 2],
        ..Default::default()
    };
    let build = |b: &mut Builder| -> residuum::Result<()> {
        let x = b.input("input", [BATCH, 11, 9, 3]);
        let x = b.conv2d("stem", x, conv(6, 3, 1))?;
        let x = b.batch_norm("stem_bn", x, 1e-5)?;
        let x = b.relu(x)?;
        let window = Window::Sliding { kernel: [3; 2], stride: [2; 2], padding: [1; 2], ceil: true };
        let x = b.pool(x, window, Kind::Max)?;
        let f = b.conv2d("a.conv1", x, ConvOptions { groups: 2, ..conv(6, 3, 1) })?;
        let f = b.batch_norm("a.bn1", f, 1e-5)?;
        let f = b.relu(f)?;
        let f = b.conv2d("a.conv2", f, conv(6, 1, 1))?;
        let f = b.batch_norm("a.bn2", f, 1e-5)?;
        let x = b.add(f, x)?;
        let x = b.relu(x)?;
        let f = b.conv2d("b.conv1", x, conv(8, 3, 2))?;
        let f = b.batch_norm("b.bn1", f, 1e-5)?;
        let s = b.conv2d("b.down", x, conv(8, 1, 2))?;
        let s = b.batch_norm("b.down_bn", s, 1e-5)?;
        let x = b.add(f, s)?;
        let x = b.relu(x)?;
        let f = b.conv2d("c.conv1", x, ConvOptions { bias: true, ..conv(10, 3, 2) })?;
        let f = b.relu(f)?;
        let s = b.shortcut(x, 10, 2, 1)?;
        let x = b.add(f, s)?;
        let x = b.pool(x, Window::Adaptive([2, 1]), Kind::Average { count_padding: false })?;
        let logits = b.linear("fc", x, CLASSES)?;
        b.output("logits", logits);
        b.loss(logits, LossOptions { smoothing: 0.1, ..Default::default() })?;
        Ok(())
    };
    build(&mut b).expect("a sound network");
    b.finish()
}

fn differentiated() -> Graph {
    let mut graph = network(Mode::Train);
    graph.differentiate().expect("a loss");
    graph
}

/// Random parameters and buffers.
fn state(graph: &Graph, seed: u64) -> StateDict {
    let mut rng = Random::new(&seed.to_string());
    let mut tensor = |shape: &residuum::tensor::Shape, low: f64, high: f64| {
        let v = (0..shape.len()).map(|_| (low + (high - low) * rng.unit()) as f32).collect();
        HostTensor::f32(shape.clone(), v)
    };
    let mut state = StateDict::new();
    for p in graph.parameters() {
        let (low, high) = if p.name.contains("bn") && p.name.ends_with("weight") { (0.5, 1.5) } else { (-0.5, 0.5) };
        state.insert(p.name.clone(), tensor(&p.shape, low, high));
    }
    for b in graph.buffers() {
        let (low, high) = if b.name.ends_with("var") { (0.5, 1.5) } else { (-0.3, 0.3) };
        state.insert(b.name.clone(), tensor(&b.shape, low, high));
    }
    state
}

fn input(seed: u64) -> HostTensor {
    let mut rng = Random::new(&seed.to_string());
    HostTensor::f32([BATCH, 3, 11, 9], (0..BATCH * 3 * 11 * 9).map(|_| (2.0 * rng.unit() - 1.0) as f32).collect())
}

const LABELS: [i32; BATCH] = [4, 0, 2];

fn f64s(t: &HostTensor) -> Vec<f64> {
    t.to_real()
}

fn assert_same(a: &StateDict, b: &StateDict, bound: f64) {
    assert!(a.keys().eq(b.keys()), "{:?} and {:?}", a.keys(), b.keys());
    for (name, tensor) in a {
        let d = distance(tensor, &b[name]);
        assert!(d <= bound, "{name}: relative distance {d:e}, allowed {bound:e}");
    }
}

fn interpret<'g>(graph: &'g Graph, state: &StateDict, x: &HostTensor) -> Interpreter<'g, f64> {
    let mut it = Interpreter::<f64>::new(graph, DType::F64);
    it.load(state).expect("a sound state");
    it.set_input("input", x).expect("the input");
    it.set_labels(&LABELS).expect("labels");
    it.run();
    it
}

fn compile(graph: &Graph, device: &Device, dtype: DType, state: &StateDict, x: &HostTensor) -> Program {
    let mut program = Program::compile(graph, device, dtype, None).expect("a program");
    program.load(state).expect("a sound state");
    program.set_input("input", x).expect("the input");
    program.set_labels(&LABELS).expect("labels");
    program
}

#[test]
fn a_training_program_equals_the_interpreter() {
    let graph = differentiated();
    let (state, x) = (state(&graph, 1), input(2));
    let it = interpret(&graph, &state, &x);
    let mut program = compile(&graph, &Device::cpu(), DType::F64, &state, &x);
    for run in 0..2 {
        program.load(&state).expect("a sound state");
        program.run().expect("a run");
        for name in ["logits", "loss", "correct"] {
            let d = distance(&program.output(name).expect(name), &it.output(name).expect(name));
            assert!(d <= 1e-12, "{name} in run {run}: {d:e}");
        }
        assert_same(&program.gradients().expect("gradients"), &it.gradients(), 1e-11);
        assert_same(&program.state().expect("state"), &it.state(), 1e-12);
    }
}

#[test]
fn an_inference_program_equals_the_interpreter() {
    let graph = network(Mode::Infer);
    let (state, x) = (state(&graph, 3), input(4));
    let it = interpret(&graph, &state, &x);
    let mut program = compile(&graph, &Device::cpu(), DType::F64, &state, &x);
    program.run().expect("a run");
    let d = distance(&program.output("logits").expect("logits"), &it.output("logits").expect("logits"));
    assert!(d <= 1e-12, "{d:e}");
    assert_same(&program.state().expect("state"), &it.state(), 1e-12);
}

#[test]
fn rounding_to_a_storage_type_is_the_same_unfused() {
    // Fusion omits the rounding of intermediate results, so the two differ by a few roundings.
    let graph = differentiated();
    let (state, x) = (state(&graph, 5), input(6));
    for dtype in [DType::F16, DType::BF16] {
        let mut it = Interpreter::<f64>::new(&graph, dtype);
        it.load(&state).expect("a sound state");
        it.set_input("input", &x).expect("the input");
        it.set_labels(&LABELS).expect("labels");
        it.run();
        let mut program = compile(&graph, &Device::cpu(), dtype, &state, &x);
        program.run().expect("a run");
        let d = distance(&program.output("logits").expect("logits"), &it.output("logits").expect("logits"));
        assert!(d <= 8.0 * dtype.epsilon(), "{dtype}: {d:e}");
        let exact = interpret(&graph, &state, &x).output("logits").expect("logits");
        let rounding = distance(&program.output("logits").expect("logits"), &exact);
        assert!(rounding > 0.1 * dtype.epsilon(), "{dtype}: something is rounded: {rounding:e}");
    }
}

#[test]
fn gradients_agree_with_differences() {
    let graph = differentiated();
    let (state, x) = (state(&graph, 7), input(8));
    let loss = |state: &StateDict| f64s(&interpret(&graph, state, &x).output("loss").expect("loss"))[0];
    let gradients = interpret(&graph, &state, &x).gradients();
    for p in graph.parameters() {
        let mut rng = Random::new("direction");
        let direction: Vec<f64> = (0..p.shape.len()).map(|_| 2.0 * rng.unit() - 1.0).collect();
        let moved = |by: f64| {
            let v = f64s(&state[&p.name]).iter().zip(&direction).map(|(a, d)| a + by * d).collect();
            let mut state = state.clone();
            state.insert(p.name.clone(), HostTensor::f64(p.shape.clone(), v));
            loss(&state)
        };
        let h = 1e-5;
        let difference = (moved(h) - moved(-h)) / (2.0 * h);
        let slope: f64 = f64s(&gradients[&p.name]).iter().zip(&direction).map(|(g, d)| g * d).sum();
        let error = (difference - slope).abs();
        assert!(error <= 1e-6 * (1.0 + slope.abs()), "{}: {slope:e} by rule, {difference:e} by difference", p.name);
    }
}

#[test]
fn fusion_folds_inference() {
    let program = Program::compile(&network(Mode::Infer), &Device::cpu(), DType::F32, None).expect("a program");
    let listed = program.ops();
    assert!(!listed.contains(&"relu_fwd"), "every ReLU is in an epilogue: {listed:?}");
    assert!(!listed.contains(&"batch_norm_infer"), "every batch norm is folded: {listed:?}");
    assert_eq!(listed.iter().filter(|n| **n == "sum_fwd").count(), 1, "the addition to a shortcut stays: {listed:?}");
}

#[test]
fn fusion_shortens_training() {
    let graph = differentiated();
    let program = Program::compile(&graph, &Device::cpu(), DType::F32, None).expect("a program");
    let listed = program.ops();
    let count = |name: &str| listed.iter().filter(|n| **n == name).count();
    assert_eq!(count("relu_fwd"), 0, "each ReLU is in the op before it: {listed:?}");
    assert_eq!(count("relu_bwd"), 3, "after an addition or a biased convolution the mask stays an op: {listed:?}");
    assert_eq!(count("sum_fwd"), 3, "three block ends, and no sum of gradients: {listed:?}");
}

/// Two nested residual blocks of one convolution each: gradients whose sums are themselves summed.
fn nested_blocks() -> Graph {
    let mut b = Builder::new(Mode::Train);
    let conv = ConvOptions { k: 4, kernel: [3; 2], padding: [1; 2], ..Default::default() };
    let build = |b: &mut Builder| -> residuum::Result<()> {
        let x = b.input("input", [BATCH, 11, 9, 3]);
        let x = b.conv2d("stem", x, conv)?;
        let f = b.conv2d("one", x, conv)?;
        let y = b.add(x, f)?;
        let f = b.conv2d("two.a", y, conv)?;
        let f = b.conv2d("two.b", f, conv)?;
        let g = b.conv2d("three", y, conv)?;
        let z = b.add(y, f)?;
        let z = b.add(z, g)?;
        let z = b.pool(z, Window::Adaptive([1, 1]), Kind::Average { count_padding: false })?;
        let logits = b.linear("fc", z, CLASSES)?;
        b.output("logits", logits);
        b.loss(logits, LossOptions::default())?;
        Ok(())
    };
    build(&mut b).expect("a sound network");
    let mut graph = b.finish();
    graph.differentiate().expect("a loss");
    graph
}

#[test]
fn sums_of_sums_of_gradients_are_not_read_while_they_grow() {
    let graph = nested_blocks();
    let (state, x) = (state(&graph, 20), input(21));
    let it = interpret(&graph, &state, &x);
    let mut program = compile(&graph, &Device::cpu(), DType::F64, &state, &x);
    program.run().expect("a run");
    assert_same(&program.gradients().expect("gradients"), &it.gradients(), 1e-11);
}

#[test]
fn an_optimizer_follows_the_gradient() {
    let graph = differentiated();
    let (start, x) = (state(&graph, 10), input(11));
    let spec = Spec { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 1e-2 };
    let sgd = Sgd::new(spec).expect("a sound optimizer");
    let mut program = Program::compile(&graph, &Device::cpu(), DType::F64, Some(sgd)).expect("a program");
    program.load(&start).expect("a sound state");
    program.set_learning_rate(0.1).expect("a rate");
    let mut expected: StateDict = start.clone();
    let mut velocity: std::collections::BTreeMap<String, Vec<f64>> = Default::default();
    for _ in 0..3 {
        program.set_input("input", &x).expect("the input");
        program.set_labels(&LABELS).expect("labels");
        program.run().expect("a run");
        let it = interpret(&graph, &expected, &x);
        let after = it.state();
        for (name, grad) in it.gradients() {
            let param = f64s(&expected[&name]);
            let g: Vec<f64> = f64s(&grad).iter().zip(&param).map(|(g, p)| g + 1e-2 * p).collect();
            let v = velocity.entry(name.clone()).or_insert_with(|| vec![0.0; g.len()]);
            v.iter_mut().zip(&g).for_each(|(v, g)| *v = 0.9 * *v + g);
            let moved = param.iter().zip(&g).zip(v.iter()).map(|((p, g), v)| p - 0.1 * (g + 0.9 * v)).collect();
            expected.insert(name.clone(), HostTensor::f64(grad.shape.clone(), moved));
        }
        expected.extend(graph.buffers().iter().map(|b| (b.name.clone(), after[&b.name].clone())));
    }
    let state = program.state().expect("state");
    for name in graph.parameters().iter().map(|p| &p.name).chain(graph.buffers().iter().map(|b| &b.name)) {
        let d = distance(&state[name], &expected[name]);
        assert!(d <= 1e-10, "{name}: {d:e}");
    }
}

/// A loss of one linear layer whose gradients are multiplied by `grad_scale`.
fn scaled(grad_scale: f64) -> Graph {
    let mut b = Builder::new(Mode::Train);
    let x = b.input("input", [BATCH, 11, 9, 3]);
    let logits = b.linear("fc", x, CLASSES).expect("a layer");
    b.loss(logits, LossOptions { smoothing: 0.1, grad_scale }).expect("a loss");
    let mut graph = b.finish();
    graph.differentiate().expect("a loss");
    graph
}

#[test]
fn the_optimizer_divides_by_the_scale_of_the_loss() {
    let (x, spec) = (input(31), Spec { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 1e-2 });
    let run = |grad_scale: f64, device: &Device, dtype: DType| {
        let graph = scaled(grad_scale);
        let sgd = Sgd::new(spec).expect("a sound optimizer");
        let mut program = Program::compile(&graph, device, dtype, Some(sgd)).expect("a program");
        program.load(&state(&graph, 30)).expect("a sound state");
        program.set_learning_rate(0.1).expect("a rate");
        program.set_input("input", &x).expect("the input");
        program.set_labels(&LABELS).expect("labels");
        (0..3).for_each(|_| program.run().expect("a run"));
        [
            program.state().expect("state"),
            program.gradients().expect("gradients"),
            program.velocity().expect("velocity"),
        ]
    };
    for device in devices("the optimizer's scale") {
        let cpu = matches!(device, Device::Cpu);
        let types = [(DType::F64, 1e-12), (DType::F32, 1e-6)];
        for (dtype, bound) in types.into_iter().filter(|(dtype, _)| cpu || *dtype != DType::F64) {
            let expected = run(1.0, &device, dtype);
            for scale in [256.0, 0.125, 1000.0] {
                for (found, expected) in run(scale, &device, dtype).iter().zip(&expected) {
                    assert_same(found, expected, bound);
                }
            }
        }
    }
}

#[test]
fn without_momentum_there_are_no_velocities() {
    let graph = scaled(1.0);
    for device in devices("velocities") {
        for dtype in [DType::F32, DType::F16] {
            let program = |momentum| {
                let spec = Spec { momentum, dampening: 0.5, nesterov: false, weight_decay: 0.0 };
                let sgd = Sgd::new(spec).expect("a sound optimizer");
                let mut program = Program::compile(&graph, &device, dtype, Some(sgd)).expect("a program");
                program.load(&state(&graph, 32)).expect("a sound state");
                program.set_learning_rate(0.5).expect("a rate");
                program.set_input("input", &input(33)).expect("the input");
                program.set_labels(&LABELS).expect("labels");
                program.run().expect("a run");
                program
            };
            let (mut plain, mut heavy) = (program(0.0), program(0.5));
            let label = format!("{dtype} on {}", device.kind());
            assert!(plain.velocity().expect("velocity").is_empty(), "{label}: velocities that no step reads");
            let velocity = heavy.velocity().expect("velocity");
            assert!(!velocity.is_empty(), "{label}");
            // Without momentum, loaded velocities change nothing; empty ones restart a run with momentum.
            let mut other = program(0.0);
            other.load_velocity(&velocity).expect("velocities");
            plain.load_velocity(&plain.velocity().expect("none")).expect("none");
            plain.run().expect("a run");
            other.run().expect("a run");
            assert_eq!(plain.state().expect("state"), other.state().expect("state"), "{label}");
            heavy.load_velocity(&plain.velocity().expect("none")).expect("none");
            heavy.run().expect("a run");
            let gradients = heavy.gradients().expect("gradients");
            assert_same(&heavy.velocity().expect("velocity"), &gradients, 1e-6);
        }
    }
}

/// A step whose loss is not finite changes no parameter and no velocity, and the first step is the first that is taken.
#[test]
fn a_step_whose_loss_is_not_finite_is_skipped() {
    let graph = scaled(1.0);
    let spec = Spec { momentum: 0.5, dampening: 0.5, nesterov: false, weight_decay: 0.0 };
    for device in devices("skipped steps") {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let label = format!("{dtype} on {}", device.kind());
            let after = |losses: &[f32]| {
                let mut program = Program::compile(&graph, &device, dtype, Some(Sgd::new(spec).unwrap())).unwrap();
                program.load(&state(&graph, 32)).unwrap();
                program.set_learning_rate(0.5).unwrap();
                program.set_labels(&LABELS).unwrap();
                for factor in losses {
                    let HostTensor { shape, data } = input(33);
                    let mut data = HostTensor { shape: shape.clone(), data }.to_real::<f32>();
                    data[0] *= factor;
                    program.set_input("input", &HostTensor::f32(shape, data)).unwrap();
                    program.run().unwrap();
                    let loss = program.output("loss").unwrap();
                    assert_eq!(loss.first_non_finite().is_none(), factor.is_finite(), "{label}");
                }
                let parameters: Vec<_> = graph.parameters().iter().map(|p| p.name.clone()).collect();
                let mut state = program.state().unwrap();
                state.retain(|name, _| parameters.contains(name));
                (state, program.velocity().unwrap())
            };
            assert_eq!(after(&[f32::NAN, 1.0]), after(&[1.0]), "{label}: the first step");
            assert_eq!(after(&[1.0, f32::INFINITY, f32::NAN, 1.0]), after(&[1.0, 1.0]), "{label}: a later one");
            let (untouched, velocity) = after(&[f32::NAN]);
            assert!(velocity.is_empty() && untouched.values().all(|t| t.first_non_finite().is_none()), "{label}");
        }
    }
}

#[test]
fn impossible_losses_are_refused_by_name() {
    let refused = |smoothing, grad_scale| {
        let mut b = Builder::new(Mode::Train);
        let x = b.input("input", [BATCH, 1, 1, CLASSES]);
        b.loss(x, LossOptions { smoothing, grad_scale }).map_err(|e| e.to_string())
    };
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e39, 1e-40] {
        let message = refused(0.1, scale).expect_err("refused");
        assert!(message.contains("gradient scale") && message.contains("expected a number from"), "{message}");
    }
    for smoothing in [1.0, -0.1, f64::NAN, 2.0] {
        let message = refused(smoothing, 1.0).expect_err("refused");
        assert!(message.contains("smoothing") && message.contains("expected at least 0, less than 1"), "{message}");
    }
    assert!(refused(0.0, 1.0).is_ok() && refused(0.5, 3.4e38).is_ok() && refused(0.5, 1.2e-38).is_ok());
}

#[test]
fn bad_states_are_refused_by_name() {
    let graph = network(Mode::Infer);
    let sound = state(&graph, 12);
    let mut program = Program::compile(&graph, &Device::cpu(), DType::F32, None).expect("a program");
    let mut refused = |change: &dyn Fn(&mut StateDict), words: &[&str]| {
        let mut state = sound.clone();
        change(&mut state);
        let message = program.load(&state).expect_err("refused").to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{message}");
    };
    refused(&|s| drop(s.remove("fc.bias")), &["fc.bias", "missing", "[5]"]);
    refused(&|s| drop(s.insert("extra".into(), HostTensor::f32([1], vec![0.0]))), &["extra"]);
    refused(&|s| drop(s.insert("fc.bias".into(), HostTensor::f32([4], vec![0.0; 4]))), &["fc.bias", "[4]", "[5]"]);
    let mut odd = sound.clone();
    odd.insert("fc.bias".into(), HostTensor::f32([5], vec![0.0, f32::NAN, 0.0, 0.0, 0.0]));
    odd.insert("stem_bn.num_batches_tracked".into(), HostTensor::i64([], vec![7]));
    let report = program.load(&odd).expect("a NaN is loaded");
    assert_eq!(report.non_finite, [("fc.bias".to_string(), 1)]);
    assert_eq!(program.state().expect("state")["stem_bn.num_batches_tracked"].data, HostData::I64(vec![7]));
}

#[test]
fn labels_and_inputs_are_checked() {
    let graph = network(Mode::Infer);
    let mut program = Program::compile(&graph, &Device::cpu(), DType::F32, None).expect("a program");
    for labels in [vec![0, 1], vec![0, 1, 5], vec![0, -1, 1]] {
        assert!(program.set_labels(&labels).is_err(), "{labels:?}");
    }
    let wrong = HostTensor::f32([BATCH, 3, 9, 11], vec![0.0; BATCH * 3 * 99]);
    let message = program.set_input("input", &wrong).expect_err("refused").to_string();
    assert!(message.contains("[3, 3, 9, 11]") && message.contains("[3, 3, 11, 9]"), "{message}");
    assert!(program.set_input("image", &wrong).expect_err("refused").to_string().contains("input"));
}
