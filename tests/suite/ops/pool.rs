//! Pooling: maxima are exact, averages are if the divisors are powers of two.

use residuum::ops::load::{Load, Operand};
use residuum::ops::pool::{Fwd, Kind, Pool, Spec, Window};
use residuum::ops::Op;
use residuum::tensor::DType;

use crate::bounds;
use crate::cases::pool::{Case as Row, CASES, LARGEST_MAX, LARGE_AVERAGES};
use crate::harness::{check, check_refused, reference, Case, Compare, Data, Random, Sweep};
use crate::host::results;
use crate::named::{only, outputs};

const MAX: Fwd = Fwd { x: Operand { value: (), load: Load::AsIs }, y: (), index: Some(()) };
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
    let [fwd, bwd] = [pool.fwd(), pool.bwd()].map(Op::Pool);
    let index = outputs(MAX, reference(&fwd, std::slice::from_ref(&x), &[])).index.expect("positions");
    [
        Case::exact(format!("{name} fwd"), fwd, vec![x]).sliced(),
        Case::exact(format!("{name} bwd"), bwd, vec![dy, index]).sliced(),
    ]
}

/// Both passes on whole numbers: sums are exact, quotients bounded, or exact if every divisor is a power of two.
fn average_cases(row: &Row, kind: Kind) -> [Case; 2] {
    let pool = pool(row, kind);
    let name = format!("pool {kind:?} {row:?}");
    let mut random = Random::new(&name);
    let x = Data::Real(random.integers(row.x.iter().product(), -16, 16));
    let dy = Data::Real(random.integers(pool.y_shape().iter().product(), -16, 16));
    let [p, q] = pool.output();
    let exact = (0..p).all(|i| (0..q).all(|j| pool.divisor(i, j).is_power_of_two()));
    let [fwd, bwd] = [pool.fwd(), pool.bwd()].map(Op::Pool);
    if exact {
        return [
            Case::exact(format!("{name} fwd"), fwd, vec![x]).sliced(),
            Case::exact(format!("{name} bwd"), bwd, vec![dy]).sliced(),
        ];
    }
    let bounded = |name: String, op: Op, input: Data| {
        let magnitudes = Data::Real(input.real().iter().map(|v| v.abs()).collect());
        let magnitudes = only(reference(&op, &[magnitudes], &[]));
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
        let op = Op::Pool(pool.fwd());
        let name = format!("pool average of reals {row:?}");
        let x = Data::Real(Random::new(&name).reals(row.x.iter().product(), 0.0, 1.0));
        let [h, w] = [0, 1].map(|axis| (0..pool.output()[axis]).map(|i| pool.span(axis, i).len()).max().unwrap());
        let case = Case::bounded(name, op, vec![x.clone()], move |j| {
            let bound = |mean: &f64| bounds::tree_mean(h * w, *mean);
            vec![Compare::Within(j.numbers(<Fwd>::default()).y.iter().map(bound).collect())]
        });
        check(&case, Sweep::Schedules);
        // One pixel left out: in 16 bits its effect is less than the rounding of y.
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
    let Data::Real(mut x) = only(fwd.inputs) else { unreachable!() };
    for i in (0..x.len()).step_by(37) {
        x[i] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][i % 3];
    }
    // A window of nothing but the least value.
    x[..row.x[3]].fill(f64::NEG_INFINITY);
    check(&Case::exact("pool max of NaN", fwd.op, vec![Data::Real(x)]), Sweep::Schedules);
}

/// Windows of 2x2 pixels, and the pixel that torch 2.11 takes: of equal maxima the first, of several NaN the last.
const CHOSEN: &[([f64; 4], u8)] = &[
    ([2.0, 2.0, 2.0, 1.0], 0),
    ([f64::NAN, f64::NAN, 5.0, f64::NAN], 3),
    ([5.0, f64::NAN, f64::NAN, 7.0], 2),
    ([f64::NAN, 1.0, f64::INFINITY, 3.0], 0),
    ([f64::NEG_INFINITY; 4], 0),
    ([0.0, -0.0, -0.0, 0.0], 0),
];

