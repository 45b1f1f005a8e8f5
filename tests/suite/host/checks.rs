//! Every op on the CPU: layers of networks and odd sizes.

use residuum::control::sgd;
use residuum::ops::batch_norm::{self, Bwd, Fold, Infer, Train};
use residuum::ops::conv2d::Fwd;
use residuum::ops::store::Epilogue;
use residuum::ops::{concat, conv2d, cross_entropy, linear, pool, relu, shortcut, sum, Call, Op, Operator, Write};
use residuum::tensor::Shape;

use super::{case, check, host, integers, normals, refuses, rounded, Bound, Case};
use crate::harness::{reference, Data, Random};
use crate::named::outputs;

const DENSE: conv2d::Spec = conv2d::Spec {
    n: 2,
    h: 7,
    w: 6,
    c: 4,
    k: 6,
    kernel: [3, 3],
    stride: [1, 1],
    padding: [1, 1],
    dilation: [1, 1],
    groups: 1,
};

/// Layers of networks and odd sizes.
fn convolutions() -> Vec<conv2d::Spec> {
    use conv2d::Spec;
    let pointwise = Spec { kernel: [1, 1], padding: [0, 0], ..DENSE };
    let mut specs = vec![
        // The digits' network.
        Spec { n: 64, h: 8, w: 8, c: 1, k: 16, ..DENSE },
        Spec { n: 64, h: 8, w: 8, c: 16, k: 16, ..DENSE },
        Spec { n: 64, h: 8, w: 8, c: 16, k: 32, stride: [2, 2], ..DENSE },
        Spec { n: 64, h: 2, w: 2, c: 64, k: 64, ..DENSE },
        // A first layer of an ImageNet network on a small image, and bottlenecks.
        Spec { n: 2, h: 32, w: 32, c: 3, k: 64, kernel: [7, 7], stride: [2, 2], padding: [3, 3], ..DENSE },
        Spec { n: 2, h: 8, w: 8, c: 64, k: 256, ..pointwise },
        Spec { n: 1, h: 4, w: 4, c: 256, k: 512, ..pointwise },
        Spec { n: 3, h: 7, w: 7, c: 64, k: 32, stride: [2, 2], ..pointwise },
        // Weights large enough for several blocks of output channels.
        Spec { n: 2, h: 4, w: 4, c: 128, k: 256, ..DENSE },
        // Odd sizes.
        Spec { n: 1, h: 1, w: 1, c: 1, k: 1, ..pointwise },
        Spec { n: 5, h: 13, w: 11, c: 17, k: 19, ..DENSE },
        Spec { n: 3, h: 5, w: 5, c: 2, k: 3, kernel: [1, 1], padding: [1, 1], ..DENSE },
        Spec { n: 1, h: 2, w: 2, c: 3, k: 5, kernel: [5, 5], padding: [2, 2], ..DENSE },
        Spec { n: 2, h: 9, w: 9, c: 3, k: 5, kernel: [2, 2], stride: [3, 4], padding: [0, 0], ..DENSE },
        Spec { n: 2, h: 3, w: 12, c: 5, k: 4, kernel: [1, 7], padding: [0, 3], ..DENSE },
        Spec { n: 2, h: 3, w: 3, c: 2, k: 2, kernel: [3, 3], padding: [4, 4], ..DENSE },
    ];
    for (groups, stride, dilation, padding) in [1, 2, 8]
        .iter()
        .flat_map(|&g| [[1, 1], [2, 1], [3, 2]].map(|s| (g, s)))
        .flat_map(|(g, s)| [[1, 1], [2, 3]].map(|d| (g, s, d)))
        .flat_map(|(g, s, d)| [[0, 0], [2, 1]].map(|p| (g, s, d, p)))
    {
        specs.push(Spec { n: 2, h: 9, w: 10, c: 8, k: 16, groups, stride, dilation, padding, ..DENSE });
    }
    specs.push(Spec { n: 3, h: 6, w: 6, c: 40, k: 40, groups: 40, ..DENSE });
    specs.push(Spec { n: 2, h: 6, w: 6, c: 32, k: 64, groups: 4, ..pointwise });
    specs
}

pub(super) fn passes(bias: bool) -> [conv2d::Pass; 4] {
    use conv2d::Pass::{BwdBias, BwdW, BwdX};
    let backward = (BwdX(Default::default()), BwdW(Default::default()), BwdBias(Default::default()));
    [conv2d::Pass::fwd(bias), backward.0, backward.1, backward.2]
}

