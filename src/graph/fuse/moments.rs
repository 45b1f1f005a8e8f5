//! The moments of a convolution's output without a pass: the convolution leaves them.
//!
//! ```text
//! y = conv(x, w)  mean, var = measure(y)   ->  y, mean, var = conv(x, w)
//! ```
//!
//! Legal for every convolution: its tiles hold y in registers. Saves reading y: N P Q K elements. After `norms` and
//! `slices`, which put the measuring right after the convolution.

use super::join_adjacent;
use crate::graph::{Graph, Node};
use crate::ops::conv2d::{Fwd, Pass};
use crate::ops::{norm, Op};

/// Makes each convolution whose output is measured leave the moments itself.
pub(super) fn leave(graph: &mut Graph) {
    join_adjacent(graph, join);
}

/// One node in place of `conv` and `measure`, if they are a convolution and the moments of its output.
fn join(conv: &Node, measure: &Node) -> Option<Node> {
    let gate = conv.gate;
    let (conv, call) = conv.as_conv_fwd().filter(|(_, call)| call.moments.is_none())?;
    let Op::Norm(norm::Node { pass: norm::Pass::Measure, .. }) = measure.op else { return None };
    let norm::Measure { y, moments } = measure.bind(norm::Measure::default());
    (call.y.value == y).then(|| Node::conv2d(conv, Pass::Fwd(Fwd { moments: Some(moments), ..call }), gate))
}
