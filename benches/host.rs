//! The CPU's ops on the layers of ResNet-20 for 8x8 images, batch size 64, in f32: `cargo bench --bench host`.
//!
//! `step` runs every op of a training step, each in its own memory, without the overhead of a graph.

#[path = "common/bound.rs"]
mod bound;

use bound::Bound;
use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use residuum::control::sgd;
use residuum::ops::{batch_norm, conv2d, cross_entropy, linear, pool, relu, shortcut, sum, Op};

const BATCH: usize = 64;
const STAGES: [(usize, usize); 3] = [(8, 16), (4, 32), (2, 64)];

fn conv(h: usize, c: usize, k: usize, stride: usize) -> conv2d::Conv2d {
    conv2d::Conv2d::new(conv2d::Spec {
        n: BATCH,
        h,
        w: h,
        c,
        k,
        kernel: [3, 3],
        stride: [stride; 2],
        padding: [1, 1],
        dilation: [1, 1],
        groups: 1,
    })
    .expect("a convolution")
}

fn conv_passes(conv: conv2d::Conv2d) -> [Op; 3] {
    use conv2d::Pass;
    [Pass::fwd(false), Pass::BwdX(Default::default()), Pass::BwdW(Default::default())]
        .map(|pass| Op::Conv2d(conv2d::Node { conv, pass }))
}

fn batch_norm_passes(x: [usize; 4]) -> [Op; 2] {
    let bn = batch_norm::BatchNorm::new(batch_norm::Spec { x, eps: 1e-5, momentum: 0.1 }).expect("a batch norm");
    let train = bn.train(true).expect("a training pass");
    [Op::BatchNorm(train), Op::BatchNorm(bn.bwd(true))]
}

/// Every op of a training step.
fn network() -> Vec<Op> {
    let mut ops = Vec::new();
    let mut layer = |h: usize, c: usize, k: usize, stride: usize| {
        let conv = conv(h, c, k, stride);
        ops.extend(conv_passes(conv));
        let [p, q] = conv.output();
        ops.extend(batch_norm_passes([BATCH, p, q, k]));
    };
    layer(8, 1, 16, 1);
    let mut rest = Vec::new();
    let (mut h, mut c) = (8, 16);
    for (size, width) in STAGES {
        for block in 0..3 {
            layer(h, c, width, h / size);
            layer(size, width, width, 1);
            let x = [BATCH, size, size, width];
            let relu = |pass| Op::Relu(relu::Node { shape: x.into(), pass });
            rest.extend([Op::Sum(sum::Node::of(x)), relu(relu::Pass::Fwd)]);
            rest.push(relu(relu::Pass::Bwd));
            if block == 0 && c != width {
                let spec = shortcut::Spec { x: [BATCH, h, h, c], k: width, stride: 2, lead: 0 };
                let shortcut = shortcut::Shortcut::new(spec).expect("a shortcut");
                let node = |pass| Op::Shortcut(shortcut::Node { shortcut, pass });
                rest.extend([node(shortcut::Pass::Fwd), node(shortcut::Pass::Bwd)]);
            }
            (h, c) = (size, width);
        }
    }
    ops.extend(rest);
    ops.extend(head());
    ops
}

fn head() -> Vec<Op> {
    let spec = pool::Spec {
        x: [BATCH, 2, 2, 64],
        window: pool::Window::Adaptive([1, 1]),
        kind: pool::Kind::Average { count_padding: false },
    };
    let pool = pool::Pool::new(spec).expect("a pooling");
    let linear = linear::Linear::new(linear::Spec { x: [BATCH, 1, 1, 64], k: 10 }).expect("a layer");
    let spec = cross_entropy::Spec { n: BATCH, classes: 10, smoothing: 0.0, grad_scale: 1.0 };
    let loss = cross_entropy::CrossEntropy::new(spec).expect("a loss");
    let mut ops = vec![
        Op::Pool(pool.fwd()),
        Op::Pool(pool.bwd()),
        Op::CrossEntropy(loss.fwd()),
        Op::CrossEntropy(cross_entropy::Node { loss, pass: cross_entropy::Pass::Bwd(Default::default()) }),
    ];
    use linear::Pass;
    ops.push(Op::Linear(linear.fwd(true)));
    ops.extend([Pass::BwdX, Pass::BwdW, Pass::BwdBias].map(|pass| Op::Linear(linear::Node { linear, pass })));
    ops
}

fn layers(c: &mut Criterion) {
    let mut group = c.benchmark_group("layers");
    for (size, width) in STAGES {
        let ops = conv_passes(conv(size, width, width, 1)).into_iter();
        for op in ops.chain(batch_norm_passes([BATCH, size, size, width])) {
            let (name, flops) = (op.operator().name(), op.operator().flops());
            let mut bound = Bound::new(op);
            group.throughput(Throughput::Elements(flops));
            group.bench_function(BenchmarkId::new(name, format!("{size}x{size}x{width}")), |b| b.iter(|| bound.run()));
        }
    }
    group.finish();
}

fn step(c: &mut Criterion) {
    let mut network: Vec<Bound> = network().into_iter().map(Bound::new).collect();
    let parameters = 272_000;
    let sgd = sgd::Spec { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 1e-4 };
    let sgd = sgd::Sgd::new(sgd).expect("an optimizer");
    let (mut param, grad, mut velocity) = (vec![1.0f32; parameters], vec![0.1; parameters], vec![0.0; parameters]);
    // Inside the pool, as a program runs: work started outside it waits for a thread to wake up.
    let pool = rayon::ThreadPoolBuilder::new().build().expect("a thread pool");
    let mut run = || {
        network.iter_mut().for_each(Bound::run);
        let state = sgd::StepState { lr: 0.1, grad_scale: 1.0, first: false };
        sgd::step(&sgd, state, parameters, &mut param, &grad, &mut velocity);
    };
    c.bench_function("step", |b| pool.install(|| b.iter(&mut run)));
}

criterion_group!(benches, layers, step);
criterion_main!(benches);