#[test]
fn conv2d_is_exact_on_integers_and_near_on_reals() {
    for spec in convolutions() {
        let conv = conv2d::Conv2d::new(spec).expect("a convolution");
        for pass in passes(spec.n % 2 == 0) {
            let op = Op::Conv2d(conv2d::Node { conv, pass });
            let name = format!("{spec:?} {pass:?}");
            check(&integers(&name, op.clone()), Bound::Exact);
            check(&normals(&name, op), Bound::Linear);
        }
    }
}

#[test]
fn a_conv2d_with_a_wrong_input_is_refused() {
    for spec in [conv2d::Spec { n: 64, h: 8, w: 8, c: 16, k: 16, ..DENSE }, DENSE] {
        let conv = conv2d::Conv2d::new(spec).expect("a convolution");
        for pass in passes(false) {
            let case = normals("control", Op::Conv2d(conv2d::Node { conv, pass }));
            for input in 0..case.inputs.len() {
                refuses(&case, Bound::Linear, input);
            }
        }
    }
}

#[test]
fn conv2d_epilogues() {
    for bits in 0..16 {
        let on = |bit: usize| bits & (1 << bit) != 0;
        let part = |i| on(i).then_some(());
        let epilogue = Epilogue { scale: part(0), shift: part(1), residual: part(2), relu: on(3) };
        let conv = conv2d::Conv2d::new(conv2d::Spec { groups: 2, n: 40, ..DENSE }).expect("a convolution");
        let op = Op::Conv2d(conv2d::Node { conv, pass: conv2d::Pass::Fwd(Fwd { epilogue, ..Fwd::default() }) });
        check(&integers(&format!("{epilogue:?}"), op.clone()), Bound::Exact);
        // A ReLU enlarges no error: the magnitudes before it bound it.
        check(&normals(&format!("{epilogue:?}"), op), Bound::Linear);
    }
}

#[test]
fn linear() {
    for (n, f, k) in [(64, 64, 10), (1, 1, 1), (3, 2048, 100), (17, 33, 5), (128, 512, 64)] {
        let linear = linear::Linear::new(linear::Spec { x: [n, 1, 1, f], k }).expect("a layer");
        use linear::Pass;
        let backward = [Pass::BwdX, Pass::BwdW, Pass::BwdBias].map(|pass| linear::Node { linear, pass });
        for node in [false, true].map(|bias| linear.fwd(bias)).into_iter().chain(backward) {
            let (op, name) = (Op::Linear(node), format!("{} {n} {f} {k}", node.name()));
            check(&integers(&name, op.clone()), Bound::Exact);
            check(&normals(&name, op), Bound::Linear);
        }
    }
    let image = linear::Linear::new(linear::Spec { x: [3, 2, 4, 5], k: 6 }).expect("a layer");
    check(&integers("linear of an image", Op::Linear(image.fwd(true))), Bound::Exact);
}

fn batch_norm(x: [usize; 4]) -> batch_norm::BatchNorm {
    batch_norm::BatchNorm::new(batch_norm::Spec { x, eps: 1e-5, momentum: 0.1 }).expect("a batch norm")
}

const BATCH_NORMS: [[usize; 4]; 7] =
    [[64, 8, 8, 16], [64, 2, 2, 64], [2, 1, 1, 3], [1, 2, 1, 1], [3, 5, 7, 130], [2, 33, 31, 20], [16, 32, 32, 8]];

#[test]
fn batch_norm_training() {
    for x in BATCH_NORMS {
        for relu in [false, true] {
            let name = format!("batch norm {x:?} {relu}");
            let at = Train::<()>::default().places();
            let mut case = normals(&name, Op::BatchNorm(batch_norm(x).train(relu).expect("a pass")));
            let mut random = Random::new(&name);
            case.updates = vec![Data::Real(random.normals(x[3], 0.0, 1.0)), Data::Real(random.reals(x[3], 0.5, 2.0))];
            // The mean is off by a few roundings of the largest element, which invstd multiplies.
            let largest = case.inputs[at.x].real().iter().fold(0.0f64, |a, b| a.max(b.abs()));
            let invstd = &reference(&case.op, &case.inputs, &case.updates)[at.invstd];
            let condition = largest * invstd.real().iter().fold(0.0f64, |a, &b| a.max(b));
            let bound = Bound::Relative(16.0 * (1.0 + condition));
            check(&case, bound);
            refuses(&case, bound, at.x);
        }
    }
}

