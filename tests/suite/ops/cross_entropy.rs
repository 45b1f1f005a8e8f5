//! The loss: bounded; the number of right answers is exact.

use residuum::ops::cross_entropy::{Bwd, CrossEntropy, Fwd, Node, Pass, Spec};
use residuum::ops::{Call, Op};

use crate::bounds;
use crate::cases::cross_entropy::CASES;
use crate::harness::{check, check_refused, check_refused_with, Case, Compare, Data, Random, Sweep, DTYPES};
use crate::host::results;
use crate::named::{outputs, rules};

fn op(spec: Spec, pass: Pass) -> Op {
    Op::CrossEntropy(Node { loss: CrossEntropy::new(spec).unwrap(), pass })
}

/// The backward pass with a loss scale in memory.
const SCALED: Bwd = Bwd { logits: (), labels: (), loss_scale: Some(()), dlogits: () };

fn inputs(name: &str, spec: &Spec) -> Vec<Data> {
    let mut random = Random::new(name);
    let mut logits = random.normals(spec.n * spec.classes, 0.0, 3.0);
    // Equal largest logits: the first counts.
    if spec.classes > 2 {
        (logits[0], logits[2]) = (40.0, 40.0);
    }
    let mut labels = random.labels(spec.n, spec.classes);
    labels[0] = 0;
    vec![Data::Real(logits), Data::Index(labels)]
}

/// The largest distance between two logits of an image.
fn range(logits: &Data, classes: usize) -> f64 {
    let of = |row: &[f64]| {
        let (low, high) = row.iter().fold((f64::MAX, f64::MIN), |(a, b), &v| (a.min(v), b.max(v)));
        high - low
    };
    logits.real().chunks(classes).map(of).fold(0.0, f64::max)
}

fn fwd(spec: Spec) -> Case {
    let name = format!("cross_entropy fwd {spec:?}");
    let inputs = inputs(&name, &spec);
    Case::bounded(name, op(spec, Pass::Fwd), inputs, move |j| {
        let Fwd { logits, .. } = <Fwd>::default().with(j.inputs, j.outputs);
        let range = range(logits, spec.classes);
        let largest = range + (spec.classes as f64).ln();
        let bound = bounds::mean_loss(spec.n, largest, bounds::image_loss(spec.classes, range));
        vec![Compare::Within(vec![bound]), Compare::Exact]
    })
}

fn bwd(spec: Spec) -> Case {
    let name = format!("cross_entropy bwd {spec:?}");
    let inputs = inputs(&name, &spec);
    bounded_bwd(name, spec, Bwd::default(), inputs)
}

fn scaled_bwd(spec: Spec, loss_scale: f64) -> Case {
    let name = format!("cross_entropy bwd {spec:?} loss scale {loss_scale}");
    let mut inputs = inputs(&name, &spec);
    inputs.push(Data::Real(vec![loss_scale]));
    bounded_bwd(name, spec, SCALED, inputs)
}

fn bounded_bwd(name: String, spec: Spec, form: Bwd, inputs: Vec<Data>) -> Case {
    Case::bounded(name, op(spec, Pass::Bwd(form)), inputs, move |j| {
        let Bwd { logits, labels, loss_scale, dlogits } = form.with(j.inputs, j.outputs);
        let loss_scale = loss_scale.map_or(1.0, |scale| scale.real()[0]);
        let (range, scale) = (range(logits, spec.classes), loss_scale * spec.grad_scale / spec.n as f64);
        let bound = dlogits.real().iter().enumerate().map(|(i, d)| {
            let right = label(labels, i / spec.classes) == i % spec.classes;
            let target = spec.smoothing / spec.classes as f64 + if right { 1.0 - spec.smoothing } else { 0.0 };
            bounds::logit_gradient(spec.classes, range, scale, d / scale + target, target)
        });
        vec![Compare::Within(bound.collect())]
    })
}

fn label(labels: &Data, image: usize) -> usize {
    match labels {
        Data::Index(v) => v[image] as usize,
        _ => unreachable!(),
    }
}

#[test]
fn forward() {
    CASES.iter().for_each(|&spec| check(&fwd(spec), Sweep::Schedules));
}

#[test]
fn backward() {
    CASES.iter().for_each(|&spec| check(&bwd(spec), Sweep::Schedules));
}

#[test]
fn the_loss_scale_is_read_from_memory() {
    for &spec in CASES {
        check(&scaled_bwd(spec, 16.0), Sweep::Schedules);
    }
    let case = scaled_bwd(CASES[1], 16.0);
    check_refused_with(&case, SCALED.places().loss_scale.unwrap(), |scale| scale.fill(32.0));
}

#[test]
fn a_wrong_label_is_found() {
    for &spec in CASES.iter().filter(|s| s.classes > 1) {
        for case in [fwd(spec), bwd(spec)] {
            let mut wrong = case.inputs.clone();
            let Data::Index(labels) = &mut wrong[SCALED.places().labels] else { unreachable!() };
            let last = labels.len() - 1;
            labels[last] = (labels[last] + 1) % spec.classes as i32;
            check_refused(&case, &wrong, &DTYPES);
        }
    }
}

