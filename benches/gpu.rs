//! The kernels on a GPU, on layers of ResNet-50 for 224x224 images: `cargo bench --bench gpu`.
//!
//! Matrix products count operations, everything else the bytes that an op must move at least. Each measurement replays a
//! recorded op many times and waits once. Memory-bound ops work on more than a GPU's cache holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use residuum::device::{Backend, Device, Recording, Target, View};
use residuum::ops::{add, batch_norm, conv2d, cross_entropy, linear, pool, relu, Arg, Io, Op, Write};
use residuum::tensor::{DType, Elem, TensorType};

const BATCH: usize = 64;

/// Input height, channels, output channels, kernel and stride of a convolution.
const CONVOLUTIONS: [(&str, usize, usize, usize, usize, usize); 8] = [
    ("stem", 224, 3, 64, 7, 2),
    ("stage1_3x3", 56, 64, 64, 3, 1),
    ("stage1_expand", 56, 64, 256, 1, 1),
    ("stage2_3x3_stride2", 56, 128, 128, 3, 2),
    ("stage2_3x3", 28, 128, 128, 3, 1),
    ("stage3_3x3", 14, 256, 256, 3, 1),
    ("stage4_3x3", 7, 512, 512, 3, 1),
    ("stage4_reduce", 7, 2048, 512, 1, 1),
];

/// Bytes of a tensor of numbers between -1 and 1, or of labels and positions of 0. Zeros would flatter the clock.
fn content(ty: &TensorType, dtype: DType) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let len = ty.shape.len();
    match (ty.elem, dtype) {
        (Elem::Index, _) => vec![0; 4 * len],
        (Elem::Byte, _) => vec![0; len],
        (Elem::Real, DType::F16) => {
            (0..len).flat_map(|_| residuum::half::f16::from_f32(next()).to_le_bytes()).collect()
        }
        (Elem::Real, DType::BF16) => {
            (0..len).flat_map(|_| residuum::half::bf16::from_f32(next()).to_le_bytes()).collect()
        }
        _ => (0..len).flat_map(|_| next().to_le_bytes()).collect(),
    }
}

/// `op` on memory of its own, recorded.
fn record(gpu: &Arc<dyn Backend>, op: &Op, dtype: DType) -> residuum::Result<Recording> {
    let op = op.operator();
    let target = Target { arch: gpu.arch(), dtype };
    let arg = |ty: &TensorType| -> residuum::Result<Arg> {
        let view = View::whole(gpu.allocate(ty.bytes(dtype))?);
        view.write(&content(ty, dtype))?;
        let pixel_stride = ty.shape.dims().last().copied().unwrap_or(1);
        Ok(Arg { view, pixel_stride, write: Write::Overwrite })
    };
    let args = |types: Vec<TensorType>| types.iter().map(arg).collect::<residuum::Result<Vec<_>>>();
    let (inputs, outputs) = (args(op.inputs())?, args(op.outputs())?);
    let scratch = match op.scratch_bytes(target) {
        0 => None,
        bytes => Some(View::whole(gpu.allocate(bytes)?)),
    };
    let io = Io { inputs: &inputs, outputs: &outputs, scratch: scratch.as_ref() };
    Recording::new(gpu.clone(), op.launches(target, &io)?)
}

/// Measures `op` in every dtype of `dtypes`.
fn measure(c: &mut Criterion, gpu: &Arc<dyn Backend>, op: &Op, name: &str, dtypes: &[DType], by_bytes: bool) {
    let mut group = c.benchmark_group(op.operator().name());
    group.sample_size(10).warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    for &dtype in dtypes {
        let cost = op.operator().cost(dtype);
        group.throughput(match by_bytes {
            true => Throughput::Bytes(cost.bytes_read + cost.bytes_written),
            false => Throughput::Elements(cost.flops),
        });
        let recording = record(gpu, op, dtype).unwrap_or_else(|e| panic!("{name} {dtype}: {e}"));
        group.bench_function(BenchmarkId::new(dtype.name(), name), |b| {
            b.iter_custom(|count| {
                gpu.synchronize().expect("a working GPU");
                let start = Instant::now();
                for _ in 0..count {
                    recording.replay().expect("a replay");
                }
                gpu.synchronize().expect("a working GPU");
                start.elapsed()
            });
        });
    }
    group.finish();
}

fn products(c: &mut Criterion, gpu: &Arc<dyn Backend>) {
    let dtypes = [DType::BF16, DType::F16, DType::F32];
    for (name, h, channels, k, kernel, stride) in CONVOLUTIONS {
        let spec = conv2d::Spec {
            n: BATCH,
            h,
            w: h,
            c: channels,
            k,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [kernel / 2; 2],
            dilation: [1, 1],
            groups: 1,
        };
        let conv = conv2d::Conv2d::new(spec).expect("a convolution");
        use conv2d::Pass;
        for pass in [Pass::Fwd(Default::default()), Pass::BwdX, Pass::BwdW] {
            measure(c, gpu, &Op::Conv2d(conv2d::Node { conv, pass }), name, &dtypes, false);
        }
    }
    let linear = linear::Linear::new(linear::Spec { x: [BATCH, 1, 1, 2048], k: 1000 }).expect("a layer");
    let node = linear::Node { linear, pass: linear::Pass::Fwd { bias: true } };
    measure(c, gpu, &Op::Linear(node), "classifier", &dtypes, false);
}

fn passes_over_memory(c: &mut Criterion, gpu: &Arc<dyn Backend>) {
    let dtypes = [DType::BF16, DType::F32];
    let x = [BATCH, 56, 56, 256];
    let bn = batch_norm::BatchNorm::new(batch_norm::Spec { x, eps: 1e-5, momentum: 0.1 }).expect("a batch norm");
    let stem = pool::Spec {
        x: [BATCH, 112, 112, 64],
        window: pool::Window::Sliding { kernel: [3, 3], stride: [2, 2], padding: [1, 1], ceil: false },
        kind: pool::Kind::Max,
    };
    let pool = pool::Pool::new(stem).expect("a pooling");
    let spec = cross_entropy::Spec { n: 1024, classes: 1000, smoothing: 0.1, grad_scale: 1.0 };
    let loss = cross_entropy::CrossEntropy::new(spec).expect("a loss");
    for op in [
        Op::BatchNorm(bn.train(true).expect("a training pass")),
        Op::BatchNorm(batch_norm::Node { bn, pass: batch_norm::Pass::Bwd { relu: true } }),
        Op::Add(add::Node { shape: x.into(), relu: true }),
        Op::Relu(relu::Node { shape: x.into(), pass: relu::Pass::Bwd }),
        Op::Pool(pool.fwd()),
        Op::Pool(pool::Node { pool, pass: pool::Pass::Bwd }),
        Op::CrossEntropy(loss.fwd()),
    ] {
        measure(c, gpu, &op, "large", &dtypes, true);
    }
}

fn kernels(c: &mut Criterion) {
    match Device::cuda(0) {
        Ok(Device::Kernels(gpu)) => {
            products(c, &gpu);
            passes_over_memory(c, &gpu);
        }
        Ok(Device::Cpu) => {}
        Err(error) => {
            assert!(std::env::var("RESIDUUM_REQUIRE_GPU").as_deref() != Ok("1"), "{error}");
            eprintln!("skipped: {error}");
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