#[test]
fn of_several_nan_the_last_is_taken() {
    let window = Window::Sliding { kernel: [2; 2], stride: [2; 2], padding: [0; 2], ceil: false };
    for &(x, position) in CHOSEN {
        let pool = Pool::new(Spec { x: [1, 2, 2, 1], window, kind: Kind::Max }).unwrap();
        let op = Op::Pool(pool.fwd());
        let x = vec![Data::Real(x.into())];
        let index = Data::Byte(vec![position]);
        for found in results(&op, &x) {
            assert_eq!(outputs(MAX, found).index.as_ref(), Some(&index), "{x:?}");
        }
        check(&Case::exact(format!("pool max of {x:?}"), op, x), Sweep::Schedules);
    }
}

/// H and W, kernel, stride, padding, and torch 2.11's result in floor and in ceil mode, `None` if it fails.
type Shape = ([usize; 2], [usize; 2], [usize; 2], [usize; 2], Option<[usize; 2]>, Option<[usize; 2]>);

const SHAPES: &[Shape] = &[
    ([13, 2], [4, 3], [5, 5], [2, 0], None, Some([3, 1])),
    ([2, 2], [3, 3], [1, 2], [1, 0], None, Some([2, 1])),
    ([1, 1], [2, 2], [2, 2], [0, 0], None, Some([1, 1])),
    ([1, 1], [3, 3], [3, 3], [0, 0], None, Some([1, 1])),
    ([1, 1], [3, 3], [1, 1], [0, 0], None, None),
    ([2, 3], [7, 4], [6, 2], [0, 1], None, Some([1, 2])),
    ([1, 5], [2, 2], [2, 2], [1, 1], Some([1, 3]), Some([1, 3])),
    ([3, 3], [5, 5], [2, 2], [0, 0], None, None),
    ([3, 3], [5, 5], [3, 3], [0, 0], None, Some([1, 1])),
    ([1, 1], [1, 1], [9, 9], [0, 0], Some([1, 1]), Some([1, 1])),
    // A padding of more than half the kernel, rounded down.
    ([5, 5], [3, 3], [1, 1], [2, 1], None, None),
];

#[test]
fn shapes_are_torchs() {
    for &(hw, kernel, stride, padding, floor, rounded_up) in SHAPES {
        for (ceil, expected) in [(false, floor), (true, rounded_up)] {
            for kind in [Kind::Max, AVERAGES[0], AVERAGES[1]] {
                let window = Window::Sliding { kernel, stride, padding, ceil };
                let row = Row { x: [2, hw[0], hw[1], 9], window };
                let found = Pool::new(Spec { x: row.x, window, kind });
                assert_eq!(found.ok().map(|p| p.output()), expected, "{row:?}");
                if expected.is_some() && kind != Kind::Max {
                    average_cases(&row, kind).iter().for_each(|case| check(case, Sweep::Quick));
                } else if expected.is_some() {
                    max_cases(&row).iter().for_each(|case| check(case, Sweep::Quick));
                }
            }
        }
    }
}

/// Extents near the largest number are refused or accepted without a panic.
#[test]
fn huge_windows_do_not_panic() {
    let huge = [usize::MAX, usize::MAX / 2, 1 << 40];
    for kernel in huge {
        for (stride, padding) in huge.iter().flat_map(|&s| [0, 1, kernel / 2].map(|p| (s, p))) {
            for ceil in [false, true] {
                let window = Window::Sliding { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 2], ceil };
                for kind in [Kind::Max, AVERAGES[1]] {
                    if let Ok(pool) = Pool::new(Spec { x: [1, 2, 2, 1], window, kind }) {
                        let [p, q] = pool.output();
                        assert!(p > 0 && q > 0 && pool.divisor(p - 1, q - 1) > 0, "{window:?}");
                        assert!(!pool.span(0, p - 1).is_empty(), "{window:?}");
                    }
                }
            }
        }
    }
}
