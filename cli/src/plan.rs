//! `residuum plan`.

use std::path::PathBuf;

use residuum::device::{Arch, Cost, Device, Gpu};
use residuum::graph::{Graph, Mode, Program, Runs, Step};
use residuum::models::{BuildOptions, Model};
use residuum::tensor::DType;
use residuum::train::{grad_scale, Settings};

use crate::device::training_dtype;
use crate::failure::{print, Failure};
use crate::gpus;
use crate::models::grouped;
use crate::train::at_least_one;

/// Shows every kernel launch of a training step or of inference: operations, bytes and least time
///
/// Compiles the network without running it, in little memory. Bytes are global memory traffic, each byte counted once
/// per launch; a multiply-add counts as two operations. With stochastic depth the figures describe a step that drops no
/// block. The least time is the bytes over the GPU's bandwidth or the operations over its peak, whichever is longer
/// (the roofline). A kernel named `_fused` also does the work of the batch norms and ReLUs next to its op.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  residuum plan resnet50 --dtype bf16
  residuum plan resnet50 --mode infer --batch 1 --dtype f16 --gpu A100
  residuum plan resnet50 --dtype bf16 --arch sm_80
  residuum plan resnet20_cifar --json
  residuum plan resnet50 --gpus mine.json --gpu \"RTX 4090\"

