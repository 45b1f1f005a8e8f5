//! Each op of the case tables on its own, with more images.

use residuum::control::sgd;
use residuum::device::sim::probe;
use residuum::device::{Backend, Target, View};
use residuum::ops::conv2d::{BwdBias, BwdW, BwdX, Fwd};
use residuum::ops::store::Epilogue;
use residuum::ops::{batch_norm, conv2d, cross_entropy, linear, pool, relu, shortcut, sum};
use residuum::ops::{Arg, Behind, Io, Op, Operator, Write};
use residuum::tensor::{DType, Elem, TensorType};

use super::{assert_none, backend, difference};
use crate::cases;

/// Multiplies the cases' images, so that the ends of tensors become insignificant.
const IMAGES: usize = 8;

/// f16 and bf16 share their kernels' code.
const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

fn bind(backend: &dyn Backend, ty: &TensorType, dtype: DType, write: Write) -> Arg {
    let bytes = ty.bytes(dtype);
    let memory = backend.allocate(bytes).unwrap();
    // Zeros are valid numbers, labels and window positions.
    memory.write(0, &vec![0; bytes]).unwrap();
    let pixel_stride = ty.shape.nhwc().map_or(ty.shape.len(), |[.., c]| c);
    Arg { view: View::whole(memory), pixel_stride, write }
}

/// The errors of the costs of `op`'s launches.
fn wrong(name: &str, op: &dyn Operator, dtype: DType, write: Write, backend: &dyn Backend) -> Vec<String> {
    let target = Target { arch: backend.arch(), dtype };
    let inputs: Vec<Arg> = op.inputs().iter().map(|ty| bind(backend, ty, dtype, Write::Overwrite)).collect();
    let write_of = |i: usize| if op.accumulates().contains(&i) { write } else { Write::Overwrite };
    let outputs: Vec<Arg> =
        op.outputs().iter().enumerate().map(|(i, ty)| bind(backend, ty, dtype, write_of(i))).collect();
    let scratch = match op.scratch_bytes(target) {
        0 => None,
        bytes => Some(View::whole(backend.allocate(bytes).unwrap())),
    };
    let io = Io { inputs: &inputs, outputs: &outputs, scratch: scratch.as_ref() };
    let launches = op.launches(target, &io).unwrap();
    let mut wrong = Vec::new();
    for launch in launches {
        backend.launch(&launch).unwrap();
        let counted = probe::traffic();
        assert_eq!(counted.len(), 1, "launches of this thread");
        if let Some(problem) = difference(launch.cost(), counted[0]) {
            wrong.push(format!("{} in {name} {} {write:?}: {problem}", launch.kernel().name, op.summary()));
        }
    }
    wrong
}

fn check(cases: impl IntoIterator<Item = (String, Op)>) {
    let Some(backend) = backend() else { return };
    let mut all = Vec::new();
    for (name, op) in cases {
        for dtype in DTYPES {
            for write in [Write::Overwrite, Write::Accumulate] {
                if write == Write::Overwrite || !op.operator().accumulates().is_empty() {
                    all.extend(wrong(&name, op.operator(), dtype, write, &*backend));
                }
            }
        }
    }
    assert_none(all);
}

fn images(mut x: [usize; 4]) -> [usize; 4] {
    x[0] *= IMAGES;
    x
}

#[test]
fn convolutions_cost_what_they_touch() {
    let epilogue = Epilogue { scale: Some(()), shift: Some(()), residual: Some(()), relu: true };
    let passes = [
        conv2d::Pass::fwd(false),
        conv2d::Pass::Fwd(Fwd { epilogue, ..Fwd::default() }),
        conv2d::Pass::BwdX(BwdX::default()),
        conv2d::Pass::BwdW(BwdW::default()),
        conv2d::Pass::BwdBias(BwdBias::default()),
    ];
    check(cases::conv2d::layers().into_iter().flat_map(|row| {
        let conv = conv2d::Conv2d::new(conv2d::Spec { n: row.spec.n * IMAGES, ..row.spec }).unwrap();
        passes.map(|pass| (row.name.clone(), Op::Conv2d(conv2d::Node { conv, pass })))
    }));
}

/// A stride beyond the kernel leaves pixels that no tap reaches: fused kernels visit them only if sums need them. Forms
/// with gates are left out, since tensors of zeros close every gate.
#[test]
fn fused_convolutions_with_a_stride_cost_what_they_touch() {
    let beyond = |row: &cases::conv2d::Row| row.spec.stride[0] > row.spec.kernel[0];
    let rows = cases::conv2d::layers().into_iter().filter(beyond);
    check(rows.flat_map(|row| {
        let conv = conv2d::Conv2d::new(conv2d::Spec { n: row.spec.n * IMAGES, ..row.spec }).unwrap();
        let fused = cases::conv2d_fused::passes().filter(|(_, pass)| !pass.is_plain());
        let nodes = fused.map(move |(name, pass)| (format!("{}, {name}", row.name), conv2d::Node { conv, pass }));
        nodes.filter(|(_, node)| node.behind_gate() == Behind::default()).map(|(name, node)| (name, Op::Conv2d(node)))
    }));
}

