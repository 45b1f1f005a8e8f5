//! Batch norm: exact if statistics and scales are powers of two, else bounded.

use residuum::ops::batch_norm::{BatchNorm, Bwd, Fold, Infer, Node, Spec, Train};
use residuum::ops::{Call, Op};
use residuum::tensor::DType;

use crate::bounds::{self, Channel};
use crate::cases::batch_norm::{EXACT_SHAPES, SHAPES};
use crate::harness::{check, check_refused_with, Case, Compare, Data, Judged, Random, Sweep};
use crate::host::results;
use crate::named::{inputs, rules};

const ANY: f64 = f64::INFINITY;

fn op(x: [usize; 4], eps: f64, momentum: f64, pass: impl Fn(BatchNorm) -> Node) -> Op {
    Op::BatchNorm(pass(BatchNorm::new(Spec { x, eps, momentum }).unwrap()))
}

fn train(relu: bool) -> impl Fn(BatchNorm) -> Node {
    move |bn| bn.train(relu).unwrap()
}

fn elements(shape: [usize; 4]) -> (usize, usize, usize) {
    let len = shape.iter().product();
    (len, len / shape[3], shape[3])
}

/// For every channel a quarter of the elements 3 below the mean and the others 1 above it: variance 3.
pub fn exact_input(random: &mut Random, shape: [usize; 4]) -> Vec<f64> {
    let (len, rows, channels) = elements(shape);
    let mut x = vec![0.0; len];
    for c in 0..channels {
        let mean = random.below(9) as f64 - 4.0;
        let mut column: Vec<f64> = (0..rows).map(|i| if i % 4 == 0 { mean - 3.0 } else { mean + 1.0 }).collect();
        for i in (1..rows).rev() {
            column.swap(i, random.below(i + 1));
        }
        (0..rows).for_each(|i| x[i * channels + c] = column[i]);
    }
    x
}

pub fn powers(random: &mut Random, len: usize) -> Vec<f64> {
    (0..len).map(|_| [0.25, 0.5, 1.0, 2.0, -1.0][random.below(5)]).collect()
}

#[test]
fn training_exact() {
    for &shape in EXACT_SHAPES {
        let (_, rows, channels) = elements(shape);
        for relu in [false, true] {
            let name = format!("batch_norm train exact {shape:?} relu {relu}");
            let mut random = Random::new(&name);
            let x = exact_input(&mut random, shape);
            let (gamma, beta) = (powers(&mut random, channels), random.integers(channels, -3, 3));
            let updates = [-3, 0].map(|low| Data::Real(random.integers(channels, low, 7)));
            let unbiased = 3.0 * rows as f64 / (rows as f64 - 1.0);
            let judge = move |j: &Judged<'_>| {
                let running_var = j.numbers(Train::default()).running_var;
                let within = running_var.iter().map(|_| bounds::moved(7.0, unbiased, 0.5, 0.0)).collect();
                let exact = Train::default().map(|_, ()| (), |_, ()| Compare::Exact);
                rules(Train { running_var: Compare::Within(within), ..exact })
            };
            let inputs = inputs(Train { x, gamma, beta, ..Default::default() });
            let case = Case::bounded(name, op(shape, 1.0, 0.5, train(relu)), inputs, judge);
            check(&case.updating(updates.into()).sliced(), Sweep::Schedules);
        }
    }
}

