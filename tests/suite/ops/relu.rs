//! The rectifier.

use residuum::ops::relu::{Node, Pass};
use residuum::ops::Op;

use crate::harness::{check, Case, Data, Random, Sweep};

#[test]
fn forward_is_exact() {
    let shape = [2usize, 3, 5, 7];
    let op = Op::Relu(Node { shape: shape.into(), pass: Pass::Fwd });
    let mut random = Random::new("relu fwd");
    let x = Data::Real(random.integers(shape.iter().product(), -9, 9));
    check(&Case::exact("relu fwd", op, vec![x]).sliced(), Sweep::Schedules);
}
