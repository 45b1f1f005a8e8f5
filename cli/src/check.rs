//! `residuum check`: kernels on a user's list of problems, with small integers, so that results are exact.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use residuum::device::{threads, Backend, Device, ExitWhereMemoryEnds, Target, View};
use residuum::ops::conv2d::{BwdW, BwdX, Conv2d, Node, Pass};
use residuum::ops::{Arg, HostIo, HostMut, HostOp, HostRef, Io, Operator, Write};
use residuum::tensor::{DType, Elem, TensorType};

use crate::device::{training_dtype, Choice};
use crate::failure::{print, Failure};
use crate::problems::{self, Problem};
use crate::text;

/// Checks the kernels of an op on a list of problems, exactly
///
/// The tensors hold small integers, so that every sum is exact in f32 in any order, and the result must equal the
/// reference bit by bit. Prints a line for each failure; the last line is `N passed, N failed`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  residuum check conv2d --problems conv2d.tsv --device sim --dtype bf16
  residuum check conv2d --problems conv2d.tsv --pass bwd_w --max-macs 1000000

The file is a tab-separated table. Its first line names the columns: name groups ic oc ih iw oh ow
kh kw stride_h stride_w pad_h pad_w dilation_h dilation_w macs_per_image. ic and oc count all groups;
dilation 1 is a dense kernel.")]
pub struct Args {
    /// The op
    op: Op,
    /// The table of problems
    #[arg(long, value_name = "FILE")]
    problems: PathBuf,
    /// The device: auto, cpu, cuda, cuda:N or sim
    #[arg(long, default_value = "sim")]
    device: Choice,
    /// The storage type: f32, f16 or bf16
    #[arg(long, default_value = "f32", value_parser = training_dtype)]
    dtype: DType,
    /// The pass
    #[arg(long, default_value = "all")]
    pass: Passes,
    /// Skip problems of more multiply-adds per image
    #[arg(long, value_name = "N")]
    max_macs: Option<u64>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Op {
    Conv2d,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Passes {
    Fwd,
    BwdX,
    BwdW,
    All,
}

impl Passes {
    fn list(self) -> Vec<Pass> {
        let [bwd_x, bwd_w] = [Pass::BwdX(BwdX::default()), Pass::BwdW(BwdW::default())];
        let all = [(Self::Fwd, Pass::fwd(false)), (Self::BwdX, bwd_x), (Self::BwdW, bwd_w)];
        all.into_iter().filter(|(name, _)| self == Self::All || self == *name).map(|(_, pass)| pass).collect()
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let Op::Conv2d = args.op;
    let problems = read(args)?;
    let device = args.device.open()?;
    let cases: Vec<(&Problem, Pass)> =
        problems.iter().flat_map(|p| args.pass.list().into_iter().map(move |pass| (p, pass))).collect();
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    threads::together(|| {
        while let Some((problem, pass)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(cause) = check(problem, *pass, &device, args.dtype) {
                let line = format!("{} {} {}: {cause}", problem.name, pass_name(*pass), args.dtype);
                if let Ok(mut failures) = failures.lock() {
                    failures.push(line);
                }
            }
        }
    });
    let mut failures = failures.into_inner().map_err(|_| Failure::Work("a check panicked".into()))?;
    failures.sort();
    for line in &failures {
        print(line)?;
    }
    print(&format!("{} passed, {} failed", cases.len() - failures.len(), failures.len()))?;
    match failures.len() {
        0 => Ok(()),
        failed => Err(Failure::Work(format!("{failed} of {} checks failed", cases.len()))),
    }
}

/// Reads the table, filtered by `--max-macs`. Fails if no problem is left.
fn read(args: &Args) -> Result<Vec<Problem>, Failure> {
    let failed = |cause: String| Failure::Work(format!("{}: {cause}", args.problems.display()));
    let mut problems = problems::parse(&text::read(&args.problems)?).map_err(failed)?;
    let (all, limit) = (problems.len(), args.max_macs.unwrap_or(u64::MAX));
    problems.retain(|problem| problem.macs <= limit);
    match problems.is_empty() {
        true => {
            Err(failed(format!("none of its {all} problems has at most {limit} multiply-adds per image (--max-macs)")))
        }
        false => Ok(problems),
    }
}

fn pass_name(pass: Pass) -> &'static str {
    match pass {
        Pass::Fwd(_) => "fwd",
        Pass::BwdX(_) => "bwd_x",
        Pass::BwdW(_) => "bwd_w",
        Pass::Bwd(_) => "bwd",
        Pass::BwdBias(_) => "bwd_bias",
    }
}

/// Runs one pass of one problem and compares every bit of its result.
fn check(problem: &Problem, pass: Pass, device: &Device, dtype: DType) -> Result<(), String> {
    let conv = Conv2d::new(problem.spec).map_err(|e| e.to_string())?;
    if conv.output() != problem.output {
        return Err(format!("output {:?}, but the table has {:?}", conv.output(), problem.output));
    }
    let node = Node { conv, pass };
    let (types, result) = (node.inputs(), node.outputs().remove(0));
    let magnitude = magnitude(&node, &result, dtype)?;
    room(types.iter().chain([&result]))?;
    let inputs: Vec<Vec<f64>> = types.iter().enumerate().map(|(i, ty)| integers(ty, i as u64, magnitude)).collect();
    let exact = reference(&node, &inputs, &result);
    let stored = if result.elem == Elem::Real { dtype } else { DType::F32 };
    let found = match device {
        Device::Cpu => host(&node, &inputs, &result, stored),
        Device::Kernels(backend) => kernels(&node, backend, dtype, &inputs, &result).map_err(|e| e.to_string())?,
    };
    match exact.iter().map(|&v| stored.round(v)).zip(&found).position(|(a, &b)| a != b) {
        None => Ok(()),
        Some(i) => Err(format!("{} at element {i}, expected {}", found[i], stored.round(exact[i]))),
    }
}

/// The largest magnitude of the inputs: sums of products stay below 2^24, where f32 is exact.
fn magnitude(node: &Node, result: &TensorType, dtype: DType) -> Result<i64, String> {
    let terms = (node.conv.macs() as f64 / result.shape.len() as f64).ceil().max(1.0)
        * (node.conv.spec().stride[0] * node.conv.spec().stride[1]) as f64;
    let range = if dtype == DType::F32 { 32.0 } else { 4.0 };
    match ((f64::from(1 << 24) / terms).sqrt().floor() as i64).min(range as i64) {
        0 => Err(format!("sums of {terms} products are not exact in f32")),
        magnitude => Ok(magnitude),
    }
}

/// Fails if the host lacks memory for tensors of `types`, twice in f64.
fn room<'a>(types: impl Iterator<Item = &'a TensorType>) -> Result<(), String> {
    let bytes =
        types.map(|ty| 16.0 * ty.shape.dims().iter().map(|&extent| extent as f64).product::<f64>()).sum::<f64>();
    match ExitWhereMemoryEnds::has_room(bytes as usize) {
        true => Ok(()),
        false => Err(format!("no memory for {bytes} bytes of tensors")),
    }
}

/// Integers in -magnitude..=magnitude, different for every input.
fn integers(ty: &TensorType, input: u64, magnitude: i64) -> Vec<f64> {
    let span = (2 * magnitude + 1) as u64;
    let mix = |i: u64| {
        let z = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ input.wrapping_mul(0xD134_2543_DE82_EF95);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 33
    };
    (0..ty.shape.len() as u64).map(|i| ((mix(i) % span) as i64 - magnitude) as f64).collect()
}

/// The operands of an op that writes `y`.
fn bound<'a, T>(inputs: &'a [Vec<T>], y: &'a mut [T], scratch: &'a mut [T]) -> HostIo<'a, T> {
    let inputs = inputs.iter().map(|v| HostRef::Real(v.as_slice())).collect();
    HostIo { inputs, outputs: vec![HostMut::Real(y)], writes: vec![Write::Overwrite], scratch }
}