#[test]
fn inference_and_folding_exact() {
    for &shape in SHAPES {
        let (len, _, channels) = elements(shape);
        let mut random = Random::new(&format!("batch_norm infer {shape:?}"));
        let x = random.integers(len, -20, 20);
        let running_var = (0..channels).map(|_| [3.75, 0.75, 15.75][random.below(3)]).collect();
        let (gamma, beta) = (powers(&mut random, channels), random.integers(channels, -9, 9));
        let running_mean = random.integers(channels, -4, 4);
        let bias = random.integers(channels, -9, 9);
        let infer = Infer { x, gamma, beta, running_mean, running_var, ..Default::default() };
        for relu in [false, true] {
            let inputs = inputs(infer.clone());
            let op = op(shape, 0.25, 0.1, |bn| bn.infer(relu));
            check(
                &Case::exact(format!("batch_norm infer {shape:?} relu {relu}"), op, inputs).sliced(),
                Sweep::Schedules,
            );
        }
        for (with, share) in [(false, 1.0), (true, 1.0), (false, 0.5), (true, 0.25)] {
            let Infer { gamma, beta, running_mean, running_var, .. } = infer.clone();
            let bias = with.then(|| bias.clone());
            let inputs = inputs(Fold { gamma, beta, running_mean, running_var, bias, ..Default::default() });
            let op = op(shape, 0.25, 0.1, |bn| bn.fold(with, share));
            let name = format!("batch_norm fold {shape:?} bias {with} share {share}");
            check(&Case::exact(name, op, inputs), Sweep::Schedules);
        }
    }
}

#[test]
fn backward_exact() {
    for &shape in EXACT_SHAPES {
        let (len, _, channels) = elements(shape);
        for relu in [false, true] {
            let name = format!("batch_norm bwd exact {shape:?} relu {relu}");
            let mut random = Random::new(&name);
            let (dy, x) = (random.integers(len, -2, 2), random.integers(len, -2, 2));
            let gamma = powers(&mut random, channels);
            let mean = random.integers(channels, -1, 1);
            let invstd = (0..channels).map(|_| [0.5, 1.0, 2.0][random.below(3)]).collect();
            let y = relu.then(|| random.integers(len, -1, 1));
            let inputs = inputs(Bwd { dy, x, gamma, mean, invstd, y, ..Default::default() });
            check(&Case::exact(name, op(shape, 1e-5, 0.1, |bn| bn.bwd(relu)), inputs).sliced(), Sweep::Schedules);
        }
    }
}

/// As in torch, dy passes a ReLU whose output is NaN.
#[test]
fn a_nan_does_not_close_the_relu() {
    let op = op([1, 1, 4, 1], 1e-5, 0.1, |bn| bn.bwd(true));
    let (dy, y) = (vec![1.0, 2.0, 4.0, 8.0], Some(vec![f64::NAN, 1.0, 0.0, -1.0]));
    let (x, gamma, mean, invstd) = (vec![1.0, -1.0, 0.0, 0.0], vec![1.0], vec![0.0], vec![1.0]);
    let inputs = inputs(Bwd { dy, x, gamma, mean, invstd, y, ..Default::default() });
    let form: Bwd = Bwd { y: Some(()), ..Bwd::default() };
    for found in results(&op, &inputs) {
        assert_eq!(form.with(&inputs, &found).dbeta, &Data::Real(vec![3.0]));
    }
    check(&Case::exact("batch_norm bwd of NaN", op, inputs), Sweep::Schedules);
}

pub fn channels_of(x: &[f64], channels: usize) -> Vec<Channel> {
    (0..channels)
        .map(|c| {
            let column = || x.iter().skip(c).step_by(channels);
            let rows = x.len() / channels;
            let mean = column().sum::<f64>() / rows as f64;
            let var = column().map(|v| (v - mean).powi(2)).sum::<f64>() / rows as f64;
            Channel { rows, mean, spread: column().map(|v| (v - mean).abs()).fold(0.0, f64::max), var }
        })
        .collect()
}

const EPS: f64 = 1e-5;

fn judge_training(j: &Judged<'_>, momentum: f64) -> Train<(), Compare> {
    let Train { x, gamma, beta, running_mean, running_var, .. } = j.numbers(Train::default());
    let all = channels_of(x, gamma.len());
    let off: Vec<_> = all.iter().map(|c| (c.mean_bound(), c.invstd_bound(EPS))).collect();
    let y = x.iter().enumerate().map(|(i, &x)| {
        let k = i % all.len();
        let channel = (all[k].mean, 1.0 / (all[k].var + EPS).sqrt());
        bounds::normalised(x, channel, gamma[k], beta[k], off[k])
    });
    let means = all
        .iter()
        .zip(running_mean)
        .map(|(c, &r)| bounds::moved((r - momentum * c.mean) / (1.0 - momentum), c.mean, momentum, c.mean_bound()));
    let vars = all.iter().zip(running_var).map(|(c, &r)| {
        let more = c.rows as f64 / (c.rows as f64 - 1.0);
        bounds::moved((r - momentum * c.var * more) / (1.0 - momentum), c.var * more, momentum, c.var_bound() * more)
    });
    let (mean, invstd): (Vec<f64>, Vec<f64>) = off.iter().copied().unzip();
    let (running_mean, running_var) = (means.collect(), vars.collect());
    let within = Train { x: (), gamma: (), beta: (), y: y.collect(), mean, invstd, running_mean, running_var };
    within.map(|_, ()| (), |_, off| Compare::Within(off))
}

