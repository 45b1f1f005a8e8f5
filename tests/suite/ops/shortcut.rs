//! The option-A shortcut: exact everywhere.

use residuum::ops::shortcut::{Node, Pass, Shortcut, Spec};
use residuum::ops::Op;

use crate::cases::shortcut::CASES;
use crate::harness::{check, Case, Data, Random, Sweep};

fn case(spec: Spec, pass: Pass) -> Case {
    let name = format!("shortcut {pass:?} {spec:?}");
    let shortcut = Shortcut::new(spec).unwrap();
    let shape = match pass {
        Pass::Fwd => spec.x,
        Pass::Bwd => shortcut.y_shape(),
    };
    let src = Random::new(&name).integers(shape.iter().product(), -100, 100);
    Case::exact(name, Op::Shortcut(Node { shortcut, pass }), vec![Data::Real(src)]).sliced()
}

#[test]
fn forward() {
    CASES.iter().for_each(|&spec| check(&case(spec, Pass::Fwd), Sweep::Schedules));
}

#[test]
fn backward() {
    CASES.iter().for_each(|&spec| check(&case(spec, Pass::Bwd), Sweep::Schedules));
}
