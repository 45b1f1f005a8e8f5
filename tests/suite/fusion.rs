//! What fusion leaves of a network: which ops, how much memory, what is computed again.

use std::collections::BTreeMap;

use residuum::device::sim::SimOptions;
use residuum::device::Device;
use residuum::graph::{Graph, Mode, Program, Runs};
use residuum::models::{self, BuildOptions};
use residuum::tensor::{DType, HostTensor, StateDict};

use crate::random::Random;

fn graph(name: &str, mode: Mode, size: usize) -> Graph {
    let options = BuildOptions { loss: mode == Mode::Train, ..Default::default() };
    let mut graph = models::find(name).unwrap().build(mode, 2, [3, size, size], 10, options).unwrap();
    if mode == Mode::Train {
        graph.differentiate().unwrap();
    }
    graph
}

fn program(graph: &Graph) -> Program {
    Program::compile(graph, &Device::sim(SimOptions::default()).unwrap(), DType::F32, None).unwrap()
}

/// How often each op runs.
fn ops(name: &str, mode: Mode, size: usize) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    program(&graph(name, mode, size)).ops().into_iter().for_each(|op| *counts.entry(op).or_default() += 1);
    counts
}

#[test]
fn batch_norms_after_convolutions_are_in_pieces() {
    for (name, size, norms, ends) in
        [("resnet50", 32, 53, 16), ("resnext50_32x4d", 32, 53, 16), ("resnet18", 32, 20, 8)]
    {
        let ops = ops(name, Mode::Train, size);
        let count = |op: &str| ops.get(op).copied().unwrap_or(0);
        for pass in
            ["batch_norm_train", "batch_norm_bwd", "relu_fwd", "relu_bwd", "add_fwd", "norm_gradient", "norm_moments"]
        {
            assert_eq!(count(pass), 0, "{name} {pass}: {ops:?}");
        }
        assert_eq!(
            [count("norm_affine"), count("norm_coefficients"), count("block_end_fwd")],
            [norms, norms, ends],
            "{name}"
        );
        assert_eq!(
            [count("norm_pool_max_fwd"), count("norm_pool_max_bwd"), count("norm_pool_avg_bwd")],
            [1; 3],
            "{name}"
        );
    }
}

#[test]
fn blocks_that_may_be_dropped_have_no_pass_for_a_batch_norm() {
    for (name, norms, ends) in [("resnet110_cifar_survival05", 109, 54), ("resnet20_cifar_option_b_survival05", 21, 9)]
    {
        let graph = graph(name, Mode::Train, 8);
        let program = program(&graph);
        let kept = program.steps().iter().filter(|step| !matches!(step.runs, Runs::Without(_)));
        let names: std::collections::BTreeSet<&str> = kept.map(|step| step.op).collect();
        for pass in ["batch_norm_train", "batch_norm_bwd", "relu_fwd", "relu_bwd", "norm_gradient", "join_gated"] {
            assert!(!names.contains(pass), "{name} {pass}: {names:?}");
        }
        let ops = program.ops();
        let count = |op: &str| ops.iter().filter(|name| **name == op).count();
        let found = [count("norm_affine"), count("norm_coefficients"), count("block_end_fwd")];
        assert_eq!(found, [norms, norms, ends], "{name}");
        // In place of the first launch of every block, where that is dropped.
        assert_eq!(count("norm_gradient"), ends, "{name}");
    }
}

#[test]
fn a_dense_block_is_one_buffer_without_copies_or_norms() {
    let ops = ops("densenet121", Mode::Train, 32);
    let count = |op: &str| ops.get(op).copied().unwrap_or(0);
    for pass in
        ["concat_fwd", "concat_bwd", "add_fwd", "batch_norm_train", "batch_norm_bwd", "relu_bwd", "norm_gradient"]
    {
        assert_eq!(count(pass), 0, "{pass}: {ops:?}");
    }
    // The moments of what the stem's pooling stores, and its gradient, have passes of their own.
    assert_eq!([count("norm_affine"), count("norm_moments"), count("block_end_fwd")], [121, 1, 1], "{ops:?}");
}

#[test]
fn inference_has_convolutions_and_pools_only() {
    for (name, size, allowed) in [
        ("resnet50", 32, vec!["batch_norm_fold", "conv2d_fwd", "pool_max_fwd", "pool_avg_fwd", "linear_fwd"]),
        (
            "preact_resnet164_cifar",
            8,
            vec!["batch_norm_fold", "conv2d_fwd", "norm_conv_fwd", "norm_pool_avg_fwd", "linear_fwd"],
        ),
        (
            "densenet121",
            32,
            vec!["batch_norm_fold", "conv2d_fwd", "norm_conv_fwd", "pool_max_fwd", "norm_pool_avg_fwd", "linear_fwd"],
        ),
    ] {
        let ops = ops(name, Mode::Infer, size);
        let others: Vec<_> = ops.keys().filter(|op| !allowed.contains(op)).collect();
        assert!(others.is_empty(), "{name}: {others:?}");
    }
}

/// Runs a step twice and reads everything that it leaves.
fn two_steps(graph: &Graph, state: &StateDict, pixels: &HostTensor) -> (StateDict, StateDict, usize) {
    let mut program = program(graph);
    program.load(state).unwrap();
    for _ in 0..2 {
        program.set_input("input", pixels).unwrap();
        program.set_labels(&[3, 7]).unwrap();
        program.run().unwrap();
    }
    program.synchronize().unwrap();
    (program.gradients().unwrap(), program.state().unwrap(), program.plan().arena_bytes)
}

#[test]
fn recomputed_bottlenecks_change_nothing_but_memory() {
    for (name, size) in [("densenet_bc22_k12_cifar", 16), ("resnet50", 32)] {
        let kept = graph(name, Mode::Train, size);
        let mut again = kept.clone();
        again.recompute();
        let state = models::find(name).unwrap().initialise(&kept, 5);
        let mut random = Random::new(name);
        let pixels = random.normals(2 * 3 * size * size, 0.0, 1.0).into_iter().map(|v| v as f32).collect();
        let pixels = HostTensor::f32([2, 3, size, size], pixels);
        let (gradients, running, bytes) = two_steps(&kept, &state, &pixels);
        let (same_gradients, same_running, fewer_bytes) = two_steps(&again, &state, &pixels);
        assert!(gradients == same_gradients, "{name}: other gradients");
        assert!(running == same_running, "{name}: other running statistics");
        assert!(fewer_bytes < bytes, "{name}: {fewer_bytes} bytes, without recomputation {bytes}");
    }
}
