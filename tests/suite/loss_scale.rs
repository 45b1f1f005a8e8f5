//! Training programs in f16: the dynamic loss scale on every device.

use residuum::control::loss_scale::{LossScale, INTERVAL};
use residuum::control::sgd::{Sgd, Spec};
use residuum::device::Device;
use residuum::graph::{Builder, Graph, LossOptions, Mode, Program};
use residuum::models::{self, BuildOptions};
use residuum::tensor::{DType, HostTensor, Shape, StateDict};

use crate::machine::devices;
use crate::random::Random;

/// Linear layers of `widths` features on `n` rows, with nothing between them.
fn layers(n: usize, widths: &[usize]) -> Graph {
    let mut b = Builder::new(Mode::Train);
    let mut x = b.input("input", [n, 1, 1, widths[0]]);
    for (i, &width) in widths[1..].iter().enumerate() {
        x = b.linear(&format!("fc{i}"), x, width).unwrap();
    }
    b.loss(x, LossOptions::default()).unwrap();
    let mut graph = b.finish();
    graph.differentiate().unwrap();
    graph
}

fn program(graph: &Graph, device: &Device, dtype: DType) -> Program {
    let spec = Spec { momentum: 0.5, dampening: 0.0, nesterov: false, weight_decay: 0.0 };
    Program::compile(graph, device, dtype, Some(Sgd::new(spec).unwrap())).unwrap()
}

/// A value for every parameter, by its shape.
fn state(graph: &Graph, mut value: impl FnMut(&Shape) -> Vec<f32>) -> StateDict {
    graph.parameters().iter().map(|p| (p.name.clone(), HostTensor::f32(p.shape.clone(), value(&p.shape)))).collect()
}

fn values(state: &StateDict, name: &str) -> Vec<f64> {
    state[name].to_real()
}

const ROW: [f32; 4] = [1.0, -2.0, 3.0, 8.0];

/// One image of four features, four classes, all weights 0: the softmax is 1/4 everywhere.
fn one_image(device: &Device) -> Program {
    let graph = layers(1, &[4, 4]);
    let mut program = program(&graph, device, DType::F16);
    program.load(&state(&graph, |shape| vec![0.0; shape.len()])).unwrap();
    program.set_input("input", &HostTensor::f32([1, 4, 1, 1], ROW.to_vec())).unwrap();
    program.set_labels(&[2]).unwrap();
    program.set_learning_rate(0.5).unwrap();
    program
}

fn scale(program: &Program) -> (f64, u32) {
    let LossScale { scale, good_steps } = program.loss_scale().unwrap().unwrap();
    (scale, good_steps)
}

#[test]
fn an_overflow_skips_the_step_and_halves_the_scale() {
    for device in devices("loss scaling") {
        let mut program = one_image(&device);
        assert_eq!(scale(&program), (65_536.0, 0), "{}", device.kind());
        // 3/4 of 2^17 is more than f16 holds.
        program.load_loss_scale(LossScale { scale: 131_072.0, good_steps: 7 }).unwrap();
        program.run().unwrap();
        assert_eq!(scale(&program), (65_536.0, 0), "{}", device.kind());
        assert!(program.velocity().unwrap().is_empty(), "no step was taken");
        assert!(values(&program.state().unwrap(), "fc0.weight").iter().all(|&w| w == 0.0));
        assert!(values(&program.gradients().unwrap(), "fc0.bias").contains(&f64::NEG_INFINITY));

        // The first step taken: velocity = gradient, whatever memory held.
        program.run().unwrap();
        assert_eq!(scale(&program), (65_536.0, 1));
        let gradient: Vec<f64> = [0.25, 0.25, -0.75, 0.25].iter().flat_map(|d| ROW.map(|x| d * f64::from(x))).collect();
        assert_eq!(values(&program.gradients().unwrap(), "fc0.weight"), gradient, "{}", device.kind());
        assert_eq!(values(&program.velocity().unwrap(), "fc0.weight"), gradient);
        let expected: Vec<f64> = gradient.iter().map(|g| -0.5 * g).collect();
        assert_eq!(values(&program.state().unwrap(), "fc0.weight"), expected);

        // Again, now with velocities. The label is another one, so that the gradient is not small.
        program.set_labels(&[0]).unwrap();
        let before = (program.state().unwrap(), program.velocity().unwrap());
        program.load_loss_scale(LossScale { scale: 2f64.powi(40), good_steps: INTERVAL - 1 }).unwrap();
        program.run().unwrap();
        assert_eq!((program.state().unwrap(), program.velocity().unwrap()), before, "{}", device.kind());
        assert_eq!(scale(&program), (2f64.powi(39), 0));

        // A gradient that is not finite at any scale.
        let huge = HostTensor::f32([1, 4, 1, 1], vec![6e4; 4]);
        let mut large = StateDict::new();
        for (name, tensor) in &before.0 {
            large.insert(name.clone(), HostTensor::f32(tensor.shape.clone(), vec![3e4; tensor.shape.len()]));
        }
        program.load(&large).unwrap();
        program.set_input("input", &huge).unwrap();
        program.load_loss_scale(LossScale { scale: 4.0, good_steps: 3 }).unwrap();
        for expected in [2.0, 1.0, 1.0] {
            program.run().unwrap();
            assert_eq!(scale(&program), (expected, 0), "{}", device.kind());
        }
        assert_eq!(program.state().unwrap(), large);
    }
}