#[test]
fn batch_norm_inference_and_fold() {
    for x in BATCH_NORMS {
        let (bn, infer, fold) = (batch_norm(x), Infer::<()>::default().places(), Fold::<()>::default().places());
        for (pass, variance, node) in [
            ("infer", infer.running_var, bn.infer(false)),
            ("infer with ReLU", infer.running_var, bn.infer(true)),
            ("fold", fold.running_var, bn.fold(false, 1.0)),
            ("fold with bias", fold.running_var, bn.fold(true, 0.75)),
        ] {
            let name = format!("batch norm {x:?} {pass}");
            let mut case = normals(&name, Op::BatchNorm(node));
            case.inputs[variance] = Data::Real(Random::new(&name).reals(x[3], 0.5, 2.0));
            check(&case, Bound::Relative(32.0));
        }
    }
}

#[test]
fn batch_norm_backward() {
    for x in BATCH_NORMS {
        for relu in [false, true] {
            let name = format!("batch norm backward {x:?} {relu}");
            let mut case = normals(&name, Op::BatchNorm(batch_norm(x).bwd(relu)));
            case.inputs[Bwd::<()>::default().places().invstd] = Data::Real(Random::new(&name).reals(x[3], 0.5, 2.0));
            // The sums' errors grow at most with the elements of a channel, but relative to the largest sum they stay
            // below a random walk's: 16 sqrt(m).
            let m = (x[0] * x[1] * x[2]) as f64;
            let bound = Bound::Relative(64.0 + 16.0 * m.sqrt());
            check(&case, bound);
            // With a ReLU the largest dy may be masked.
            if !relu {
                (0..case.inputs.len()).for_each(|input| refuses(&case, bound, input));
            }
        }
    }
}

#[test]
fn batch_norm_statistics_survive_a_large_mean() {
    let x = [8, 28, 28, 5];
    let mut case = normals("large mean", Op::BatchNorm(batch_norm(x).train(false).expect("a pass")));
    let at = Train::<()>::default().places();
    case.inputs[at.x] = Data::Real(Random::new("large mean").normals(x.iter().product(), 1000.0, 1.0));
    case.updates = vec![Data::Real(vec![0.0; 5]), Data::Real(vec![0.0; 5])];
    let case = rounded::<f32>(&case);
    let expected = reference(&case.op, &case.inputs, &case.updates);
    let got = host::<f32>(&case, Write::Overwrite);
    for (got, expected) in [at.invstd, at.running_var].map(|i| (got[i].data(), expected[i].clone())) {
        for (got, expected) in got.real().iter().zip(expected.real()) {
            assert!((got / expected - 1.0).abs() < 1e-3, "{got} and {expected}");
        }
    }
}

#[test]
fn elementwise() {
    for len in [1, 7, 4096, 100_003] {
        let shape = Shape::from([len]);
        let relu = |pass| Op::Relu(relu::Node { shape: shape.clone(), pass });
        for op in [
            relu(relu::Pass::Fwd),
            relu(relu::Pass::Bwd),
            Op::Sum(sum::Node::of(shape.clone())),
            Op::Sum(sum::Node { relu: true, ..sum::Node::of(shape.clone()) }),
        ] {
            check(&integers(&format!("elementwise {len}"), op.clone()), Bound::Exact);
        }
        let plain = sum::Node::of(shape.clone());
        let form = sum::Fwd { gate: Some(()), ..plain.form };
        let at = form.places();
        let mut gated = integers("gated", Op::Sum(sum::Node { form, relu: true, ..plain.clone() }));
        check(&gated, Bound::Exact);
        gated.inputs[at.b.value] = Data::Real(vec![f64::NAN; len]);
        gated.inputs[at.gate.unwrap()] = Data::Real(vec![0.0]);
        check(&gated, Bound::Exact);
        check(&integers("scaled", Op::Sum(sum::Node { share: 0.25, ..plain })), Bound::Exact);
    }
    let relu = Op::Relu(relu::Node { shape: [3].into(), pass: relu::Pass::Fwd });
    check(&case("nan", relu, |_, _| vec![f64::NAN, -1.0, 1.0]), Bound::Exact);
}