fn training_case(shape: [usize; 4], relu: bool, mean: f64, deviation: f64) -> Case {
    let (len, _, channels) = elements(shape);
    let name = format!("batch_norm train {shape:?} relu {relu} mean {mean} deviation {deviation}");
    let mut random = Random::new(&name);
    let x = random.normals(len, mean, deviation);
    let (gamma, beta) = (random.reals(channels, 0.5, 1.5), random.reals(channels, -1.0, 1.0));
    let inputs = inputs(Train { x, gamma, beta, ..Default::default() });
    let updates = [random.reals(channels, -1.0, 1.0), random.reals(channels, 0.5, 2.0)].map(Data::Real);
    let op = op(shape, EPS, 0.1, train(relu));
    Case::bounded(name, op, inputs, |j| rules(judge_training(j, 0.1))).updating(updates.into()).sliced()
}

#[test]
fn training_bounded() {
    for (i, &shape) in SHAPES.iter().enumerate() {
        check(&training_case(shape, i % 2 == 0, 0.0, 1.0), Sweep::Schedules);
        check(&training_case(shape, i % 2 == 1, 3.0, 0.5), Sweep::Schedules);
    }
}

/// Sets the last pixel to 0.
pub fn last_pixel_lost(channels: usize) -> impl FnOnce(&mut [f64]) {
    move |x| x.rchunks_mut(channels).next().expect("a pixel").fill(0.0)
}

/// A lost row is found in the statistics, the only outputs that are judged.
#[test]
fn a_lost_row_is_found() {
    for &shape in &SHAPES[2..6] {
        let mut case = training_case(shape, false, 0.0, 1.0);
        case.judge = Box::new(move |j| {
            let y = Compare::Within(vec![ANY; shape.iter().product()]);
            rules(Train { y, ..judge_training(j, 0.1) })
        });
        check_refused_with(&case, Train::<()>::default().places().x, last_pixel_lost(shape[3]));
    }
}

/// A mean 1,000 times the deviation still gives the variance to 1e-3, in every type.
#[test]
fn a_mean_far_from_zero() {
    for shape in [[11, 10, 10, 16], [1, 61, 67, 3]] {
        let (len, rows, channels) = elements(shape);
        let name = format!("batch_norm train far {shape:?}");
        let mut random = Random::new(&name);
        let x = random.normals(len, 1000.0, 1.0);
        let (gamma, beta) = (vec![1.0; channels], vec![0.0; channels]);
        let inputs = inputs(Train { x, gamma, beta, ..Default::default() });
        let updates = [vec![0.0; channels], vec![0.0; channels]].map(Data::Real);
        let judge = move |j: &Judged<'_>| {
            let found = j.numbers(Train::default());
            let within = |v: &[f64], bound: fn(f64) -> f64| Compare::Within(v.iter().map(|&v| bound(v)).collect());
            let mean = within(found.mean, |m| 8.0 * bounds::U * m);
            rules(Train {
                x: (),
                gamma: (),
                beta: (),
                y: within(found.y, |y| 2e-3 * (1.0 + y.abs())),
                mean: mean.clone(),
                invstd: within(found.invstd, |s| 0.5e-3 * s),
                running_mean: mean,
                running_var: within(found.running_var, |v| 1e-3 * v),
            })
        };
        assert!(rows > 1000);
        let op = op(shape, EPS, 1.0, train(false));
        check(&Case::bounded(name, op, inputs, judge).updating(updates.into()), Sweep::Schedules);
    }
}

