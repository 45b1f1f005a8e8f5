//! Runs a torchvision network in bf16, with batch norms folded into the convolutions. The weights are random here;
//! `residuum::models::weights::read` reads any torchvision state dict saved as safetensors.
//!
//! `cargo run --release --example 02_infer`

use residuum::device::Device;
use residuum::graph::{Mode, Program};
use residuum::models::{self, BuildOptions};
use residuum::tensor::{DType, HostTensor};

fn main() -> residuum::Result<()> {
    let model = models::find("resnet18")?;
    let graph = model.build(Mode::Infer, 2, [3, 64, 64], model.classes(), BuildOptions::default())?;
    let mut program = Program::compile(&graph, &Device::best(), DType::BF16, None)?;
    program.load(&model.initialise(&graph, 0))?;

    let pixels = (0..2 * 3 * 64 * 64).map(|i| (i % 255) as f32 / 127.5 - 1.0).collect();
    program.set_input("input", &HostTensor::f32([2, 3, 64, 64], pixels))?;
    program.run()?;
    let logits = program.output("logits")?;
    println!("{} parameters, {} multiply-adds per batch", graph.parameter_count(), graph.macs());
    println!("logits {}, {} bytes on the device", logits.shape, program.plan().arena_bytes);
    Ok(())
}
