//! The fully connected layer: its tensors reach conv2d's kernels in the right order.

use residuum::ops::linear::{Linear, Node, Pass, Spec};
use residuum::ops::{Op, Operator};

use crate::harness::{check, Case, Data, Random, Sweep};

#[test]
fn every_pass_is_exact() {
    for (x, k) in [([5, 1, 1, 64], 10), ([3, 2, 3, 8], 16), ([2, 1, 1, 7], 3)] {
        let linear = Linear::new(Spec { x, k }).unwrap();
        let backward = [Pass::BwdX, Pass::BwdW, Pass::BwdBias].map(|pass| Node { linear, pass });
        for node in [false, true].map(|bias| linear.fwd(bias)).into_iter().chain(backward) {
            let name = format!("{} of {x:?} to {k}", node.name());
            let mut random = Random::new(&name);
            // A quarter of 48 or 64 products up to 4 is not 0: bf16 holds the sums exactly.
            let inputs = node.inputs().iter().map(|ty| Data::Real(random.sparse(ty.shape.len(), -2, 2, 2))).collect();
            check(&Case::exact(name, Op::Linear(node), inputs), Sweep::Quick);
        }
    }
}
