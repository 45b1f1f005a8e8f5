//! The end of a residual block: exact, as sums of a few small numbers are.

use residuum::ops::block_end::Node;
use residuum::ops::{Op, Operator};

use super::batch_norm::powers;
use crate::cases::elementwise::{LARGE, SHAPES};
use crate::harness::{check, check_refused, Case, Data, Random, Sweep, DTYPES};

const PLAIN: Node =
    Node { shape: [1; 4], affine: [false; 2], activated: [false; 2], gated: false, relu: true, signs: true };

fn case(node: Node) -> Case {
    let name = format!("{node:?}");
    let mut random = Random::new(&name);
    let len = node.shape.iter().product();
    let mut inputs = vec![random.integers(len, -20, 20), random.integers(len, -20, 20)];
    for _ in node.affine.iter().filter(|&&on| on) {
        inputs.extend([powers(&mut random, node.shape[3]), random.integers(node.shape[3], -9, 9)]);
    }
    inputs.extend(node.gated.then(|| vec![1.0]));
    Case::exact(name, Op::BlockEnd(node), inputs.into_iter().map(Data::Real).collect())
}

/// The same where the gate is closed: behind it is nothing but NaN.
fn dropped(node: Node) -> Case {
    let mut case = case(node);
    case.name += " dropped";
    for i in node.behind_gate().inputs {
        case.inputs[i] = Data::Real(vec![f64::NAN; case.inputs[i].real().len()]);
    }
    *case.inputs.last_mut().unwrap() = Data::Real(vec![0.0]);
    case
}

#[test]
fn forward() {
    for &shape in SHAPES {
        for affine in [[false, false], [true, false], [false, true], [true, true]] {
            for (relu, signs) in [(false, true), (true, false), (true, true)] {
                let sweep = if signs && relu { Sweep::Schedules } else { Sweep::Quick };
                check(&case(Node { shape, affine, relu, signs, ..PLAIN }).sliced(), sweep);
            }
        }
    }
    check(&case(Node { shape: LARGE, affine: [true, false], ..PLAIN }), Sweep::Quick);
}

#[test]
fn terms_with_a_relu_and_branches_that_are_dropped() {
    for &shape in SHAPES {
        for affine in [[false, false], [true, false], [false, true], [true, true]] {
            for activated in [[true, false], [false, true], [true, true]] {
                check(&case(Node { shape, affine, activated, relu: false, ..PLAIN }).sliced(), Sweep::Quick);
            }
            for relu in [false, true] {
                let node = Node { shape, affine, activated: [false, !relu], gated: true, relu, ..PLAIN };
                check(&case(node).sliced(), Sweep::Schedules);
                check(&dropped(node).sliced(), Sweep::Schedules);
            }
        }
    }
}

/// Terms are added in f32 and rounded once; a NaN stays, and its bit is set.
#[test]
fn rounds_once() {
    let (a, b) = (vec![1.0, 1.0, 1.0, 2048.0, 256.0, f64::NAN], vec![0.0009765625, 0.00390625, 0.0005, 1.0, 1.0, 1.0]);
    let c = a.len();
    let node = Node { shape: [1, 1, 1, c], affine: [true, false], ..PLAIN };
    let inputs = [a, b, vec![0.5; c], vec![0.5; c]].map(Data::Real);
    check(&Case::exact("block end rounding", Op::BlockEnd(node), inputs.into()), Sweep::Schedules);
}

/// The numbers of one term do not pass for those of the other.
#[test]
fn exchanged_terms_are_found() {
    let case = case(Node { shape: SHAPES[5], affine: [true, true], ..PLAIN });
    let mut wrong = case.inputs.clone();
    wrong.swap(2, 4);
    check_refused(&case, &wrong, &DTYPES);
}
