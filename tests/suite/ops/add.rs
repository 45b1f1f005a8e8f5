//! Addition: exact everywhere.

use residuum::ops::add::Node;
use residuum::ops::Op;

use crate::cases::elementwise::SHAPES;
use crate::harness::{check, Case, Data, Random, Sweep};

fn case(shape: [usize; 4], relu: bool) -> Case {
    let name = format!("add {shape:?} relu {relu}");
    let mut random = Random::new(&name);
    let len = shape.iter().product();
    let inputs = [0, 1].map(|_| Data::Real(random.integers(len, -100, 100)));
    Case::exact(name, Op::Add(Node { shape: shape.into(), relu }), inputs.into()).sliced()
}

#[test]
fn forward() {
    for &shape in SHAPES {
        check(&case(shape, false), Sweep::Schedules);
        check(&case(shape, true), Sweep::Schedules);
    }
}

#[test]
fn rounds_once() {
    // The sum is halfway or just beyond between two numbers of the 16-bit types; added in f32 and rounded once.
    let (a, b) = (vec![1.0, 1.0, 1.0, 2048.0, 256.0, f64::NAN], vec![0.00390625, 0.0009765625, 0.0005, 1.0, 1.0, 1.0]);
    let op = Op::Add(Node { shape: [1, 1, 1, a.len()].into(), relu: false });
    check(&Case::exact("add rounding", op, vec![Data::Real(a), Data::Real(b)]), Sweep::Schedules);
}
