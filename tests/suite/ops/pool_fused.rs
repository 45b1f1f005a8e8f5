//! Pooling with a batch norm and a ReLU before it: exact, except for divisors that are no powers of two.

use residuum::ops::load::{Affine, Load, Operand};
use residuum::ops::pool::{Bwd, Fwd, Kind, Node, Pass, Pool, Spec};
use residuum::ops::store::Mask;
use residuum::ops::{Call, Op};

use super::batch_norm::powers;
use super::norm_gradient::operands;
use crate::bounds;
use crate::cases::norm::MASKS;
use crate::cases::pool::{Case as Row, CASES, LARGEST_MAX, LARGE_AVERAGES};
use crate::harness::{check, check_refused_with, reference, Case, Compare, Data, Judged, Random, Sweep};
use crate::named::{inputs, only, outputs, rules};

const AVERAGE: Kind = Kind::Average { count_padding: false };

fn pool(row: &Row, kind: Kind) -> Pool {
    Pool::new(Spec { x: row.x, window: row.window, kind }).unwrap()
}

/// Whole numbers, and scales that are powers of two: sums are exact, and a mean is rounded once.
fn forward(row: &Row, kind: Kind, relu: bool) -> Case {
    let name = format!("pool_fused {kind:?} {row:?} relu {relu}");
    let mut random = Random::new(&name);
    let (pool, c) = (pool(row, kind), row.x[3]);
    let value = random.integers(row.x.iter().product(), -4, 4);
    let affine = Affine { scale: powers(&mut random, c), shift: random.integers(c, -3, 3) };
    let x = Operand { value, load: Load::Affine { affine, relu } };
    let call = Fwd { x, y: (), index: (kind == Kind::Max).then_some(()) };
    let (form, inputs) = (call.form(), inputs(call));
    let op = Op::Pool(Node { pool, pass: Pass::Fwd(form) });
    if kind == Kind::Max {
        return Case::exact(name, op, inputs).sliced();
    }
    let judge = move |j: &Judged<'_>| {
        let Fwd { y, .. } = j.numbers(form);
        vec![Compare::Within(y.iter().map(|y| bounds::quotients(1, y.abs())).collect())]
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

/// A wrong shift of the last channel is found.
#[test]
fn a_wrong_shift_is_found() {
    for kind in [Kind::Max, AVERAGE] {
        let load = Load::Affine { affine: Affine::default(), relu: false };
        let form: Fwd = Fwd { x: Operand { value: (), load }, ..Fwd::default() };
        let Load::Affine { affine, .. } = form.places().x.load else { unreachable!() };
        let shift_last = |shift: &mut [f64]| *shift.last_mut().unwrap() += 1.0;
        check_refused_with(&forward(&CASES[1], kind, false), affine.shift, shift_last);
    }
}

fn backward(row: &Row, kind: Kind, mask: Mask) -> Case {
    let pool = pool(row, kind);
    let name = format!("pool_fused bwd {kind:?} {row:?} {mask:?}");
    let mut random = Random::new(&name);
    let dy = Data::Real(random.integers(pool.y_shape().iter().product(), -8, 8));
    let absolute = Data::Real(dy.real().iter().map(|v| v.abs()).collect());
    let index = (kind == Kind::Max).then(|| {
        let x = Data::Real(random.integers(row.x.iter().product(), -4, 4));
        let form: Fwd = Fwd { index: Some(()), ..Fwd::default() };
        outputs(form, reference(&Op::Pool(pool.fwd()), &[x], &[])).index.expect("positions")
    });
    let masked = operands(&mut random, mask, row.x);
    let call = Bwd { dy, index, mask: Some(masked), dx: (), sums: Some(mask.sums()) };
    let (form, inputs) = (call.form(), call.into_lists().0);
    let op = Op::Pool(Node { pool, pass: Pass::Bwd(form) });
    let [p, q] = pool.output();
    if (0..p).all(|i| (0..q).all(|j| kind == Kind::Max || pool.divisor(i, j).is_power_of_two())) {
        return Case::exact(name, op, inputs).sliced().taking_in();
    }
    // dx is a sum of quotients. Its old content is at most 4, y - mean at most 3, a scale at most 2.
    let magnitudes = only(reference(&Op::Pool(pool.bwd()), &[absolute], &[]));
    let c = row.x[3];
    let judge = move |_: &Judged<'_>| {
        let rows = magnitudes.real().len() / c;
        let all: Vec<f64> = magnitudes.real().iter().map(|m| m + 4.0).collect();
        let sum = |name: &str, ()| {
            let most = if name == "dy" { 1.0 } else { 3.0 };
            let of = |k: usize| all.iter().skip(k).step_by(c).map(|m| m * most).sum::<f64>();
            Compare::Within((0..c).map(|k| bounds::channel_sum(rows, p * q + 5, of(k))).collect())
        };
        let dx = Compare::Within(all.iter().map(|m| bounds::quotients(p * q + 2, 2.0 * m)).collect());
        rules(Bwd { dy: (), index: None, mask: None, dx, sums: Some(mask.sums().map(sum)) })
    };
    Case::bounded(name, op, inputs, judge).sliced().taking_in()
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

/// The lost gradient of a window is found.
#[test]
fn a_lost_window_is_found() {
    for kind in [Kind::Max, AVERAGE] {
        for row in [&CASES[1], &CASES[4]] {
            let lose = |dy: &mut [f64]| *dy.iter_mut().rfind(|v| **v != 0.0).unwrap() = 0.0;
            check_refused_with(&backward(row, kind, MASKS[1]), <Bwd>::default().places().dy, lose);
        }
    }
}
