//! Both gradients of a convolution in one launch: they read the same tensors.
//!
//! ```text
//! dw = bwd_w(dy, x)  dx = bwd_x(dy, w)   ->  dx, dw = bwd(dy, w, x)
//! ```
//!
//! Legal if they stand next to each other, load the same dy in the same way, and dw is not part of that.
//!
//! Saves up to one reading of dy and of what corrects it, as far as the second-level cache holds them: not counted,
//! since bytes are counted once a launch only. After `norms`, and for convolutions next to batch norms only: the plain
//! passes have faster kernels of their own.

use crate::graph::{Graph, Node};
use crate::ops::conv2d::{self, Bwd, Pass};
use crate::ops::{Call, Op};

/// Joins the backward passes of every convolution next to batch norms in pieces.
pub(super) fn gradients(graph: &mut Graph) {
    let mut nodes: Vec<Node> = Vec::with_capacity(graph.nodes.len());
    for node in std::mem::take(&mut graph.nodes) {
        match nodes.last().and_then(|before| join(before, &node)) {
            Some(joint) => {
                nodes.pop();
                nodes.push(joint);
            }
            None => nodes.push(node),
        }
    }
    graph.nodes = nodes;
}

/// One node in place of `bwd_w` and `bwd_x`, if these are passes of one convolution with the same dy.
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
    let op = Op::Conv2d(conv2d::Node { conv: *conv, pass: Pass::Bwd(call.form()) });
    (fused && fits).then(|| Node::new(op, call, bwd_x.gate))
}