fn reference(node: &Node, inputs: &[Vec<f64>], result: &TensorType) -> Vec<f64> {
    let mut y = vec![f64::NAN; result.shape.len()];
    HostOp::<f64>::reference(node, &mut bound(inputs, &mut y, &mut []));
    y
}

/// The result of the `cpu` device, in f32.
fn host(node: &Node, inputs: &[Vec<f64>], result: &TensorType, stored: DType) -> Vec<f64> {
    let inputs: Vec<Vec<f32>> = inputs.iter().map(|v| v.iter().map(|&a| a as f32).collect()).collect();
    let mut y = vec![f32::NAN; result.shape.len()];
    let mut scratch = vec![0.0; HostOp::<f32>::host_scratch(node)];
    HostOp::<f32>::host(node, &mut bound(&inputs, &mut y, &mut scratch));
    y.into_iter().map(|v| stored.round(f64::from(v))).collect()
}

/// The result of the kernels, on tensors of their own.
fn kernels(
    node: &Node,
    backend: &Arc<dyn Backend>,
    dtype: DType,
    inputs: &[Vec<f64>],
    result: &TensorType,
) -> residuum::Result<Vec<f64>> {
    let target = Target { arch: backend.arch(), dtype };
    let bind = |ty: &TensorType, content: &[f64]| -> residuum::Result<Arg> {
        let view = View::whole(backend.allocate(ty.bytes(dtype))?);
        view.write(&encode(ty, dtype, content))?;
        let pixel_stride = ty.shape.dims().last().copied().unwrap_or(1);
        Ok(Arg { view, pixel_stride, write: Write::Overwrite })
    };
    let types = node.inputs();
    let bound = types.iter().zip(inputs).map(|(ty, v)| bind(ty, v)).collect::<residuum::Result<Vec<_>>>()?;
    let y = [bind(result, &vec![f64::NAN; result.shape.len()])?];
    let scratch = match node.scratch_bytes(target) {
        0 => None,
        bytes => Some(View::whole(backend.allocate(bytes)?)),
    };
    let io = Io { inputs: &bound, outputs: &y, scratch: scratch.as_ref() };
    for launch in node.launches(target, &io)? {
        backend.launch(&launch)?;
    }
    backend.synchronize()?;
    Ok(decode(result, dtype, &y[0].view.read()?))
}

fn encode(ty: &TensorType, dtype: DType, content: &[f64]) -> Vec<u8> {
    let halves = |bits: fn(f64) -> u16| content.iter().flat_map(|&v| bits(v).to_le_bytes()).collect();
    match (ty.elem, dtype) {
        (Elem::Real, DType::F16) => halves(|v| residuum::half::f16::from_f64(v).to_bits()),
        (Elem::Real, DType::BF16) => halves(|v| residuum::half::bf16::from_f64(v).to_bits()),
        _ => content.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
    }
}

fn decode(ty: &TensorType, dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let halves = |value: fn(u16) -> f64| {
        bytes.chunks_exact(2).map(|b| value(u16::from_le_bytes([b[0], b[1]]))).collect::<Vec<f64>>()
    };
    match (ty.elem, dtype) {
        (Elem::Real, DType::F16) => halves(|b| residuum::half::f16::from_bits(b).to_f64()),
        (Elem::Real, DType::BF16) => halves(|b| residuum::half::bf16::from_bits(b).to_f64()),
        _ => bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
    }
}
