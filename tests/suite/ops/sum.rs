//! Sums of a few small numbers: exact.

use residuum::ops::load::{Affine, Load, Operand};
use residuum::ops::sum::{Fwd, Node};
use residuum::ops::{Call, Op, Operator};

use super::batch_norm::powers;
use crate::cases::elementwise::{term, LARGE, SHAPES};
use crate::harness::{check, check_refused, Case, Data, Random, Sweep, DTYPES};

/// A sum of integers up to `most`.
fn integers(node: Node, most: i64, gate: f64) -> Case {
    let name = format!("{node:?} gate {gate}");
    let mut random = Random::new(&name);
    let (len, c) = (node.shape.len(), *node.shape.dims().last().unwrap());
    let call = node.form.map(
        |name, ()| match name {
            "a" | "b" => random.integers(len, -most, most),
            "scale" => powers(&mut random, c),
            "shift" => random.integers(c, -9, 9),
            _ => vec![gate],
        },
        |_, ()| (),
    );
    let mut inputs: Vec<Data> = call.into_lists().0.into_iter().map(Data::Real).collect();
    if gate == 0.0 {
        // A dropped branch is not read: its values may be anything.
        for ((_, read), input) in node.operands().reads.iter().zip(&mut inputs).filter(|((_, read), _)| read.gated) {
            *input = Data::Real(vec![f64::NAN; read.ty.shape.len()]);
        }
    }
    Case::exact(name, Op::Sum(node), inputs).sliced()
}

/// A block end: for each term, whether it is a batch norm's output and whether a ReLU follows.
fn end(shape: [usize; 4], affine: [bool; 2], activated: [bool; 2]) -> Node {
    let [a, b] = [0, 1].map(|i| term(affine[i], activated[i]));
    let node = Node::of(shape);
    Node { form: Fwd { a, b, signs: Some(()), ..node.form }, relu: true, ..node }
}

const AFFINE: [[bool; 2]; 4] = [[false, false], [true, false], [false, true], [true, true]];

#[test]
fn additions() {
    for &shape in SHAPES {
        for relu in [false, true] {
            check(&integers(Node { relu, ..Node::of(shape) }, 100, 1.0), Sweep::Schedules);
        }
    }
}

#[test]
fn branches() {
    for &shape in SHAPES {
        for relu in [false, true] {
            let scaled = Node { share: 0.5, relu, ..Node::of(shape) };
            let gated = Node { share: 1.0, form: Fwd { gate: Some(()), ..scaled.form }, ..scaled.clone() };
            check(&integers(scaled, 100, 1.0), Sweep::Schedules);
            check(&integers(gated.clone(), 100, 1.0), Sweep::Schedules);
            check(&integers(gated, 100, 0.0), Sweep::Schedules);
        }
    }
}

#[test]
fn ends_of_blocks() {
    for &shape in SHAPES {
        for affine in AFFINE {
            for (relu, signs) in [(false, Some(())), (true, None), (true, Some(()))] {
                let node = end(shape, affine, [false; 2]);
                let sweep = if signs.is_some() && relu { Sweep::Schedules } else { Sweep::Quick };
                check(&integers(Node { form: Fwd { signs, ..node.form }, relu, ..node }, 20, 1.0), sweep);
            }
        }
    }
    check(&integers(end(LARGE, [true, false], [false; 2]), 20, 1.0), Sweep::Quick);
}

#[test]
fn terms_with_a_relu_and_dropped_branches() {
    for &shape in SHAPES {
        for affine in AFFINE {
            for activated in [[true, false], [false, true], [true, true]] {
                check(&integers(Node { relu: false, ..end(shape, affine, activated) }, 20, 1.0), Sweep::Quick);
            }
            for relu in [false, true] {
                let node = end(shape, affine, [false, !relu]);
                let node = Node { form: Fwd { gate: Some(()), ..node.form }, relu, ..node };
                check(&integers(node.clone(), 20, 1.0), Sweep::Schedules);
                check(&integers(node, 20, 0.0), Sweep::Schedules);
            }
        }
    }
}

/// Terms are added in f32 and rounded once: the sums lie halfway between two 16-bit numbers or just beyond. A NaN
/// stays, and its bit is set.
#[test]
fn rounds_once() {
    let a = Data::Real(vec![1.0, 1.0, 1.0, 2048.0, 256.0, f64::NAN]);
    let b = Data::Real(vec![0.00390625, 0.0009765625, 0.0005, 1.0, 1.0, 1.0]);
    let node = Node::of([1, 1, 1, 6]);
    let case = Case::exact("rounding", Op::Sum(node.clone()), vec![a.clone(), b.clone()]);
    check(&case, Sweep::Schedules);
    let half = || Data::Real(vec![0.5; 6]);
    let load = Load::Affine { affine: Affine { scale: half(), shift: half() }, relu: false };
    let call = Fwd { a: Operand { value: a, load }, b: b.into(), gate: None, y: (), signs: Some(()) };
    let op = Op::Sum(Node { form: call.clone().form(), relu: true, ..node });
    check(&Case::exact("rounding behind a batch norm", op, call.into_lists().0), Sweep::Schedules);
}

/// Exchanged scales of the two terms are found.
#[test]
fn exchanged_terms_are_found() {
    let node = end(SHAPES[5], [true, true], [false; 2]);
    let at = node.form.places();
    let case = integers(node, 20, 1.0);
    let (Load::Affine { affine: a, .. }, Load::Affine { affine: b, .. }) = (at.a.load, at.b.load) else {
        panic!("both terms are batch norms'")
    };
    let mut wrong = case.inputs.clone();
    wrong.swap(a.scale, b.scale);
    check_refused(&case, &wrong, &DTYPES);
}
