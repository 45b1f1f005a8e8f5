//! The simulator's speed: multiply-adds per second on one core, for a 3x3 convolution of 64 channels and 28x28 pixels.

use std::hint::black_box;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use residuum::device::sim::{Arithmetic, Copies, Schedule, SimOptions};
use residuum::device::{Backend, Device, Launch, Target, View};
use residuum::ops::conv2d::{BwdW, BwdX, Conv2d, Node, Pass, Spec};
use residuum::ops::{Arg, Io, Operator, Write};
use residuum::tensor::{DType, Elem, TensorType};

/// The launches of `node` on tensors of ones: the time does not depend on the values.
fn launches(sim: &dyn Backend, node: &Node, dtype: DType) -> Vec<Launch> {
    let target = Target { arch: sim.arch(), dtype };
    let view = |bytes: usize| View::whole(sim.allocate(bytes).expect("memory"));
    let arg = |t: &TensorType| {
        let view = view(t.bytes(dtype));
        let one = match (t.elem, dtype) {
            (Elem::Real, DType::BF16) => vec![0x80, 0x3f],
            (Elem::Real, DType::F16) => vec![0x00, 0x3c],
            _ => vec![0, 0, 0x80, 0x3f],
        };
        view.write(&one.repeat(view.bytes() / one.len())).expect("a write");
        Arg { view, pixel_stride: *t.shape.dims().last().expect("a dimension"), write: Write::Overwrite }
    };
    let inputs: Vec<Arg> = node.inputs().iter().map(arg).collect();
    let outputs: Vec<Arg> = node.outputs().iter().map(arg).collect();
    let scratch = view(node.scratch_bytes(target));
    node.launches(target, &Io { inputs: &inputs, outputs: &outputs, scratch: Some(&scratch) }).expect("launches")
}

fn convolutions(c: &mut Criterion) {
    let spec = Spec {
        n: 1,
        h: 28,
        w: 28,
        c: 64,
        k: 64,
        kernel: [3, 3],
        stride: [1, 1],
        padding: [1, 1],
        dilation: [1, 1],
        groups: 1,
    };
    let conv = Conv2d::new(spec).expect("a convolution");
    let mut group = c.benchmark_group("simulator");
    group.sample_size(10).throughput(Throughput::Elements(conv.macs()));
    let passes =
        [("fwd", Pass::fwd(false)), ("bwd_x", Pass::BwdX(BwdX::default())), ("bwd_w", Pass::BwdW(BwdW::default()))];
    let fast = SimOptions::default();
    let ways = [
        ("exact", fast),
        ("sm80", SimOptions { arithmetic: Arithmetic::Sm80, ..fast }),
        ("sm90", SimOptions { arithmetic: Arithmetic::Sm90, ..fast }),
        ("random", SimOptions { schedule: Schedule::Random, copies: Copies::Random, ..fast }),
        ("priority", SimOptions { schedule: Schedule::Priority { depth: 2 }, ..fast }),
    ];
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for (pass_name, pass) in passes {
            for (way, options) in ways {
                if way != "exact" && (pass_name != "fwd" || dtype != DType::BF16) {
                    continue;
                }
                let Device::Kernels(sim) = Device::sim(options).expect("the simulator") else { unreachable!() };
                let launches = launches(&*sim, &Node { conv, pass }, dtype);
                group.bench_function(format!("{pass_name}_{dtype}/{way}"), |b| {
                    b.iter(|| launches.iter().for_each(|l| sim.launch(black_box(l)).expect("a launch")));
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, convolutions);
criterion_main!(benches);
