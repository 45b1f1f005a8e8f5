//! Both gradients of a convolution in one launch: they read the same tensors.
//!
//! ```text
//! dw = bwd_w(dy, x)  dx = bwd_x(dy, w)   ->  dx, dw = bwd(dy, w, x)
//! ```
//!
//! Legal if the two are adjacent and load dy in the same way, and if dw is not an operand of that load.
//!
//! Saves one read of dy and of its correction's operands if the L2 cache serves the second read. The launch's cost
//! assumes that it does. After `masks`, and only next to batch norms in pieces: the plain passes have faster kernels of
//! their own.

use super::join_adjacent;
use crate::graph::{Graph, Node};
use crate::ops::conv2d::{self, Bwd, Pass};
use crate::ops::Op;

/// Joins the backward passes of every convolution next to batch norms in pieces.
pub(super) fn gradients(graph: &mut Graph) {
    join_adjacent(graph, join);
}

/// One node in place of `bwd_w` and `bwd_x`, if they are passes of one convolution with an equal dy.
fn join(bwd_w: &Node, bwd_x: &Node) -> Option<Node> {
    let (Op::Conv2d(conv2d::Node { conv, pass: w_form }), Op::Conv2d(conv2d::Node { conv: same, pass: x_form })) =
        (&bwd_w.op, &bwd_x.op)
    else {
        return None;
    };
    let (Pass::BwdW(w), Pass::BwdX(x)) = (bwd_w.bind(*w_form), bwd_x.bind(*x_form)) else { return None };
    let fused = !w_form.is_plain() && !x_form.is_plain();
    let fits = conv == same && w.dy == x.dy && bwd_w.gate == bwd_x.gate && w.dw.value != x.dy.value;
    let call = Bwd { dy: x.dy, w: x.w, x: w.x, mask: x.mask, dx: x.dx, dw: w.dw, sums: x.sums };
    (fused && fits).then(|| Node::conv2d(*conv, Pass::Bwd(call), bwd_x.gate))
}
