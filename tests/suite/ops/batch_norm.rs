//! Batch norm: exact where statistics and scales are powers of two, else bounded.

use residuum::ops::batch_norm::{BatchNorm, Node, Pass, Spec};
use residuum::ops::Op;
use residuum::tensor::DType;

use crate::bounds::{self, Channel};
use crate::cases::batch_norm::{EXACT_SHAPES, SHAPES};
use crate::harness::{check, check_refused, reference, Case, Compare, Data, Judged, Random, Sweep, DTYPES};
use crate::host::outputs;

const ANY: f64 = f64::INFINITY;

fn op(x: [usize; 4], eps: f64, momentum: f64, pass: Pass) -> Op {
    Op::BatchNorm(Node { bn: BatchNorm::new(Spec { x, eps, momentum }).unwrap(), pass })
}

fn elements(shape: [usize; 4]) -> (usize, usize, usize) {
    let len = shape.iter().product();
    (len, len / shape[3], shape[3])
}

/// For every channel a quarter of elements 3 below its mean and the others 1 above: variance 3.
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
            let inputs = vec![x, powers(&mut random, channels), random.integers(channels, -3, 3)];
            let updates = [-3, 0].map(|low| Data::Real(random.integers(channels, low, 7)));
            let unbiased = 3.0 * rows as f64 / (rows as f64 - 1.0);
            let judge = move |j: &Judged<'_>| {
                let running_var = j.outputs[4].real().iter().map(|_| bounds::moved(7.0, unbiased, 0.5, 0.0)).collect();
                [vec![Compare::Exact; 4], vec![Compare::Within(running_var)]].concat()
            };
            let inputs = inputs.into_iter().map(Data::Real).collect();
            let case = Case::bounded(name, op(shape, 1.0, 0.5, Pass::Train { relu }), inputs, judge);
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
        let var = (0..channels).map(|_| [3.75, 0.75, 15.75][random.below(3)]).collect();
        let numbers = vec![
            powers(&mut random, channels),
            random.integers(channels, -9, 9),
            random.integers(channels, -4, 4),
            var,
        ];
        let bias = random.integers(channels, -9, 9);
        let data = |tensors: Vec<Vec<f64>>| tensors.into_iter().map(Data::Real).collect::<Vec<_>>();
        for relu in [false, true] {
            let inputs = data([vec![x.clone()], numbers.clone()].concat());
            let op = op(shape, 0.25, 0.1, Pass::Infer { relu });
            check(
                &Case::exact(format!("batch_norm infer {shape:?} relu {relu}"), op, inputs).sliced(),
                Sweep::Schedules,
            );
        }
        for (with, share) in [(false, 1.0), (true, 1.0), (false, 0.5), (true, 0.25)] {
            let mut inputs = numbers.clone();
            inputs.extend(with.then(|| bias.clone()));
            let op = op(shape, 0.25, 0.1, Pass::Fold { bias: with, share });
            let name = format!("batch_norm fold {shape:?} bias {with} share {share}");
            check(&Case::exact(name, op, data(inputs)), Sweep::Schedules);
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
            let mut inputs = vec![dy, x, gamma, mean, invstd];
            inputs.extend(relu.then(|| random.integers(len, -1, 1)));
            let inputs = inputs.into_iter().map(Data::Real).collect();
            check(&Case::exact(name, op(shape, 1e-5, 0.1, Pass::Bwd { relu }), inputs).sliced(), Sweep::Schedules);
        }
    }
}

/// As torch: dy passes a ReLU that left NaN.
#[test]
fn a_nan_does_not_close_the_relu() {
    let op = op([1, 1, 4, 1], 1e-5, 0.1, Pass::Bwd { relu: true });
    let (dy, y) = (vec![1.0, 2.0, 4.0, 8.0], vec![f64::NAN, 1.0, 0.0, -1.0]);
    let inputs = [dy, vec![1.0, -1.0, 0.0, 0.0], vec![1.0], vec![0.0], vec![1.0], y].map(Data::Real).to_vec();
    let dbeta = Data::Real(vec![3.0]);
    assert_eq!(reference(&op, &inputs, &[])[2], dbeta);
    assert_eq!(outputs::<f32>(&op, &inputs, &[])[2], dbeta);
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

fn judge_training(j: &Judged<'_>, momentum: f64) -> Vec<Compare> {
    let [x, gamma, beta] = [0, 1, 2].map(|i| j.inputs[i].real());
    let [running_mean, running_var] = [3, 4].map(|i| j.outputs[i].real());
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
    [y.collect(), mean, invstd, means.collect(), vars.collect()].map(Compare::Within).into()
}

fn training_case(shape: [usize; 4], relu: bool, mean: f64, deviation: f64) -> Case {
    let (len, _, channels) = elements(shape);
    let name = format!("batch_norm train {shape:?} relu {relu} mean {mean} deviation {deviation}");
    let mut random = Random::new(&name);
    let x = random.normals(len, mean, deviation);
    let inputs = [x, random.reals(channels, 0.5, 1.5), random.reals(channels, -1.0, 1.0)].map(Data::Real);
    let updates = [random.reals(channels, -1.0, 1.0), random.reals(channels, 0.5, 2.0)].map(Data::Real);
    let op = op(shape, EPS, 0.1, Pass::Train { relu });
    Case::bounded(name, op, inputs.into(), |j| judge_training(j, 0.1)).updating(updates.into()).sliced()
}

#[test]
fn training_bounded() {
    for (i, &shape) in SHAPES.iter().enumerate() {
        check(&training_case(shape, i % 2 == 0, 0.0, 1.0), Sweep::Schedules);
        check(&training_case(shape, i % 2 == 1, 3.0, 0.5), Sweep::Schedules);
    }
}

/// A row more or less in the statistics is found: the judged outputs are the statistics alone.
#[test]
fn a_lost_row_is_found() {
    for &shape in &SHAPES[2..6] {
        let mut case = training_case(shape, false, 0.0, 1.0);
        case.judge = Box::new(|j| {
            let mut rules = judge_training(j, 0.1);
            rules[0] = Compare::Within(vec![ANY; j.inputs[0].real().len()]);
            rules
        });
        let mut wrong = case.inputs.clone();
        let Data::Real(x) = &mut wrong[0] else { unreachable!() };
        let last = x.len() - shape[3]..;
        x[last].fill(0.0);
        check_refused(&case, &wrong, &DTYPES);
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
        let inputs = [x, vec![1.0; channels], vec![0.0; channels]].map(Data::Real);
        let updates = [vec![0.0; channels], vec![0.0; channels]].map(Data::Real);
        let judge = move |j: &Judged<'_>| {
            let (mean, var) = (j.outputs[1].real(), j.outputs[4].real());
            let invstd = j.outputs[2].real();
            vec![
                Compare::Within(j.outputs[0].real().iter().map(|y| 2e-3 * (1.0 + y.abs())).collect()),
                Compare::Within(mean.iter().map(|m| 8.0 * bounds::U * m).collect()),
                Compare::Within(invstd.iter().map(|s| 0.5e-3 * s).collect()),
                Compare::Within(mean.iter().map(|m| 8.0 * bounds::U * m).collect()),
                Compare::Within(var.iter().map(|v| 1e-3 * v).collect()),
            ]
        };
        assert!(rows > 1000);
        let op = op(shape, EPS, 1.0, Pass::Train { relu: false });
        check(&Case::bounded(name, op, inputs.into(), judge).updating(updates.into()), Sweep::Schedules);
    }
}

