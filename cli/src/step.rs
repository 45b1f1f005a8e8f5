//! `residuum step`.

use std::collections::HashSet;
use std::path::PathBuf;

use residuum::graph::{Mode, Program};
use residuum::models::{weights, BuildOptions, Model};
use residuum::tensor::{HostData, HostTensor, StateDict};
use residuum::train::grad_scale;

use crate::failure::{note, Failure};
use crate::infer::{take, wrong, Network};
use crate::signals::clean_up_when_interrupted;

/// Runs one forward and backward pass in training mode, to check a network against PyTorch
///
/// The input file holds `input` (NCHW) and `labels` (int64, one for each image). The output file gets `loss`,
/// `logits`, `grad.PARAMETER` for every parameter and `running.BUFFER` for every running statistic after the pass, in
/// torch's names and shapes; f64 tensors with `--dtype f64`. The loss is the mean cross-entropy. With `--stochastic` it
/// also gets `gates` (int64, one for each residual block): 1 for a kept block.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  residuum step --model resnet20_cifar --weights w.safetensors --input x.safetensors \\
      --output g.safetensors --dtype f64
  residuum step --model resnet18 --weights w.safetensors --input x.safetensors \\
      --output g.safetensors --device sim

The equivalent in PyTorch:
  model.train(); logits = model(input); loss = cross_entropy(logits, labels); loss.backward()")]
pub struct Args {
    #[command(flatten)]
    network: Network,
    /// The output file: `loss`, `logits`, `grad.*`, `running.*`
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Draw the gates of stochastic depth from this seed, as in a run's first step [default: all open]
    #[arg(long, value_name = "SEED")]
    stochastic: Option<u64>,
}

impl Args {
    /// Fails if `--stochastic` is given and `model` has no stochastic depth.
    fn check_stochastic(&self, model: &Model) -> Result<(), Failure> {
        if self.stochastic.is_none() || model.is_stochastic() {
            return Ok(());
        }
        let name = model.name();
        let cause =
            format!("--stochastic: {name} has no stochastic depth; use {name}_survival05 or leave the option out");
        Err(Failure::Arguments(cause))
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let network = &args.network;
    network.model.as_ref().map_or(Ok(()), |model| args.check_stochastic(model))?;
    let (model, state) = network.read_weights()?;
    args.check_stochastic(&model)?;
    let classes = network.classes(&model, &state)?;
    let mut tensors = weights::read(&network.input)?;
    let (input, n, shape) = network.take_input(&mut tensors)?;
    network.check_channels(&model, &state, shape[0])?;
    let labels = labels(args, take(&network.input, &mut tensors, "labels")?, n, classes)?;
    let options = BuildOptions { loss: true, smoothing: 0.0, grad_scale: grad_scale(network.dtype) };
    let mut graph = model.build(Mode::Train, n, shape, classes, options)?;
    graph.differentiate()?;
    network.check(&graph, &state)?;
    let device = network.device.open()?;
    let mut program = Program::compile(&graph, &device, network.dtype, None)?;
    program.load(&state)?;
    program.set_input("input", &input)?;
    program.set_labels(&labels)?;
    if let Some(seed) = args.stochastic {
        program.draw_gates(seed, 0)?;
    }
    program.run()?;
    let loss = HostTensor { shape: Vec::new().into(), ..program.output("loss")? };
    if loss.first_non_finite().is_some() {
        note("warning", &format!("{}: the loss is {}", network.weights.display(), loss.to_real::<f64>()[0]));
    }
    let mut results = StateDict::from([("loss".into(), loss), ("logits".into(), program.output("logits")?)]);
    results.extend(program.gradients()?.into_iter().map(|(name, v)| (format!("grad.{name}"), v)));
    let names: HashSet<&str> = graph.buffers().iter().map(|b| b.name.as_str()).collect();
    let buffers = program.state()?.into_iter().filter(|(name, _)| names.contains(name.as_str()));
    results.extend(buffers.map(|(name, v)| (format!("running.{name}"), v)));
    if args.stochastic.is_some() {
        let gates: Vec<i64> = program.gates()?.into_iter().map(i64::from).collect();
        results.insert("gates".into(), HostTensor::i64([gates.len()], gates));
    }
    clean_up_when_interrupted();
    Ok(weights::write(&args.output, &results, &Default::default())?)
}

/// The labels of `n` images, each below `classes`.
fn labels(args: &Args, tensor: HostTensor, n: usize, classes: usize) -> Result<Vec<i32>, Failure> {
    let path = &args.network.input;
    let HostData::I64(labels) = &tensor.data else {
        return Err(wrong(path, "labels", "floating-point numbers, expected int64"));
    };
    if tensor.shape.dims() != [n] {
        let problem = format!("shape {}, expected [{n}], one for each image of `input`", tensor.shape);
        return Err(wrong(path, "labels", &problem));
    }
    if let Some(i) = labels.iter().position(|&label| label < 0 || label >= classes as i64) {
        let expected = format!("expected 0..{classes}, the classes of {}", args.network.weights.display());
        return Err(wrong(path, "labels", &format!("{} at element {i}, {expected}", labels[i])));
    }
    Ok(labels.iter().map(|&label| label as i32).collect())
}
