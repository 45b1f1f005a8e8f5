//! Whole programs on every device: the same network, trained for some steps, against the reference executor and against
//! each other.

use residuum::device::Device;
use residuum::graph::{Graph, Interpreter, Program};
use residuum::ops::sgd::{Sgd, Spec};
use residuum::tensor::{DType, StateDict};

use crate::graph::{differentiated, distance, input, interpret, state, LABELS};
use crate::harness::DTYPES;
use crate::machine::{self, machines, Sweep};

/// Roundings to the storage type that add up, in a network of a dozen layers, to the relative distance of two ways to
/// compute the same: each layer adds about one, and batch norms of a handful of pixels amplify them. A network with a
/// wrong layer is off by tenths.
const FORWARD_ROUNDINGS: f64 = 4.0;
/// As before, forward and backward.
const BACKWARD_ROUNDINGS: f64 = 32.0;

fn optimizer() -> Sgd {
    let spec = Spec { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 1e-3, grad_scale: 1.0 };
    Sgd::new(spec).expect("a sound optimizer")
}

/// `graph` on `device` after `steps` training steps.
fn trained(graph: &Graph, device: &Device, dtype: DType, start: &StateDict, steps: usize) -> Program {
    let mut program = Program::compile(graph, device, dtype, Some(optimizer())).expect("a program");
    program.load(start).expect("a sound state");
    program.set_learning_rate(0.05).expect("a rate");
    for step in 0..steps {
        program.set_input("input", &input(100 + step as u64)).expect("the input");
        program.set_labels(&LABELS).expect("labels");
        program.run().expect("a run");
    }
    program
}

/// The largest relative distance between tensors of the same name.
fn furthest(a: &StateDict, b: &StateDict) -> (String, f64) {
    assert!(a.keys().eq(b.keys()));
    let distances = a.iter().map(|(name, tensor)| (name.clone(), distance(tensor, &b[name])));
    distances.max_by(|a, b| a.1.total_cmp(&b.1)).expect("a tensor")
}

#[test]
fn every_device_computes_what_the_reference_does() {
    let graph = differentiated();
    let start = state(&graph, 20);
    for device in machine::devices("programs on a GPU") {
        for dtype in DTYPES {
            let program = trained(&graph, &device, dtype, &start, 1);
            let mut it = Interpreter::<f64>::new(&graph, dtype);
            it.load(&start).expect("a sound state");
            it.set_input("input", &input(100)).expect("the input");
            it.set_labels(&LABELS).expect("labels");
            it.run();
            let what = format!("{dtype} on {}", device.kind());
            for name in ["logits", "loss"] {
                let d = distance(&program.output(name).expect(name), &it.output(name).expect(name));
                assert!(d <= FORWARD_ROUNDINGS * dtype.epsilon(), "{what}: {name} is off by {d:e}");
            }
            let (name, d) = furthest(&program.gradients().expect("gradients"), &it.gradients());
            assert!(d <= BACKWARD_ROUNDINGS * dtype.epsilon(), "{what}: the gradient of {name} is off by {d:e}");
        }
    }
}

#[test]
fn training_gives_the_same_bits_under_every_schedule() {
    const STEPS: usize = 3;
    let graph = differentiated();
    let start = state(&graph, 21);
    for dtype in DTYPES {
        let mut groups: Vec<(&str, &str, StateDict)> = Vec::new();
        for machine in machines(Sweep::TensorCores) {
            let device = Device::Kernels(machine.backend.clone());
            let state = trained(&graph, &device, dtype, &start, STEPS).state().expect("a state");
            match groups.iter().find(|(group, ..)| *group == machine.group) {
                None => groups.push((machine.group, &machine.label, state)),
                Some((_, first, expected)) => {
                    assert!(state == *expected, "{dtype}: {} and {first} differ", machine.label);
                }
            }
        }
        let cpu = trained(&graph, &Device::cpu(), dtype, &start, STEPS).state().expect("a state");
        for (_, label, state) in &groups {
            let (name, d) = furthest(state, &cpu);
            assert!(d <= BACKWARD_ROUNDINGS * dtype.epsilon(), "{dtype}: {name} on {label} is off by {d:e}");
        }
    }
}

#[test]
fn the_distance_finds_a_wrong_layer() {
    // The negative control of the bounds above: one weight of one layer is another.
    let graph = differentiated();
    let right = state(&graph, 22);
    let mut wrong = right.clone();
    let mut weight = wrong["b.conv1.weight"].to_real::<f64>();
    weight[0] += 1.0;
    let shape = right["b.conv1.weight"].shape.clone();
    wrong.insert("b.conv1.weight".into(), residuum::tensor::HostTensor::f64(shape, weight));
    let logits = |state| interpret(&graph, state, &input(23)).output("logits").expect("logits");
    let d = distance(&logits(&wrong), &logits(&right));
    assert!(d > FORWARD_ROUNDINGS * DType::BF16.epsilon(), "{d:e}");
}
