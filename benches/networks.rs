//! Whole training and inference steps of networks: `cargo bench --bench networks [-- FILTER]`.
//!
//! On a GPU in bf16 with the batch sizes of [`NETWORKS`], timed by CUDA events, as a recorded graph (`graph`) and
//! launch by launch (`launches`). Without a GPU it says so and runs the CPU, in f32 and on few images. An id is
//! `mode/model/replay`. Unknown networks are reported and skipped.
//!
//! `-- --workload MODEL [--mode train|infer] [--batch N] [--dtype D] [--device D] [--replay graph|launches]` measures a
//! step on demand, for `benches/peers/compare.py`: it prints a line of JSON when it is ready, and then, for each line
//! `run` on its input, one with `seconds`, the mean over the `steps` of a run.

#[path = "common/step.rs"]
mod step;

use std::io::{BufRead, Write};
use std::str::FromStr;
use std::time::Duration;

use criterion::{criterion_group, Criterion, SamplingMode, Throughput};
use residuum::device::Device;
use residuum::graph::Mode;
use residuum::tensor::DType;
use residuum::{Error, Result};
use serde_json::json;
use step::{Replay, Step, Workload};

/// The networks, with their batch sizes on a GPU and on the CPU.
const NETWORKS: &[(&str, usize, usize)] = &[
    ("resnet50", 256, 2),
    ("resnext50_32x4d", 256, 2),
    ("densenet121", 256, 2),
    ("resnet110_cifar", 128, 8),
    ("resnet110_cifar_survival05", 128, 8),
];

/// The target time of a run on demand, in seconds.
const RUN_SECONDS: f64 = 0.5;
/// The most steps of such a run.
const MOST_STEPS: f64 = 500.0;

fn networks(c: &mut Criterion) {
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(error) => {
            assert!(std::env::var("RESIDUUM_REQUIRE_GPU").as_deref() != Ok("1"), "{error}");
            eprintln!("no GPU, so the CPU on few images: {error}");
            Device::cpu()
        }
    };
    let on_gpu = matches!(device, Device::Kernels(_));
    let (dtype, replays): (_, &[_]) = match on_gpu {
        true => (DType::BF16, &[("graph", Replay::Graph), ("launches", Replay::Launches)]),
        false => (DType::F32, &[("cpu", Replay::Graph)]),
    };
    for &(model, gpu_batch, cpu_batch) in NETWORKS {
        if let Err(error) = residuum::models::find(model) {
            eprintln!("skipped: {error}");
            continue;
        }
        let batch = if on_gpu { gpu_batch } else { cpu_batch };
        for (mode_name, mode) in [("train", Mode::Train), ("infer", Mode::Infer)] {
            for &(replay_name, replay) in replays {
                let work = Workload { model: model.to_string(), mode, batch, dtype, replay };
                measure(c, &format!("{mode_name}/{model}/{replay_name}"), &work, &device);
            }
        }
    }
}

/// Measures `work` in images per second.
fn measure(c: &mut Criterion, id: &str, work: &Workload, device: &Device) {
    let mut group = c.benchmark_group("networks");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).nresamples(10_000);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Elements(work.batch as u64));
    // Made on the first run: a filter skips most networks.
    let mut step = None;
    group.bench_function(id, |b| {
        let step = step.get_or_insert_with(|| Step::new(work, device).unwrap_or_else(|e| panic!("{id}: {e}")));
        b.iter_custom(|count| step.time(count).unwrap_or_else(|e| panic!("{id}: {e}")));
    });
    group.finish();
}

/// The workload and the device in the arguments, if there are any.
fn asked(args: &[String]) -> Result<Option<(Workload, String)>> {
    let value = |flag: &str| args.iter().position(|arg| arg == flag).and_then(|i| args.get(i + 1)).map(String::as_str);
    let Some(model) = value("--workload") else { return Ok(None) };
    let mode = match value("--mode").unwrap_or("train") {
        "train" => Mode::Train,
        "infer" => Mode::Infer,
        other => return Err(Error::invalid("--mode", format!("{other}, expected train or infer"))),
    };
    let replay = match value("--replay").unwrap_or("graph") {
        "graph" => Replay::Graph,
        "launches" => Replay::Launches,
        other => return Err(Error::invalid("--replay", format!("{other}, expected graph or launches"))),
    };
    let batch = value("--batch").unwrap_or("1");
    let batch = batch.parse().map_err(|_| Error::invalid("--batch", format!("{batch} is not a number")))?;
    let dtype = DType::from_str(value("--dtype").unwrap_or("f32"))?;
    let work = Workload { model: model.to_string(), mode, batch, dtype, replay };
    Ok(Some((work, value("--device").unwrap_or("auto").to_string())))
}

/// Runs `work` whenever the input says so, until its end.
fn serve(work: &Workload, device: &str) -> Result<()> {
    let device = Device::parse(device)?;
    let name = match &device {
        Device::Kernels(backend) => backend.name(),
        Device::Cpu => "cpu".to_string(),
    };
    let mut step = Step::new(work, &device)?;
    step.time(2)?;
    let steps = (RUN_SECONDS / step.time(1)?.as_secs_f64()).clamp(1.0, MOST_STEPS) as u64;
    say(&json!({ "ready": true, "device": name, "batch": step.batch(), "steps": steps }));
    for line in std::io::stdin().lock().lines() {
        if line.is_ok_and(|line| line.trim() == "run") {
            let seconds = step.time(steps)?.as_secs_f64() / steps as f64;
            say(&json!({ "seconds": seconds, "steps": steps }));
        }
    }
    Ok(())
}

/// Prints a line and flushes it. If the reader has gone, the input ends too.
fn say(line: &serde_json::Value) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}

criterion_group!(benches, networks);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let served = asked(&args).and_then(|work| match work {
        Some((work, device)) => serve(&work, &device).map(|()| true),
        None => Ok(false),
    });
    match served {
        Ok(true) => {}
        Ok(false) => {
            benches();
            Criterion::default().configure_from_args().final_summary();
        }
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