#[test]
fn pool() {
    use pool::{Fwd, Kind};
    for (window, kind) in crate::cases::pool::crossed() {
        for x in [[2, 7, 6, 3], [1, 3, 4, 1], [33, 8, 8, 64]] {
            let spec = pool::Spec { x, window, kind };
            let pool = pool::Pool::new(spec).expect("a pooling");
            let fwd = integers(&format!("{spec:?}"), Op::Pool(pool.fwd()));
            check(&fwd, Bound::Linear);
            let mut bwd = fwd;
            let y: usize = pool.y_shape().iter().product();
            let form: Fwd = Fwd { index: (kind == Kind::Max).then_some(()), ..Fwd::default() };
            let index = outputs(form, reference(&bwd.op, &bwd.inputs, &[])).index;
            bwd.op = Op::Pool(pool.bwd());
            bwd.inputs = vec![Data::Real(Random::new("dy").integers(y, -3, 3))];
            bwd.inputs.extend(index);
            check(&bwd, Bound::Linear);
        }
    }
}

#[test]
fn shortcut() {
    for (stride, lead, x) in [(1, 0, [2, 5, 4, 3]), (2, 2, [2, 5, 4, 3]), (2, 16, [64, 8, 8, 16])] {
        let spec = shortcut::Spec { x, k: 2 * x[3] + lead, stride, lead };
        let shortcut = shortcut::Shortcut::new(spec).expect("a shortcut");
        for pass in [shortcut::Pass::Fwd, shortcut::Pass::Bwd] {
            let op = Op::Shortcut(shortcut::Node { shortcut, pass });
            check(&integers(&format!("{spec:?} {pass:?}"), op), Bound::Exact);
        }
    }
}

#[test]
fn concat() {
    let spec = concat::Spec { pixels: [3, 50, 40], channels: vec![16, 12, 7] };
    let concat = concat::Concat::new(spec).expect("a concatenation");
    for pass in [concat::Pass::Fwd, concat::Pass::Bwd] {
        let op = Op::Concat(concat::Node { concat: concat.clone(), pass });
        check(&integers(&format!("concat {pass:?}"), op), Bound::Exact);
    }
}

#[test]
fn cross_entropy() {
    for (n, classes, smoothing) in [(64, 10, 0.1), (1, 1, 0.0), (7, 1000, 0.0)] {
        let spec = cross_entropy::Spec { n, classes, smoothing, grad_scale: 2.0 };
        let loss = cross_entropy::CrossEntropy::new(spec).expect("a loss");
        for pass in [cross_entropy::Pass::Fwd, cross_entropy::Pass::Bwd(Default::default())] {
            let mut random = Random::new("cross-entropy");
            let inputs =
                vec![Data::Real(random.normals(n * classes, 0.0, 3.0)), Data::Index(random.labels(n, classes))];
            let op = Op::CrossEntropy(cross_entropy::Node { loss, pass });
            let name = format!("{spec:?} {pass:?}");
            check(&Case { name, op, inputs, updates: Vec::new() }, Bound::Relative(1024.0));
        }
    }
}

#[test]
fn sgd_steps_as_torch_does() {
    let (lr, decay_end, len) = (0.5, 40_000, 70_001);
    let mut random = Random::new("sgd");
    let (start, grad) = (random.normals(len, 0.0, 1.0), random.normals(len, 0.0, 4.0));
    for (nesterov, momentum, dampening) in [(true, 0.9, 0.0), (false, 0.9, 0.1), (false, 0.0, 0.0), (false, 0.0, 0.5)] {
        let spec = sgd::Spec { momentum, dampening, nesterov, weight_decay: 0.25 };
        let optimizer = sgd::Sgd::new(spec).expect("an optimizer");
        let (mut param, mut velocity) = (start.clone(), vec![f64::NAN; len]);
        let (mut p, mut v) = (start.clone(), vec![0.0; len]);
        for first in [true, false, false] {
            let state = sgd::StepState { lr, grad_scale: 4.0, first };
            sgd::step(&optimizer, state, decay_end, &mut param, &grad, &mut velocity);
            for i in 0..len {
                let g = grad[i] / 4.0 + if i < decay_end { 0.25 * p[i] } else { 0.0 };
                v[i] = if first || momentum == 0.0 { g } else { momentum * v[i] + (1.0 - dampening) * g };
                p[i] -= lr * if nesterov { g + momentum * v[i] } else { v[i] };
            }
        }
        assert!(param == p && velocity == v, "{spec:?}");
    }
}
