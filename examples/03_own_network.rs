//! Builds a network layer by layer, differentiates it and trains it with one call per step.
//!
//! `cargo run --release --example 03_own_network`

use residuum::control::sgd::{Sgd, Spec};
use residuum::device::Device;
use residuum::graph::{Builder, ConvOptions, LossOptions, Mode, Program};
use residuum::models::init;
use residuum::ops::pool::{Kind, Window};
use residuum::tensor::{DType, HostTensor};

fn main() -> residuum::Result<()> {
    let mut b = Builder::new(Mode::Train);
    let conv = ConvOptions { k: 16, kernel: [3, 3], padding: [1, 1], ..Default::default() };
    // A graph's shapes are NHWC.
    let x = b.input("input", [32, 8, 8, 1]);
    let x = b.conv2d("stem", x, conv)?;
    let x = b.batch_norm("stem_bn", x, 1e-5)?;
    let x = b.relu(x)?;
    let f = b.conv2d("block.conv", x, conv)?;
    let f = b.batch_norm("block.bn", f, 1e-5)?;
    let x = b.add(f, x)?;
    let x = b.relu(x)?;
    let x = b.pool(x, Window::Adaptive([1, 1]), Kind::Average { count_padding: false })?;
    let logits = b.linear("fc", x, 2)?;
    b.loss(logits, LossOptions::default())?;
    let mut graph = b.finish();
    graph.differentiate()?;

    let spec = Spec { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 1e-4 };
    let mut program = Program::compile(&graph, &Device::best(), DType::F32, Some(Sgd::new(spec)?))?;
    program.load(&init::initialise(&graph, &init::Scheme::RESIDUAL, 0))?;
    program.set_learning_rate(0.05)?;

    // Two classes: horizontal and vertical stripes. Host tensors are NCHW.
    let labels: Vec<i32> = (0..32).map(|i| i % 2).collect();
    let stripe = |i: usize, y: usize, x: usize| if i.is_multiple_of(2) { y } else { x } % 2;
    let pixels = (0..32 * 64).map(|j| stripe(j / 64, j / 8 % 8, j % 8) as f32 - 0.5).collect();
    program.set_input("input", &HostTensor::f32([32, 1, 8, 8], pixels))?;
    program.set_labels(&labels)?;
    for step in 0..10 {
        program.run()?;
        println!("step {step}  loss {:.4}", program.output("loss")?.to_real::<f64>()[0]);
    }
    Ok(())
}