fn judge_backward(j: &Judged<'_>, form: Bwd) -> Bwd<(), Compare> {
    let Bwd { dy, x, gamma, mean, invstd, y, dgamma, dbeta, .. } = j.numbers(form);
    let (channels, rows) = (gamma.len(), x.len() / gamma.len());
    let m = rows as f64;
    let open = |i: usize| if y.is_none_or(|y| y[i] > 0.0) { dy[i].abs() } else { 0.0 };
    let (mut beta_off, mut gamma_off) = (vec![0.0; channels], vec![0.0; channels]);
    for i in 0..x.len() {
        beta_off[i % channels] += open(i);
        gamma_off[i % channels] += open(i) * (x[i] - mean[i % channels]).abs() * invstd[i % channels];
    }
    beta_off.iter_mut().for_each(|v| *v = bounds::channel_sum(rows, 0, *v));
    gamma_off.iter_mut().for_each(|v| *v = bounds::channel_sum(rows, 3, *v));
    let dx = Compare::Within(
        (0..x.len())
            .map(|i| {
                let k = i % channels;
                let xhat = ((x[i] - mean[k]) * invstd[k]).abs();
                let exact = open(i) + dbeta[k].abs() / m + xhat * dgamma[k].abs() / m;
                (gamma[k] * invstd[k]).abs() * (8.0 * bounds::U * exact + beta_off[k] / m + xhat * gamma_off[k] / m)
            })
            .collect(),
    );
    let (dgamma, dbeta) = (Compare::Within(gamma_off), Compare::Within(beta_off));
    let Bwd { dy, x, gamma, mean, invstd, y, .. } = form;
    Bwd { dy, x, gamma, mean, invstd, y, dx, dgamma, dbeta }
}

fn form(relu: bool) -> Bwd {
    Bwd { y: relu.then_some(()), ..Bwd::default() }
}

fn backward_case(shape: [usize; 4], relu: bool) -> Case {
    let (len, _, channels) = elements(shape);
    let name = format!("batch_norm bwd {shape:?} relu {relu}");
    let mut random = Random::new(&name);
    let call = Bwd {
        dy: random.normals(len, 0.1, 1.0),
        x: random.normals(len, 1.0, 2.0),
        gamma: random.reals(channels, -1.5, 1.5),
        mean: random.reals(channels, 0.5, 1.5),
        invstd: random.reals(channels, 0.3, 0.8),
        y: relu.then(|| random.normals(len, 0.0, 1.0)),
        ..Default::default()
    };
    let op = op(shape, EPS, 0.1, |bn| bn.bwd(relu));
    Case::bounded(name, op, inputs(call), move |j| rules(judge_backward(j, form(relu)))).sliced()
}

#[test]
fn backward_bounded() {
    for (i, &shape) in SHAPES.iter().enumerate() {
        check(&backward_case(shape, i % 2 == 0), Sweep::Schedules);
    }
    check(&backward_case(SHAPES[4], false), Sweep::Schedules);
}

#[test]
fn a_lost_row_of_the_gradient_is_found() {
    for &shape in &SHAPES[2..6] {
        let mut case = backward_case(shape, false);
        case.judge = Box::new(move |j| {
            let dx = Compare::Within(vec![ANY; shape.iter().product()]);
            rules(Bwd { dx, ..judge_backward(j, form(false)) })
        });
        check_refused_with(&case, form(false).places().dy, last_pixel_lost(shape[3]));
    }
}

#[test]
fn no_kernel_for_f64() {
    use residuum::device::{Arch, Target};
    let Op::BatchNorm(node) = op([2, 2, 2, 4], EPS, 0.1, train(false)) else { unreachable!() };
    let target = Target { arch: Arch::Sm80, dtype: DType::F64 };
    let io = residuum::ops::Io { inputs: &[], outputs: &[], scratch: None };
    let error = residuum::ops::Operator::launches(&node, target, &io).unwrap_err().to_string();
    assert!(error.contains("batch_norm_train") && error.contains("0 inputs bound, expected 3"), "{error}");
}
