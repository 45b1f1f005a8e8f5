//! Every pass of every layer of `tests/cases/networks.rs`: `cargo bench --bench layers [-- FILTER]`.
//!
//! On a GPU: in bf16 (some layers in every dtype), timed by CUDA events, on enough copies of the tensors for a working
//! set of twice the last-level cache. After the plain passes come the fused ones of a training step, with batch norms
//! and ReLUs. Without a GPU it says so and runs the CPU's ops, in f32 and on few images.
//!
//! An id is `op/dtype/network/layer`: `-- conv2d_fwd/bf16/resnet50/` runs the forward convolutions of ResNet-50. Each
//! prints a row of a Markdown table: the median, operations and bytes per second (by the cost of the launches, or on
//! the CPU of the op), and the fraction of the GPU's roofline: the longer of the least times for bytes and for
//! operations.

#[path = "common/bound.rs"]
mod bound;
#[path = "../tests/cases/networks.rs"]
mod networks;
#[path = "common/roofline.rs"]
mod roofline;
#[path = "common/rotation.rs"]
mod rotation;

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bound::Bound;
use criterion::{criterion_group, criterion_main, Bencher, BenchmarkId, Criterion, SamplingMode, Throughput};
use networks::{Layer, LAYERS};
use residuum::device::{Backend, Cost, Device};
use residuum::ops::Op;
use residuum::tensor::DType;
use roofline::Roofline;
use rotation::{Content, Rotation};

const SAMPLES: usize = 10;
/// The batch size on the CPU, where a training batch would take seconds.
const CPU_BATCH: usize = 4;

/// Prints the head of the table that [`row`] continues.
fn head(device: &str) {
    println!("| {device}: op | layer | dtype | median | TFLOP/s | TB/s | of the roofline |");
    println!("|---|---|---|---|---|---|---|");
}

/// Prints the row of an op; `seconds` are the times of the op in each run, in order.
fn row(op: &Op, layer: &Layer, dtype: DType, seconds: &[f64], cost: Cost, least: Option<f64>) {
    // The first runs were warm-up. With a filter or `--list` there may be no run.
    let mut last = seconds[seconds.len().saturating_sub(SAMPLES)..].to_vec();
    last.sort_by(f64::total_cmp);
    let Some(&median) = last.get(last.len() / 2) else { return };
    let (flops, bytes) = (cost.flops as f64, (cost.bytes_read + cost.bytes_written) as f64);
    println!(
        "| {} | {} {} | {dtype} | {:.2} us | {:.3} | {:.3} | {} |",
        op.operator().name(),
        layer.network,
        layer.name,
        median * 1e6,
        flops / median / 1e12,
        bytes / median / 1e12,
        least.map_or("-".to_string(), |least| format!("{:.0} %", 100.0 * least / median))
    );
}

/// Measures `op` of `layer` with `run`.
fn measure(c: &mut Criterion, op: &Op, layer: &Layer, dtype: DType, mut run: impl FnMut(&mut Bencher<'_>)) {
    let mut group = c.benchmark_group(op.operator().name());
    let cost = op.operator().cost(dtype);
    group.sample_size(SAMPLES).sampling_mode(SamplingMode::Flat).nresamples(10_000);
    group.warm_up_time(Duration::from_millis(150)).measurement_time(Duration::from_millis(600));
    group
        .throughput(Throughput::ElementsAndBytes { elements: cost.flops, bytes: cost.bytes_read + cost.bytes_written });
    let id = BenchmarkId::new(dtype.name(), format!("{}/{}", layer.network, layer.name));
    group.bench_function(id, |b| run(b));
    group.finish();
}

fn on_gpu(c: &mut Criterion, gpu: &Arc<dyn Backend>) {
    let limits = Roofline::of(&gpu.name());
    head(&gpu.name());
    let mut failed = 0;
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        let content = Content::new(dtype);
        for layer in LAYERS.iter().filter(|layer| dtype == DType::BF16 || layer.every_dtype) {
            let ops = [layer.passes(layer.batch), layer.fused(layer.batch)].map(|ops| ops.expect("a layer"));
            for op in ops.concat() {
                // A failure prints its cause as it panics; the others still run, unless the device is lost.
                let run = AssertUnwindSafe(|| gpu_op(c, gpu, &op, layer, &content, limits));
                failed += usize::from(catch_unwind(run).is_err());
                if let Some(error) = gpu.failure() {
                    panic!("{error}");
                }
            }
        }
    }
    assert!(failed == 0, "{failed} ops failed");
}

/// Measures one op.
fn gpu_op(
    c: &mut Criterion,
    gpu: &Arc<dyn Backend>,
    op: &Op,
    layer: &Layer,
    content: &Content,
    limits: Option<Roofline>,
) {
    let dtype = content.dtype();
    // Made on the first run: a filter skips most ops.
    let mut rotation = None;
    let mut seconds = Vec::new();
    let name = format!("{} {dtype} {} {}", op.operator().name(), layer.network, layer.name);
    measure(c, op, layer, dtype, |b| {
        let rotation = rotation.get_or_insert_with(|| {
            Rotation::new(gpu, op, content, Roofline::cache_bytes(limits)).unwrap_or_else(|e| panic!("{name}: {e}"))
        });
        b.iter_custom(|count| {
            let time = rotation.time(count).unwrap_or_else(|e| panic!("{name}: {e}"));
            seconds.push(time.as_secs_f64() / count as f64);
            time
        });
    });
    if let Some(rotation) = rotation {
        let least = limits.and_then(|limits| limits.seconds(rotation.cost(), dtype));
        row(op, layer, dtype, &seconds, rotation.cost(), least);
    }
}

fn on_cpu(c: &mut Criterion) {
    head("CPU");
    // Inside a pool, as a program runs: work started outside it waits for a thread to wake up.
    let pool = rayon::ThreadPoolBuilder::new().build().expect("a thread pool");
    for layer in LAYERS {
        for op in layer.passes(CPU_BATCH).expect("a layer") {
            let mut bound = None;
            let mut seconds = Vec::new();
            measure(c, &op, layer, DType::F32, |b| {
                let bound = bound.get_or_insert_with(|| Bound::new(op.clone()));
                b.iter_custom(|count| {
                    let start = Instant::now();
                    pool.install(|| (0..count).for_each(|_| bound.run()));
                    let time = start.elapsed();
                    seconds.push(time.as_secs_f64() / count as f64);
                    time
                });
            });
            row(&op, layer, DType::F32, &seconds, op.operator().cost(DType::F32), None);
        }
    }
}

fn layers(c: &mut Criterion) {
    match Device::cuda(0) {
        Ok(Device::Kernels(gpu)) => on_gpu(c, &gpu),
        Ok(Device::Cpu) => unreachable!("Device::cuda gives a GPU"),
        Err(error) => {
            assert!(std::env::var("RESIDUUM_REQUIRE_GPU").as_deref() != Ok("1"), "{error}");
            eprintln!("no GPU, so the CPU on {CPU_BATCH} images: {error}");
            on_cpu(c);
        }
    }
}

criterion_group!(benches, layers);
criterion_main!(benches);