/// A lost term of a sum over classes is found.
#[test]
fn a_lost_class_is_found() {
    let spec = Spec { n: 1, classes: 300, smoothing: 0.1, grad_scale: 1.0 };
    for mut case in [fwd(spec), bwd(spec)] {
        let at = SCALED.places().logits;
        case.inputs[at] = Data::Real(Random::new("lost class").normals(300, 0.0, 1.0));
        check_refused_with(&case, at, |logits| logits[299] -= 20.0);
    }
}

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

/// Logits of one image whose label is 0, the smoothing, and torch 2.11's results on the CPU: the loss and its gradient.
const NON_FINITE: &[([f64; 3], f64, f64, [f64; 3])] = &[
    ([1.0, -INF, 2.0], 0.0, 1.313_262, [-0.731_059, 0.0, 0.731_059]),
    ([1.0, -INF, 2.0], 0.1, INF, [-0.664_392, -0.033_333, 0.697_725]),
    ([-INF, 1.0, 2.0], 0.0, INF, [-1.0, 0.268_941, 0.731_059]),
    ([-INF, 1.0, 2.0], 0.1, INF, [-0.933_333, 0.235_608, 0.697_725]),
    ([1.0, -INF, -INF], 0.0, 0.0, [0.0; 3]),
    ([1.0, -INF, -INF], 0.1, INF, [0.066_667, -0.033_333, -0.033_333]),
    ([-INF; 3], 0.0, NAN, [NAN; 3]),
    ([-INF; 3], 0.1, NAN, [NAN; 3]),
    ([1.0, INF, 2.0], 0.0, NAN, [NAN; 3]),
    ([INF, 1.0, 2.0], 0.0, NAN, [NAN; 3]),
    ([INF, INF, 1.0], 0.1, NAN, [NAN; 3]),
    ([1.0, INF, -INF], 0.0, NAN, [NAN; 3]),
    ([1.0, NAN, 2.0], 0.0, NAN, [NAN; 3]),
    ([NAN, 1.0, 2.0], 0.1, NAN, [NAN; 3]),
    ([1.0, -INF, NAN], 0.0, NAN, [NAN; 3]),
];

/// The loss or its gradient.
fn result(pass: Pass, found: Vec<Data>) -> Data {
    match pass {
        Pass::Fwd => outputs(<Fwd>::default(), found).loss,
        Pass::Bwd(form) => outputs(form, found).dlogits,
    }
}

/// Kernels, reference and host agree with torch.
#[test]
fn non_finite_logits_are_torchs() {
    for &(logits, smoothing, loss, gradient) in NON_FINITE {
        let spec = Spec { n: 1, classes: 3, smoothing, grad_scale: 1.0 };
        let inputs = vec![Data::Real(logits.into()), Data::Index(vec![0])];
        let near =
            |found: f64, want: f64| found == want || (found.is_nan() && want.is_nan()) || (found - want).abs() < 1e-5;
        for pass in [Pass::Fwd, Pass::Bwd(Bwd::default())] {
            let op = op(spec, pass);
            let want = if pass == Pass::Fwd { vec![loss] } else { gradient.into() };
            for found in results(&op, &inputs).map(|found| result(pass, found)) {
                let same = found.real().iter().zip(&want).all(|(&a, &b)| near(a, b));
                assert!(same, "{pass:?} of {logits:?}, smoothing {smoothing}: {found:?}, torch {want:?}");
            }
            let name = format!("cross_entropy {pass:?} of {logits:?} smoothing {smoothing}");
            let case = Case::bounded(name, op, inputs.clone(), move |j| {
                let off = |want: &f64| if want.is_finite() { 1e-5 } else { 0.0 };
                let within = Compare::Within(result(pass, j.outputs.into()).real().iter().map(off).collect());
                match pass {
                    Pass::Fwd => rules(Fwd { logits: (), labels: (), loss: within, correct: Compare::Exact }),
                    Pass::Bwd(_) => vec![within],
                }
            });
            check(&case, Sweep::Schedules);
        }
    }
}

/// An image with a NaN among its logits is never right, wherever the NaN is, and whichever thread finds it.
#[test]
fn an_image_with_a_nan_is_never_right() {
    for classes in [3, 300] {
        let spec = Spec { n: 4, classes, smoothing: 0.0, grad_scale: 1.0 };
        let last = classes - 1;
        // The label's logit is the largest in every image; the first has no NaN.
        let labels = [0, last, 0, last];
        let mut logits = vec![0.0; 4 * classes];
        labels.iter().enumerate().for_each(|(i, label)| logits[i * classes + label] = 9.0);
        for (image, class) in [(1, 0), (2, 0), (3, last - 1)] {
            logits[image * classes + class] = NAN;
        }
        let labels = labels.iter().map(|&l| l as i32).collect();
        let inputs = vec![Data::Real(logits), Data::Index(labels)];
        let op = op(spec, Pass::Fwd);
        for found in results(&op, &inputs) {
            assert_eq!(outputs(<Fwd>::default(), found).correct, Data::Real(vec![1.0]));
        }
        check(&Case::exact(format!("cross_entropy correct of {classes}"), op, inputs), Sweep::Schedules);
    }
}
