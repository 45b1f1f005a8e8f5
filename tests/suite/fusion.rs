//! Networks after fusion: their ops, their memory, and what is recomputed.

use std::collections::BTreeMap;

use residuum::device::sim::SimOptions;
use residuum::device::{Arch, Device};
use residuum::graph::{Builder, ConvOptions, Graph, Interpreter, LossOptions, Mode, Program, Runs};
use residuum::models::{self, BuildOptions};
use residuum::ops::pool::{Kind, Window};
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

/// The number of times that each op runs.
fn ops(name: &str, mode: Mode, size: usize) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    program(&graph(name, mode, size)).ops().into_iter().for_each(|op| *counts.entry(op).or_default() += 1);
    counts
}

#[test]
fn batch_norms_after_convolutions_are_in_pieces() {
    // A 1x1 convolution computes the block end that it reads.
    for (name, size, norms, [ends, taken]) in
        [("resnet50", 32, 53, [1, 15]), ("resnext50_32x4d", 32, 53, [1, 15]), ("resnet18", 32, 20, [8, 0])]
    {
        let ops = ops(name, Mode::Train, size);
        let count = |op: &str| ops.get(op).copied().unwrap_or(0);
        for pass in
            ["batch_norm_train", "batch_norm_bwd", "relu_fwd", "relu_bwd", "sum_fwd", "norm_gradient", "norm_moments"]
        {
            assert_eq!(count(pass), 0, "{name} {pass}: {ops:?}");
        }
        assert_eq!(
            [count("norm_affine"), count("norm_coefficients"), count("sum_end"), count("conv2d_fwd_end")],
            [norms, norms, ends, taken],
            "{name}"
        );
        let program = program(&graph(name, Mode::Train, size));
        let launched = |kernel: &str| program.steps().iter().filter(|step| step.kernel.starts_with(kernel)).count();
        let kernels = ["pool_fused_max_fwd", "pool_fused_max_bwd", "pool_fused_avg_bwd"];
        assert_eq!(kernels.map(launched), [1; 3], "{name}");
    }
}

#[test]
fn droppable_blocks_have_no_pass_for_a_batch_norm() {
    for (name, norms, ends) in [("resnet110_cifar_survival05", 109, 54), ("resnet20_cifar_option_b_survival05", 21, 9)]
    {
        let graph = graph(name, Mode::Train, 8);
        let program = program(&graph);
        let kept = program.steps().iter().filter(|step| !matches!(step.runs, Runs::Without(_)));
        let names: std::collections::BTreeSet<&str> = kept.map(|step| step.op).collect();
        for pass in ["batch_norm_train", "batch_norm_bwd", "relu_fwd", "relu_bwd", "norm_gradient", "sum_gated"] {
            assert!(!names.contains(pass), "{name} {pass}: {names:?}");
        }
        let ops = program.ops();
        let count = |op: &str| ops.iter().filter(|name| **name == op).count();
        let found = [count("norm_affine"), count("norm_coefficients"), count("sum_end")];
        assert_eq!(found, [norms, norms, ends], "{name}");
        // In a dropped block, it replaces the block's first launch.
        assert_eq!(count("norm_gradient"), ends, "{name}");
    }
}

/// A batch norm that reads a sum needs one pass, which corrects the sum's gradient in place.
#[test]
fn pre_activation_blocks_have_few_whole_batch_norms() {
    // If two convolutions read the activation of a sum, a pass masks both contributions. A batch norm stays whole if
    // its activation is also the residual of a convolution (the stem) or is read by a zero-padded shortcut, which ends
    // in an addition of its own.
    for (name, norms, sums, masked, shortcuts) in
        [("preact_resnet164_cifar", 163, 54, 2, 0), ("resnet110_cifar_full_preact", 106, 52, 0, 2)]
    {
        let ops = ops(name, Mode::Train, 8);
        let count = |op: &str| ops.get(op).copied().unwrap_or(0);
        let whole = if shortcuts > 0 { 1 + shortcuts } else { 0 };
        assert_eq!([count("batch_norm_train"), count("batch_norm_bwd")], [whole; 2], "{name}: {ops:?}");
        assert_eq!([count("norm_affine"), count("norm_coefficients"), count("sum_end")], [norms, norms, sums]);
        assert_eq!(count("norm_gradient"), masked, "{name}: {ops:?}");
        assert_eq!([count("sum_fwd"), count("norm_moments")], [shortcuts; 2], "{name}: {ops:?}");
        assert_eq!([count("relu_fwd"), count("relu_bwd")], [0; 2], "{name}: {ops:?}");
    }
}

#[test]
fn a_dense_block_is_one_buffer_without_copies_or_norms() {
    let ops = ops("densenet121", Mode::Train, 32);
    let count = |op: &str| ops.get(op).copied().unwrap_or(0);
    for pass in
        ["concat_fwd", "concat_bwd", "sum_fwd", "batch_norm_train", "batch_norm_bwd", "relu_bwd", "norm_gradient"]
    {
        assert_eq!(count(pass), 0, "{pass}: {ops:?}");
    }
    // The moments of the stem's pooled output, and its gradient, need passes of their own.
    assert_eq!([count("norm_affine"), count("norm_moments"), count("sum_end")], [121, 1, 1], "{ops:?}");
}

