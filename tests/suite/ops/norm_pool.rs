//! Pooling with a batch norm and a ReLU before it: exact, but for divisors that are no powers of two.

use residuum::ops::norm_pool::{Node, Pass};
use residuum::ops::pool::{self, Kind, Pool, Spec};
use residuum::ops::store::Mask;
use residuum::ops::Op;

use super::batch_norm::powers;
use super::norm_gradient::operands;
use crate::bounds;
use crate::cases::norm::MASKS;
use crate::cases::pool::{Case as Row, CASES, LARGEST_MAX, LARGE_AVERAGES};
use crate::harness::{check, check_refused, reference, Case, Compare, Data, Judged, Random, Sweep, DTYPES};

const AVERAGE: Kind = Kind::Average { count_padding: false };

fn pool(row: &Row, kind: Kind) -> Pool {
    Pool::new(Spec { x: row.x, window: row.window, kind }).unwrap()
}

/// Whole numbers, and scales that are powers of two: sums are exact, and a mean is rounded once.
fn forward(row: &Row, kind: Kind, relu: bool) -> Case {
    let name = format!("norm_pool {kind:?} {row:?} relu {relu}");
    let mut random = Random::new(&name);
    let c = row.x[3];
    let inputs = [random.integers(row.x.iter().product(), -4, 4), powers(&mut random, c), random.integers(c, -3, 3)];
    let op = Op::NormPool(Node { pool: pool(row, kind), pass: Pass::Fwd { relu } });
    let inputs = inputs.map(Data::Real).into();
    if kind == Kind::Max {
        return Case::exact(name, op, inputs).sliced();
    }
    let judge = |j: &Judged<'_>| {
        vec![Compare::Within(j.outputs[0].real().iter().map(|y| bounds::quotients(1, y.abs())).collect())]
    };
    Case::bounded(name, op, inputs, judge).sliced()
}

#[test]
fn maximum() {
    for row in CASES.iter().chain([&LARGEST_MAX]) {
        check(&forward(row, Kind::Max, true), Sweep::Schedules);
        check(&forward(row, Kind::Max, false), Sweep::Quick);
    }
}

#[test]
fn average() {
    for row in CASES.iter().chain(LARGE_AVERAGES) {
        check(&forward(row, AVERAGE, true), Sweep::Schedules);
        check(&forward(row, Kind::Average { count_padding: true }, false), Sweep::Quick);
    }
}

/// The shift of the last channel is found where it is another.
#[test]
fn a_wrong_shift_is_found() {
    for kind in [Kind::Max, AVERAGE] {
        let case = forward(&CASES[1], kind, false);
        let mut wrong = case.inputs.clone();
        let Data::Real(shift) = &mut wrong[2] else { unreachable!() };
        *shift.last_mut().unwrap() += 1.0;
        check_refused(&case, &wrong, &DTYPES);
    }
}

fn backward(row: &Row, kind: Kind, mask: Mask) -> Case {
    let pool = pool(row, kind);
    let name = format!("norm_pool bwd {kind:?} {row:?} {mask:?}");
    let mut random = Random::new(&name);
    let dy = Data::Real(random.integers(pool.y_shape().iter().product(), -8, 8));
    let mut inputs = vec![dy.clone()];
    if kind == Kind::Max {
        let x = Data::Real(random.integers(row.x.iter().product(), -4, 4));
        let fwd = Op::Pool(pool::Node { pool, pass: pool::Pass::Fwd });
        inputs.push(reference(&fwd, &[x], &[]).remove(1));
    }
    inputs.extend(operands(&mut random, mask, row.x));
    let op = Op::NormPool(Node { pool, pass: Pass::Bwd(mask) });
    let [p, q] = pool.output();
    if (0..p).all(|i| (0..q).all(|j| kind == Kind::Max || pool.divisor(i, j).is_power_of_two())) {
        return Case::exact(name, op, inputs).sliced().taking_in();
    }
    // The gradients of the pixels are sums of quotients; what was there before is at most 4, y - mean at most 3, a scale
    // at most 2.
    let magnitudes = Data::Real(dy.real().iter().map(|v| v.abs()).collect());
    let of_pool = Op::Pool(pool::Node { pool, pass: pool::Pass::Bwd });
    let magnitudes = reference(&of_pool, &[magnitudes], &[]).remove(0);
    let judge = move |j: &Judged<'_>| {
        let (c, rows) = (row_channels(j), magnitudes.real().len() / row_channels(j));
        let all: Vec<f64> = magnitudes.real().iter().map(|m| m + 4.0).collect();
        let sums = |most: f64| {
            let of = |k: usize| all.iter().skip(k).step_by(c).map(|m| m * most).sum::<f64>();
            Compare::Within((0..c).map(|k| bounds::channel_sum(rows, p * q + 5, of(k))).collect())
        };
        let g = all.iter().map(|m| bounds::quotients(p * q + 2, 2.0 * m)).collect();
        let rest = (2..j.outputs.len()).map(|_| sums(3.0));
        [Compare::Within(g), sums(1.0)].into_iter().chain(rest).collect()
    };
    Case::bounded(name, op, inputs, judge).sliced().taking_in()
}

/// The sums have a number a channel.
fn row_channels(j: &Judged<'_>) -> usize {
    j.outputs[1].real().len()
}

#[test]
fn backward_of_a_maximum() {
    for (i, row) in CASES.iter().chain([&LARGEST_MAX]).enumerate() {
        for (k, &mask) in MASKS.iter().enumerate() {
            let sweep = if i < 4 || i % MASKS.len() == k { Sweep::Schedules } else { Sweep::Quick };
            check(&backward(row, Kind::Max, mask), sweep);
        }
    }
}

#[test]
fn backward_of_an_average() {
    for (i, row) in CASES.iter().chain(&LARGE_AVERAGES[..4]).enumerate() {
        for (k, &mask) in MASKS.iter().enumerate() {
            let sweep = if i < 4 || i % MASKS.len() == k { Sweep::Schedules } else { Sweep::Quick };
            check(&backward(row, AVERAGE, mask), sweep);
        }
    }
}

/// A window's gradient that goes nowhere is found.
#[test]
fn a_lost_window_is_found() {
    for kind in [Kind::Max, AVERAGE] {
        for row in [&CASES[1], &CASES[4]] {
            let case = backward(row, kind, MASKS[1]);
            let mut wrong = case.inputs.clone();
            let Data::Real(dy) = &mut wrong[0] else { unreachable!() };
            let lost = (0..dy.len()).rev().find(|&i| dy[i] != 0.0).unwrap();
            dy[lost] = 0.0;
            check_refused(&case, &wrong, &DTYPES);
        }
    }
}