fn judge_backward(j: &Judged<'_>, relu: bool) -> Vec<Compare> {
    let [dy, x, gamma, mean, invstd] = [0, 1, 2, 3, 4].map(|i| j.inputs[i].real());
    let [_, dgamma, dbeta] = [0, 1, 2].map(|i| j.outputs[i].real());
    let (channels, rows) = (gamma.len(), x.len() / gamma.len());
    let m = rows as f64;
    let open = |i: usize| if !relu || j.inputs[5].real()[i] > 0.0 { dy[i].abs() } else { 0.0 };
    let (mut beta_off, mut gamma_off) = (vec![0.0; channels], vec![0.0; channels]);
    for i in 0..x.len() {
        beta_off[i % channels] += open(i);
        gamma_off[i % channels] += open(i) * (x[i] - mean[i % channels]).abs() * invstd[i % channels];
    }
    beta_off.iter_mut().for_each(|v| *v = bounds::channel_sum(rows, 0, *v));
    gamma_off.iter_mut().for_each(|v| *v = bounds::channel_sum(rows, 3, *v));
    let dx = (0..x.len()).map(|i| {
        let k = i % channels;
        let xhat = ((x[i] - mean[k]) * invstd[k]).abs();
        let exact = open(i) + dbeta[k].abs() / m + xhat * dgamma[k].abs() / m;
        (gamma[k] * invstd[k]).abs() * (8.0 * bounds::U * exact + beta_off[k] / m + xhat * gamma_off[k] / m)
    });
    [dx.collect(), gamma_off.clone(), beta_off.clone()].map(Compare::Within).into()
}

fn backward_case(shape: [usize; 4], relu: bool) -> Case {
    let (len, _, channels) = elements(shape);
    let name = format!("batch_norm bwd {shape:?} relu {relu}");
    let mut random = Random::new(&name);
    let mut inputs = vec![
        random.normals(len, 0.1, 1.0),
        random.normals(len, 1.0, 2.0),
        random.reals(channels, -1.5, 1.5),
        random.reals(channels, 0.5, 1.5),
        random.reals(channels, 0.3, 0.8),
    ];
    inputs.extend(relu.then(|| random.normals(len, 0.0, 1.0)));
    let inputs = inputs.into_iter().map(Data::Real).collect();
    let op = op(shape, EPS, 0.1, Pass::Bwd { relu });
    Case::bounded(name, op, inputs, move |j| judge_backward(j, relu)).sliced()
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
        case.judge = Box::new(|j| {
            let mut rules = judge_backward(j, false);
            rules[0] = Compare::Within(vec![ANY; j.inputs[0].real().len()]);
            rules
        });
        let mut wrong = case.inputs.clone();
        let Data::Real(dy) = &mut wrong[0] else { unreachable!() };
        let last = dy.len() - shape[3]..;
        dy[last].fill(0.0);
        check_refused(&case, &wrong, &DTYPES);
    }
}

#[test]
fn no_kernel_for_f64() {
    use residuum::device::{Arch, Target};
    let Op::BatchNorm(node) = op([2, 2, 2, 4], EPS, 0.1, Pass::Train { relu: false }) else { unreachable!() };
    let target = Target { arch: Arch::Sm80, dtype: DType::F64 };
    let io = residuum::ops::Io { inputs: &[], outputs: &[], scratch: None };
    let error = residuum::ops::Operator::launches(&node, target, &io).unwrap_err().to_string();
    assert!(error.contains("batch_norm_train") && error.contains("0 inputs bound, expected 3"), "{error}");
}
