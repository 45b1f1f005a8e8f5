//! What a program needs before it runs, and what it refuses.

use residuum::control::sgd::{Sgd, Spec};
use residuum::device::Device;
use residuum::graph::Program;
use residuum::models;
use residuum::tensor::{DType, HostData, StateDict};

use super::{differentiated, input, state, LABELS};
use crate::machine::devices;

/// A program never reads memory before it was written.
#[test]
fn a_program_that_is_not_ready_says_what_is_missing() {
    let graph = differentiated();
    let (state, x) = (state(&graph, 12), input(13));
    for device in [Device::cpu()].into_iter().chain(devices("a program that is not ready")) {
        let mut program = Program::compile(&graph, &device, DType::F32, None).expect("a program");
        let refused = |result: residuum::Result<()>, words: &str| {
            let message = result.expect_err("not ready").to_string();
            assert!(message.contains(words), "{}: {message}", device.kind());
        };
        refused(program.run(), "call load first");
        refused(program.state().map(drop), "call load first");
        assert!(program.load(&StateDict::new()).is_err());
        refused(program.run(), "call load first");
        program.load(&state).expect("a sound state");
        refused(program.run(), "input `input` was never set: call set_input first");
        program.set_input("input", &x).expect("the input");
        refused(program.run(), "input `labels` was never set: call set_labels first");
        program.set_labels(&LABELS).expect("labels");
        refused(program.output("loss").map(drop), "call run first");
        refused(program.gradients().map(drop), "call run first");
        program.run().expect("a run");
        let loss = program.output("loss").expect("a loss").to_real::<f64>()[0];
        assert!(loss.is_finite() && loss != 0.0, "{loss}");
    }
}

#[test]
fn a_program_with_an_optimizer_needs_a_learning_rate() {
    let graph = differentiated();
    let (state, x) = (state(&graph, 12), input(13));
    let sgd = Sgd::new(Spec { momentum: 0.9, dampening: 0.0, nesterov: false, weight_decay: 0.0 }).expect("sound");
    for device in [Device::cpu()].into_iter().chain(devices("a learning rate")) {
        let mut program = Program::compile(&graph, &device, DType::F32, Some(sgd)).expect("a program");
        program.load(&state).expect("a sound state");
        program.set_input("input", &x).expect("the input");
        program.set_labels(&LABELS).expect("labels");
        let message = program.run().expect_err("no learning rate").to_string();
        assert!(message.contains("call set_learning_rate first"), "{message}");
        for lr in [-0.1, f64::NAN, f64::INFINITY] {
            let message = program.set_learning_rate(lr).expect_err("no rate").to_string();
            assert!(message.contains("learning rate") && message.contains("at least 0"), "{lr}: {message}");
            assert!(program.run().is_err(), "{lr} set nothing");
        }
        program.set_learning_rate(0.0).expect("a rate");
        program.run().expect("a run");
    }
}

/// The fields of a host tensor are public, so its shape may contradict its elements.
#[test]
fn a_tensor_whose_shape_contradicts_its_elements_is_refused() {
    let graph = differentiated();
    let mut program = Program::compile(&graph, &Device::cpu(), DType::F32, None).expect("a program");
    let mut x = input(13);
    x.data = HostData::F32(vec![0.0; 5]);
    let mut wrong = state(&graph, 12);
    let (name, tensor) = wrong.iter_mut().next().expect("a tensor");
    tensor.data = HostData::F64(vec![0.0; tensor.len() + 1]);
    let name = name.clone();
    let file = tempfile::NamedTempFile::new().expect("a file");
    for (what, result) in [
        ("input", program.set_input("input", &x)),
        (name.as_str(), program.load(&wrong).map(drop)),
        (name.as_str(), graph.check_state(&wrong).map(drop)),
        (name.as_str(), models::weights::write(file.path(), &wrong, &Default::default())),
    ] {
        let message = result.expect_err(what).to_string();
        assert!(message.contains(what) && message.contains("elements of shape"), "{message}");
    }
}