#[test]
fn ends_of_blocks_cost_what_they_touch() {
    let rows = cases::conv2d::layers().into_iter().filter(|row| row.conv().can_load_sum());
    check(rows.flat_map(|row| {
        let conv = conv2d::Conv2d::new(conv2d::Spec { n: row.spec.n * IMAGES, ..row.spec }).unwrap();
        cases::conv2d_fused::ENDS.map(|(_, pass)| (row.name.clone(), Op::Conv2d(conv2d::Node { conv, pass })))
    }));
}

#[test]
fn linear_layers_cost_what_they_touch() {
    use linear::Pass::*;
    check([([40, 1, 1, 256], 100), ([32, 4, 4, 32], 64)].into_iter().flat_map(|(x, k)| {
        let linear = linear::Linear::new(linear::Spec { x, k }).unwrap();
        let backward = [BwdX, BwdW, BwdBias].map(|pass| linear::Node { linear, pass });
        std::iter::once(linear.fwd(true)).chain(backward).map(|node| ("linear".to_string(), Op::Linear(node)))
    }));
}

#[test]
fn elementwise_ops_cost_what_they_touch() {
    check(cases::elementwise::SHAPES.iter().flat_map(|&shape| {
        let shape = residuum::tensor::Shape::from(images(shape));
        [
            Op::Relu(relu::Node { shape: shape.clone(), pass: relu::Pass::Fwd }),
            Op::Relu(relu::Node { shape: shape.clone(), pass: relu::Pass::Bwd }),
            Op::Sum(sum::Node::of(shape.clone())),
            Op::Sum(sum::Node { relu: true, ..sum::Node::of(shape) }),
        ]
        .map(|op| ("elementwise".to_string(), op))
    }));
}

#[test]
fn batch_norms_cost_what_they_touch() {
    check(cases::batch_norm::SHAPES.iter().flat_map(|&x| {
        let bn = batch_norm::BatchNorm::new(batch_norm::Spec { x: images(x), eps: 1e-5, momentum: 0.1 }).unwrap();
        let passes = [bn.train(true).unwrap(), bn.infer(false), bn.fold(true, 1.0), bn.bwd(false), bn.bwd(true)];
        passes.map(|node| ("batch norm".to_string(), Op::BatchNorm(node)))
    }));
}

#[test]
fn poolings_cost_what_they_touch() {
    let kinds = [pool::Kind::Max, pool::Kind::Average { count_padding: true }];
    let small = cases::pool::CASES.iter().flat_map(|case| kinds.map(|kind| (case, kind)));
    let large = cases::pool::LARGE_AVERAGES.iter().map(|case| (case, kinds[1]));
    check(small.chain(large).flat_map(|(case, kind)| {
        let pool = pool::Pool::new(pool::Spec { x: images(case.x), window: case.window, kind }).unwrap();
        [pool.fwd(), pool.bwd()].map(|node| (format!("{:?}", case.window), Op::Pool(node)))
    }));
}

#[test]
fn shortcuts_cost_what_they_touch() {
    check(cases::shortcut::CASES.iter().flat_map(|&spec| {
        let shortcut = shortcut::Shortcut::new(shortcut::Spec { x: images(spec.x), ..spec }).unwrap();
        [shortcut::Pass::Fwd, shortcut::Pass::Bwd]
            .map(|pass| (format!("{spec:?}"), Op::Shortcut(shortcut::Node { shortcut, pass })))
    }));
}

#[test]
fn losses_cost_what_they_touch() {
    check(cases::cross_entropy::CASES.iter().flat_map(|&spec| {
        let loss = cross_entropy::CrossEntropy::new(cross_entropy::Spec { n: spec.n * IMAGES, ..spec }).unwrap();
        let fwd = loss.fwd();
        let bwd = cross_entropy::Node { pass: cross_entropy::Pass::Bwd(Default::default()), ..fwd };
        [fwd, bwd].map(|node| (format!("{spec:?}"), Op::CrossEntropy(node)))
    }));
}

#[test]
fn an_optimizer_step_costs_what_it_touches() {
    let Some(backend) = backend() else { return };
    let spec = sgd::Spec { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 1e-4 };
    let sgd = sgd::Sgd::new(spec).unwrap();
    let len = 5000;
    let flat = |elem| bind(&*backend, &TensorType { shape: [len].into(), elem }, DType::BF16, Write::Overwrite).view;
    let [param, grad, velocity, copy, control, loss] =
        [Elem::Stat, Elem::Stat, Elem::Stat, Elem::Real, Elem::Stat, Elem::Stat].map(flat);
    let mut wrong = Vec::new();
    for (copy, loss) in [(None, None), (Some(&copy), None), (None, Some(&loss))] {
        let buffers = sgd::Buffers {
            loss_scale: None,
            loss,
            grad_scale: 1.0,
            param: &param,
            grad: &grad,
            velocity: &velocity,
            copy,
            control: &control,
            len,
            decay_end: len,
        };
        let launch = sgd::launch(&sgd, Target { arch: backend.arch(), dtype: DType::BF16 }, &buffers);
        backend.launch(&launch).unwrap();
        wrong.extend(difference(launch.cost(), probe::traffic()[0]));
    }
    assert_none(wrong);
}
