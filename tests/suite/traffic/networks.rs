//! Whole programs, launch by launch.

use residuum::device::sim::probe::{self, Traffic};
use residuum::device::Device;
use residuum::graph::{Mode, Program, Runs, Step};
use residuum::models::{self, BuildOptions};
use residuum::tensor::{DType, HostTensor};
use residuum::train::Settings;

use super::{assert_none, backend, difference};

/// A network with its batch and its image's extents, scaled down.
fn check(name: &str, mode: Mode, batch: usize, [h, w]: [usize; 2], dtype: DType) {
    let Some(backend) = backend() else { return };
    let model = models::find(name).unwrap();
    let shape = [model.input()[0], h, w];
    let train = mode == Mode::Train;
    let mut graph = model.build(mode, batch, shape, 10, BuildOptions { loss: train, ..Default::default() }).unwrap();
    if train {
        graph.differentiate().unwrap();
    }
    let optimizer = train.then(|| Settings::default().optimizer().unwrap());
    let mut program = Program::compile(&graph, &Device::Kernels(backend), dtype, optimizer).unwrap();
    program.load(&model.initialise(&graph, 1)).unwrap();
    let images = [vec![batch], shape.to_vec()].concat();
    let pixels = (0..images.iter().product::<usize>()).map(|i| (i * 7 % 11) as f32 / 8.0).collect();
    program.set_input("input", &HostTensor::f32(images, pixels)).unwrap();
    if train {
        program.set_labels(&vec![3; batch]).unwrap();
        program.set_learning_rate(0.0).unwrap();
    }
    let blocks = graph.survival().len();
    let mut patterns = vec![vec![true; blocks]];
    patterns.extend((train && blocks > 0).then(|| vec![false; blocks]));
    for open in patterns {
        if train {
            program.set_gates(&open).unwrap();
        }
        probe::traffic();
        program.run().unwrap();
        let counted = probe::traffic();
        let steps = program.steps();
        assert_eq!(counted.len(), steps.len(), "launches of a run of {name}");
        let problem = |(step, counted): (&Step, Traffic)| {
            let problem = match step.runs {
                Runs::With(block) if !open[block] => nothing(counted),
                Runs::Without(block) if open[block] => nothing(counted),
                // A launch that reads a gate itself has the cost of an open gate.
                _ if open.contains(&false) => None,
                _ => difference(step.cost, counted),
            };
            problem.map(|p| format!("{} {} with gates {open:?}: {p}", step.kernel, step.shape))
        };
        assert_none(steps.iter().zip(counted).filter_map(problem).collect());
    }
}

/// The error if a launch behind a closed gate touched more than the gate.
fn nothing(counted: Traffic) -> Option<String> {
    let gate = Traffic { bytes_read: 32, bytes_written: 0 };
    (counted != gate).then(|| format!("behind a closed gate it touched {counted:?}"))
}

#[test]
fn training_steps_cost_what_they_touch() {
    check("resnet20_cifar", Mode::Train, 4, [16, 16], DType::BF16);
    check("resnet20_cifar", Mode::Train, 2, [16, 16], DType::F32);
    check("resnet8_cifar_option_b_survival05", Mode::Train, 4, [16, 16], DType::BF16);
    check("resnet20_cifar_survival05", Mode::Train, 4, [16, 16], DType::BF16);
    check("resnet50", Mode::Train, 2, [32, 32], DType::BF16);
    // Not in f16: its first loss scale overflows here, so that the optimizer touches nothing.
    check("resnext50_32x4d", Mode::Train, 2, [32, 32], DType::BF16);
    check("densenet121", Mode::Train, 2, [32, 32], DType::BF16);
    check("densenet_bc22_k12_cifar", Mode::Train, 4, [16, 16], DType::F32);
    check("densenet_bc22_k12_cifar", Mode::Train, 4, [16, 16], DType::BF16);
}

#[test]
fn inference_costs_what_it_touches() {
    check("resnet50", Mode::Infer, 2, [32, 32], DType::BF16);
    check("resnet20_cifar", Mode::Infer, 4, [16, 16], DType::F16);
}
