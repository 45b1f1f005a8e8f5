//! The end of a block whose branch may be dropped: exact everywhere.

use residuum::ops::join::{Keep, Node};
use residuum::ops::Op;

use crate::cases::elementwise::SHAPES;
use crate::harness::{check, Case, Data, Random, Sweep};

fn case(shape: [usize; 4], keep: Keep, gate: Option<f64>, relu: bool) -> Case {
    let name = format!("join {shape:?} {keep:?} gate {gate:?} relu {relu}");
    let mut random = Random::new(&name);
    let len: usize = shape.iter().product();
    let a = random.integers(len, -100, 100);
    // Nothing of a branch that is dropped is read: it may be anything.
    let b = if gate == Some(0.0) { vec![f64::NAN; len] } else { random.integers(len, -50, 50) };
    let mut inputs = vec![Data::Real(a), Data::Real(b)];
    inputs.extend(gate.map(|gate| Data::Real(vec![gate])));
    Case::exact(name, Op::Join(Node { shape: shape.into(), keep, relu }), inputs).sliced()
}

#[test]
fn forward() {
    for &shape in SHAPES {
        for (keep, gate) in [(Keep::Gated, Some(1.0)), (Keep::Gated, Some(0.0)), (Keep::Scaled(0.5), None)] {
            check(&case(shape, keep, gate, false), Sweep::Schedules);
            check(&case(shape, keep, gate, true), Sweep::Schedules);
        }
    }
}