A file of GPUs is a JSON array of objects such as
  {\"name\": \"RTX 4090\", \"arch\": \"sm_80\", \"bytes_per_second\": 1.008e12,
   \"flops_per_second\": {\"f32\": 82.6e12, \"f16\": 165.2e12, \"bf16\": 165.2e12}, \"source\": \"data sheet\"}
arch selects the kernels, as --arch does. In the text MB is 10^6 bytes.")]
pub struct Args {
    /// The network; see `residuum models`
    #[arg(value_name = "MODEL", value_parser = crate::models::parse)]
    model: Model,
    /// Batch size
    #[arg(long, value_name = "N", default_value = "256", value_parser = at_least_one, allow_negative_numbers = true)]
    batch: usize,
    /// The storage type of activations and weights: f32, f16 or bf16
    #[arg(long, default_value = "f32", value_parser = training_dtype)]
    dtype: DType,
    /// A training step with its optimizer, or inference
    #[arg(long, default_value = "train")]
    mode: Run,
    /// Height and width of the images [default: the network's]
    #[arg(long, value_name = "HxW", value_parser = size)]
    size: Option<[usize; 2]>,
    /// The GPU whose roofline is used [default: H200, or the first of --gpus]
    #[arg(long, value_name = "NAME")]
    gpu: Option<String>,
    /// More GPUs to choose from
    #[arg(long, value_name = "FILE")]
    gpus: Option<PathBuf>,
    #[arg(long, value_name = "ARCH", help = arch_help())]
    arch: Option<Arch>,
    /// Compute the outputs of 1x1 convolutions again in the backward pass instead of keeping them
    #[arg(long)]
    recompute: bool,
    /// Print a JSON object: `arch`, `launches` and `totals`
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Run {
    Train,
    Infer,
}

fn arch_help() -> String {
    format!("The generation whose kernels run: {} [default: the GPU's]", Arch::known())
}

/// Height and width, both above 0.
fn size(text: &str) -> Result<[usize; 2], String> {
    let parsed = text.split_once('x').and_then(|(h, w)| Some([h.parse().ok()?, w.parse().ok()?]));
    parsed.filter(|size| !size.contains(&0)).ok_or_else(|| "expected HxW such as 224x224".into())
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let gpu = gpus::choose(args.gpu.as_deref(), args.gpus.as_deref())?;
    let planned = Planned::new(args, &gpu)?;
    if args.json {
        return print(&format!("{:#}", planned.json()));
    }
    print(&planned.text(args, &gpu))
}

impl Args {
    /// Channels, height and width of the images.
    fn shape(&self) -> [usize; 3] {
        let [c, h, w] = self.model.input();
        let [h, w] = self.size.unwrap_or([h, w]);
        [c, h, w]
    }

    fn graph(&self) -> residuum::Result<Graph> {
        let train = self.mode == Run::Train;
        let mode = if train { Mode::Train } else { Mode::Infer };
        let scale = if train { grad_scale(self.dtype) } else { 1.0 };
        let options = BuildOptions { loss: train, grad_scale: scale, ..BuildOptions::default() };
        let mut graph = self.model.build(mode, self.batch, self.shape(), self.model.classes(), options)?;
        if train {
            graph.differentiate()?;
        }
        if self.recompute {
            graph.recompute();
        }
        Ok(graph)
    }
}

/// A program's launches, each with its least time in seconds, and the totals.
struct Planned {
    arch: Arch,
    batch: usize,
    launches: Vec<(Step, f64)>,
    /// The operations and bytes of a step that drops no block.
    cost: Cost,
    seconds: f64,
    /// The expected bytes of a step, with stochastic depth.
    expected_bytes: Option<f64>,
    arena_bytes: usize,
    saved_activation_bytes: usize,
}

impl Planned {
    fn new(args: &Args, gpu: &Gpu) -> Result<Self, Failure> {
        // An invalid size or batch is an error of the arguments.
        let graph = args.graph().map_err(|e| Failure::Arguments(e.to_string()))?;
        let settings = Settings { dtype: args.dtype, ..Settings::default() };
        let optimizer = (args.mode == Run::Train).then(|| settings.optimizer()).transpose()?;
        let arch = args.arch.unwrap_or(gpu.arch);
        let program = Program::compile(&graph, &Device::blueprint(arch), args.dtype, optimizer)?;
        let launches: Vec<_> = program.steps().iter().map(|s| (s.clone(), gpu.seconds(s.cost, args.dtype))).collect();
        let survival = graph.survival();
        let kept = || launches.iter().filter(|(step, _)| !matches!(step.runs, Runs::Without(_)));
        let expected = |(step, _): &(Step, f64)| step.runs.probability(&survival) * step.cost.bytes() as f64;
        let drops = launches.iter().any(|(step, _)| step.runs != Runs::Always);
        Ok(Self {
            arch,
            batch: args.batch,
            cost: kept().map(|(step, _)| step.cost).sum(),
            seconds: kept().map(|(_, seconds)| seconds).sum(),
            expected_bytes: drops.then(|| launches.iter().map(expected).sum()),
            launches,
            arena_bytes: program.plan().arena_bytes,
            saved_activation_bytes: program.plan().saved_activation_bytes,
        })
    }

    fn json(&self) -> serde_json::Value {
        let launch = |(step, seconds): &(Step, f64)| {
            let mut launch = serde_json::json!({
                "kernel": step.kernel,
                "op": step.op,
                "shape": step.shape,
                "grid": step.grid,
                "flops": step.cost.flops,
                "bytes_read": step.cost.bytes_read,
                "bytes_written": step.cost.bytes_written,
                "seconds": seconds,
            });
            match step.runs {
                Runs::Always => {}
                Runs::With(block) => launch["with_block"] = block.into(),
                Runs::Without(block) => launch["without_block"] = block.into(),
            }
            launch
        };
        let mut plan = serde_json::json!({
            "arch": self.arch.to_string(),
            "launches": self.launches.iter().map(launch).collect::<Vec<_>>(),
            "totals": {
                "batch": self.batch,
                "launches": self.launches.len(),
                "flops": self.cost.flops,
                "bytes": self.cost.bytes(),
                "seconds": self.seconds,
                "arena_bytes": self.arena_bytes,
                "saved_activation_bytes": self.saved_activation_bytes,
            },
        });
        if let Some(bytes) = self.expected_bytes {
            plan["totals"]["expected_bytes"] = bytes.into();
        }
        plan
    }

    fn text(&self, args: &Args, gpu: &Gpu) -> String {
        let [c, h, w] = args.shape();
        let (name, mode) = (args.model.name(), if args.mode == Run::Train { "training" } else { "inference" });
        let run = format!("{} images of {c}x{h}x{w}, {}, kernels for {}", args.batch, args.dtype, self.arch);
        let head = format!("{name}, {mode}, {run}, {}", gpus::line(gpu));
        let table = table(&self.rows()).join("\n");
        format!("{head}\n\n{table}\n\n{}", self.totals())
    }

    /// The rows of the table, its head first.
    fn rows(&self) -> Vec<Vec<String>> {
        let head = ["op", "kernel", "shape", "GFLOP", "MB read", "MB written", "us"].map(String::from).to_vec();
        let row = |(step, seconds): &(Step, f64)| {
            let Cost { flops, bytes_read, bytes_written } = step.cost;
            let numbers = [flops as f64 / 1e9, megabytes(bytes_read), megabytes(bytes_written), seconds * 1e6];
            let mut cells = vec![step.op.to_string(), step.kernel.to_string(), step.shape.clone()];
            cells.extend(numbers.map(|n| format!("{n:.2}")));
            cells
        };
        std::iter::once(head).chain(self.launches.iter().map(row)).collect()
    }

    fn totals(&self) -> String {
        let images = self.batch as f64;
        let each = |total: f64, unit: &str| format!("{total:.2} {unit}, {:.2} {unit} per image", total / images);
        let saved = megabytes(self.saved_activation_bytes as u64);
        let mut lines = vec![
            format!("launches           {}", grouped(self.launches.len() as u64)),
            format!("operations         {}", each(self.cost.flops as f64 / 1e9, "GFLOP")),
            format!("bytes              {}", each(megabytes(self.cost.bytes()), "MB")),
            format!("time at least      {:.2} us, {:.0} images/s", self.seconds * 1e6, images / self.seconds),
            format!("arena              {:.2} MB", megabytes(self.arena_bytes as u64)),
            format!("saved activations  {}", each(saved, "MB")),
        ];
        // The other figures describe a step that drops no block.
        let expected = self.expected_bytes.map(|bytes| format!("bytes on average   {}", each(bytes / 1e6, "MB")));
        lines.splice(3..3, expected);
        lines.join("\n")
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Aligns cells in columns: the first three left, numbers right.
fn table(rows: &[Vec<String>]) -> Vec<String> {
    const TEXTS: usize = 3;
    let width = |i: usize| rows.iter().map(|row| row[i].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let cell = |(i, text): (usize, &String)| match i < TEXTS {
        true => format!("{text:0$}", widths[i]),
        false => format!("{text:>0$}", widths[i]),
    };
    rows.iter().map(|row| row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ")).collect()
}
