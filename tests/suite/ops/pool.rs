//! Pooling: maxima are exact, averages where the divisors are powers of two.

use residuum::ops::pool::{Kind, Node, Pass, Pool, Spec};
use residuum::ops::Op;
use residuum::tensor::DType;

use crate::bounds;
use crate::cases::pool::{Case as Row, CASES, LARGEST_MAX, LARGE_AVERAGES};
use crate::harness::{check, check_refused, reference, Case, Compare, Data, Random, Sweep};

const AVERAGES: [Kind; 2] = [Kind::Average { count_padding: false }, Kind::Average { count_padding: true }];

fn pool(row: &Row, kind: Kind) -> Pool {
    Pool::new(Spec { x: row.x, window: row.window, kind }).unwrap()
}

fn max_cases(row: &Row) -> [Case; 2] {
    let pool = pool(row, Kind::Max);
    let name = format!("pool max {row:?}");
    let mut random = Random::new(&name);
    // Few values, so that most windows have several maxima.
    let x = Data::Real(random.integers(row.x.iter().product(), -4, 4));
    let dy = Data::Real(random.integers(pool.y_shape().iter().product(), -8, 8));
    let [fwd, bwd] = [Pass::Fwd, Pass::Bwd].map(|pass| Op::Pool(Node { pool, pass }));
    let index = reference(&fwd, std::slice::from_ref(&x), &[]).remove(1);
    [
        Case::exact(format!("{name} fwd"), fwd, vec![x]).sliced(),
        Case::exact(format!("{name} bwd"), bwd, vec![dy, index]).sliced(),
    ]
}

/// Both passes on whole numbers: sums are exact, quotients bounded, or exact where every divisor is a power of two.
fn average_cases(row: &Row, kind: Kind) -> [Case; 2] {
    let pool = pool(row, kind);
    let name = format!("pool {kind:?} {row:?}");
    let mut random = Random::new(&name);
    let x = Data::Real(random.integers(row.x.iter().product(), -16, 16));
    let dy = Data::Real(random.integers(pool.y_shape().iter().product(), -16, 16));
    let [p, q] = pool.output();
    let exact = (0..p).all(|i| (0..q).all(|j| pool.divisor(i, j).is_power_of_two()));
    let [fwd, bwd] = [Pass::Fwd, Pass::Bwd].map(|pass| Op::Pool(Node { pool, pass }));
    if exact {
        return [
            Case::exact(format!("{name} fwd"), fwd, vec![x]).sliced(),
            Case::exact(format!("{name} bwd"), bwd, vec![dy]).sliced(),
        ];
    }
    let bounded = |name: String, op: Op, input: Data| {
        let magnitudes = Data::Real(input.real().iter().map(|v| v.abs()).collect());
        let magnitudes = reference(&op, &[magnitudes], &[]).remove(0);
        let bound: Vec<f64> = magnitudes.real().iter().map(|m| bounds::quotients(p * q, *m)).collect();
        Case::bounded(name, op, vec![input], move |_| vec![Compare::Within(bound.clone())]).sliced()
    };
    [bounded(format!("{name} fwd"), fwd, x), bounded(format!("{name} bwd"), bwd, dy)]
}

#[test]
fn maximum() {
    for row in CASES.iter().chain([&LARGEST_MAX]) {
        max_cases(row).iter().for_each(|case| check(case, Sweep::Schedules));
    }
}

#[test]
fn average() {
    for row in CASES {
        for kind in AVERAGES {
            average_cases(row, kind).iter().for_each(|case| check(case, Sweep::Schedules));
        }
    }
}

#[test]
fn average_of_large_windows() {
    for row in LARGE_AVERAGES {
        average_cases(row, AVERAGES[0]).iter().for_each(|case| check(case, Sweep::Schedules));
    }
}

#[test]
fn average_of_real_numbers() {
    for row in LARGE_AVERAGES {
        let pool = pool(row, AVERAGES[0]);
        let op = Op::Pool(Node { pool, pass: Pass::Fwd });
        let name = format!("pool average of reals {row:?}");
        let x = Data::Real(Random::new(&name).reals(row.x.iter().product(), 0.0, 1.0));
        let [h, w] = [0, 1].map(|axis| (0..pool.output()[axis]).map(|i| pool.span(axis, i).len()).max().unwrap());
        let case = Case::bounded(name, op, vec![x.clone()], move |j| {
            let bound = |mean: &f64| bounds::tree_mean(h * w, *mean);
            vec![Compare::Within(j.outputs[0].real().iter().map(bound).collect())]
        });
        check(&case, Sweep::Schedules);
        // One pixel left out: in 16 bits that is less than the rounding of y.
        let Data::Real(mut wrong) = x else { unreachable!() };
        let largest = (0..wrong.len()).max_by(|&a, &b| wrong[a].total_cmp(&wrong[b])).unwrap();
        wrong[largest] = 0.0;
        check_refused(&case, &[Data::Real(wrong)], &[DType::F32]);
    }
}

#[test]
fn nan_is_the_largest() {
    let row = CASES[1];
    let [fwd, _] = max_cases(&row);
    let Data::Real(mut x) = fwd.inputs[0].clone() else { unreachable!() };
    for i in (0..x.len()).step_by(37) {
        x[i] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][i % 3];
    }
    // A window of nothing but the least value there is.
    x[..row.x[3]].fill(f64::NEG_INFINITY);
    check(&Case::exact("pool max of NaN", fwd.op, vec![Data::Real(x)]), Sweep::Schedules);
}
