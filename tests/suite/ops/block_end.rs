//! The end of a residual block: exact, as sums of a few small numbers are.

use residuum::ops::block_end::Node;
use residuum::ops::Op;

use super::batch_norm::powers;
use crate::cases::elementwise::{LARGE, SHAPES};
use crate::harness::{check, check_refused, Case, Data, Random, Sweep, DTYPES};

fn case(node: Node) -> Case {
    let name = format!("{node:?}");
    let mut random = Random::new(&name);
    let len = node.shape.iter().product();
    let mut inputs = vec![random.integers(len, -20, 20), random.integers(len, -20, 20)];
    for _ in node.affine.iter().filter(|&&on| on) {
        inputs.extend([powers(&mut random, node.shape[3]), random.integers(node.shape[3], -9, 9)]);
    }
    Case::exact(name, Op::BlockEnd(node), inputs.into_iter().map(Data::Real).collect())
}

#[test]
fn forward() {
    for &shape in SHAPES {
        for affine in [[false, false], [true, false], [false, true], [true, true]] {
            for (relu, signs) in [(false, true), (true, false), (true, true)] {
                let sweep = if signs && relu { Sweep::Schedules } else { Sweep::Quick };
                check(&case(Node { shape, affine, relu, signs }).sliced(), sweep);
            }
        }
    }
    check(&case(Node { shape: LARGE, affine: [true, false], relu: true, signs: true }), Sweep::Quick);
}

/// Terms are added in f32 and rounded once; a NaN stays and is not above 0.
#[test]
fn rounds_once() {
    let (a, b) = (vec![1.0, 1.0, 1.0, 2048.0, 256.0, f64::NAN], vec![0.0009765625, 0.00390625, 0.0005, 1.0, 1.0, 1.0]);
    let c = a.len();
    let node = Node { shape: [1, 1, 1, c], affine: [true, false], relu: true, signs: true };
    let inputs = [a, b, vec![0.5; c], vec![0.5; c]].map(Data::Real);
    check(&Case::exact("block end rounding", Op::BlockEnd(node), inputs.into()), Sweep::Schedules);
}

/// The numbers of one term do not pass for those of the other.
#[test]
fn exchanged_terms_are_found() {
    let case = case(Node { shape: SHAPES[5], affine: [true, true], relu: true, signs: true });
    let mut wrong = case.inputs.clone();
    wrong.swap(2, 4);
    check_refused(&case, &wrong, &DTYPES);
}