#[test]
fn inference_has_convolutions_and_pools_only() {
    for (name, size, allowed) in [
        ("resnet50", 32, vec!["batch_norm_fold", "conv2d_fwd", "pool_max_fwd", "pool_avg_fwd", "linear_fwd"]),
        ("preact_resnet164_cifar", 8, vec!["batch_norm_fold", "conv2d_fwd", "pool_avg_fwd", "linear_fwd"]),
        ("densenet121", 32, vec!["batch_norm_fold", "conv2d_fwd", "pool_max_fwd", "pool_avg_fwd", "linear_fwd"]),
    ] {
        let ops = ops(name, Mode::Infer, size);
        let others: Vec<_> = ops.keys().filter(|op| !allowed.contains(op)).collect();
        assert!(others.is_empty(), "{name}: {others:?}");
    }
}

/// A bias before a batch norm has no effect: its gradient follows from the sums and is 0 but for rounding.
#[test]
fn batch_norms_after_a_bias_are_in_pieces() {
    let mut b = Builder::new(Mode::Train);
    let conv = |k| ConvOptions { k, kernel: [3; 2], padding: [1; 2], bias: true, ..Default::default() };
    let halves = Window::Sliding { kernel: [2; 2], stride: [2; 2], padding: [0; 2], ceil: false };
    let build = |b: &mut Builder| -> residuum::Result<()> {
        let mut x = b.input("input", [2, 12, 12, 3]);
        for (k, name) in [(8, "first"), (16, "second"), (16, "third")] {
            x = b.conv2d(&format!("{name}.conv"), x, conv(k))?;
            x = b.batch_norm(&format!("{name}.norm"), x, 1e-5)?;
            x = b.relu(x)?;
            x = if k == 8 { b.pool(x, halves, Kind::Max)? } else { x };
        }
        x = b.pool(x, Window::Adaptive([1; 2]), Kind::Average { count_padding: false })?;
        let logits = b.linear("fc", x, 10)?;
        b.loss(logits, LossOptions::default())?;
        Ok(())
    };
    build(&mut b).unwrap();
    let mut graph = b.finish();
    graph.differentiate().unwrap();
    let mut program = program(&graph);
    let ops = program.ops();
    for pass in ["batch_norm_train", "batch_norm_bwd", "conv2d_bwd_bias", "norm_gradient", "norm_moments", "relu_bwd"] {
        assert!(!ops.contains(&pass), "{pass}: {ops:?}");
    }
    let mut random = Random::new("a bias");
    let mut reals = |len: usize, low: f64| random.reals(len, low, low + 1.0).into_iter().map(|v| v as f32).collect();
    let parameters = graph.parameters().iter().map(|p| (&p.name, &p.shape));
    let state: StateDict = parameters
        .chain(graph.buffers().iter().map(|b| (&b.name, &b.shape)))
        .map(|(name, shape)| {
            let low = if name.ends_with("norm.weight") || name.ends_with("var") { 0.5 } else { -0.5 };
            (name.clone(), HostTensor::f32(shape.clone(), reals(shape.len(), low)))
        })
        .collect();
    let pixels = HostTensor::f32([2, 3, 12, 12], reals(2 * 3 * 144, -0.5));
    let mut exact = Interpreter::<f64>::new(&graph, DType::F64);
    exact.load(&state).unwrap();
    exact.set_input("input", &pixels).unwrap();
    exact.set_labels(&[3, 7]).unwrap();
    exact.run();
    program.load(&state).unwrap();
    program.set_input("input", &pixels).unwrap();
    program.set_labels(&[3, 7]).unwrap();
    program.run().unwrap();
    let (found, expected) = (program.gradients().unwrap(), exact.gradients());
    let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
    for (name, tensor) in &expected {
        let (found, tensor): (Vec<f64>, Vec<f64>) = (found[name].to_real(), tensor.to_real());
        let difference: Vec<f64> = found.iter().zip(&tensor).map(|(a, b)| a - b).collect();
        // A bias's gradient is rounding alone: it is compared relative to the weights' gradient.
        let by = name
            .strip_suffix("conv.bias")
            .map_or(norm(&tensor), |layer| norm(&expected[&format!("{layer}conv.weight")].to_real::<f64>()));
        assert!(norm(&difference) <= 1e-4 * by, "{name}: {:e} of {by:e}", norm(&difference));
    }
    let vgg = models::find("vgg16_bn").unwrap();
    let options = BuildOptions { loss: true, ..Default::default() };
    let mut graph = vgg.build(Mode::Train, 2, [3, 64, 64], 10, options).unwrap();
    graph.differentiate().unwrap();
    let program = Program::compile(&graph, &Device::blueprint(Arch::Sm90), DType::BF16, None).unwrap();
    assert!(!program.steps().iter().any(|step| step.op.starts_with("batch_norm") || step.op == "norm_gradient"));
}

/// Runs a step twice and reads all of its results.
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