#[test]
fn the_scale_doubles_after_enough_good_steps() {
    for device in devices("loss scaling") {
        let mut program = one_image(&device);
        program.load_loss_scale(LossScale { scale: 1024.0, good_steps: INTERVAL - 2 }).unwrap();
        program.run().unwrap();
        assert_eq!(scale(&program), (1024.0, INTERVAL - 1), "{}", device.kind());
        program.run().unwrap();
        assert_eq!(scale(&program), (2048.0, 0), "{}", device.kind());
        program.run().unwrap();
        assert_eq!(scale(&program), (2048.0, 1), "{}", device.kind());
    }
}

#[test]
fn gradients_in_range_have_the_same_bits_under_every_scale() {
    let graph = layers(4, &[8, 8, 4]);
    let mut random = Random::new("loss scale");
    let start = state(&graph, |shape| (0..shape.len()).map(|_| random.unit() as f32 - 0.5).collect());
    let x: Vec<f32> = (0..32).map(|_| random.unit() as f32 - 0.5).collect();
    for device in devices("loss scaling") {
        let run = |scale| {
            let mut program = program(&graph, &device, DType::F16);
            program.load(&start).unwrap();
            program.load_loss_scale(LossScale { scale, good_steps: 0 }).unwrap();
            program.set_learning_rate(0.125).unwrap();
            program.set_input("input", &HostTensor::f32([4, 8, 1, 1], x.clone())).unwrap();
            program.set_labels(&[0, 1, 3, 1]).unwrap();
            program.run().unwrap();
            (program.gradients().unwrap(), program.state().unwrap(), program.velocity().unwrap())
        };
        let expected = run(16.0);
        assert!(values(&expected.0, "fc0.weight").iter().all(|&g| g != 0.0 && g.is_finite()));
        assert_ne!(expected.1, start);
        for scale in [64.0, 256.0, 4096.0, 65_536.0] {
            assert_eq!(run(scale), expected, "{} at {scale}", device.kind());
        }
        assert_eq!(run(2f64.powi(24)).1, start, "out of range the step is skipped");
    }
}

#[test]
fn a_skipped_step_still_moves_the_running_statistics() {
    let model = models::find("resnet8_cifar").unwrap();
    let options = BuildOptions { loss: true, smoothing: 0.0, grad_scale: 1.0 };
    let mut graph = model.build(Mode::Train, 4, [1, 8, 8], 10, options).unwrap();
    graph.differentiate().unwrap();
    let start = model.initialise(&graph, 3);
    let pixels: Vec<f32> = Random::new("pixels").normals(4 * 64, 0.0, 1.0).iter().map(|&v| v as f32).collect();
    for device in devices("loss scaling") {
        let mut program = program(&graph, &device, DType::F16);
        program.load(&start).unwrap();
        program.load_loss_scale(LossScale { scale: 2f64.powi(60), good_steps: 0 }).unwrap();
        program.set_learning_rate(0.5).unwrap();
        program.set_input("input", &HostTensor::f32([4, 1, 8, 8], pixels.clone())).unwrap();
        program.set_labels(&[1, 2, 3, 4]).unwrap();
        let before = program.state().unwrap();
        program.run().unwrap();
        let after = program.state().unwrap();
        assert_eq!(scale(&program).0, 2f64.powi(59), "{}", device.kind());
        for (name, tensor) in &after {
            let moves = name.contains("running") || name.contains("tracked");
            assert_eq!(*tensor != before[name], moves, "{}: {name}", device.kind());
        }
    }
}

#[test]
fn other_types_and_programs_without_an_optimizer_have_none() {
    let graph = layers(1, &[4, 4]);
    for device in devices("loss scaling") {
        for dtype in [DType::F32, DType::BF16] {
            let mut program = program(&graph, &device, dtype);
            assert_eq!(program.loss_scale().unwrap(), None);
            let text = program.load_loss_scale(LossScale::default()).expect_err("refused").to_string();
            assert!(text.contains("only a program in f16 with an optimizer has one"), "{text}");
        }
        let mut program = Program::compile(&graph, &device, DType::F16, None).unwrap();
        assert_eq!(program.loss_scale().unwrap(), None);
        assert!(program.load_loss_scale(LossScale { scale: 3.0, good_steps: 0 }).is_err());
    }
}
