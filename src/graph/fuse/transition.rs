//! Average pooling after a 1x1 convolution, as in a DenseNet's transitions, moves before it to save pixels.
//!
//! ```text
//! fwd  z = conv(x, w)  y = pool(z)                            ->  p = pool(x)  y = conv(p, w)
//! bwd  dz = unpool(dy)  dw = bwd_w(dz, x)  dx = bwd_x(dz, w)  ->  dw = bwd_w(dy, p)  dp = bwd_x(dy, w)
//!                                                                 dx = unpool(dp)
//! ```
//!
//! Legal because the two commute: both are linear, a 1x1 convolution without padding acts on each pixel alone, and the
//! weights of a pooling that ignores padding sum to 1. Results differ only by rounding.
//!
//! Saves, for 2x2 pooling, three quarters of the convolution's work and of its result's bytes. Others change the ops
//! that it matches, so it comes first.

use super::count_uses;
use crate::graph::{Graph, Node, Origin, Stored, ValueId};
use crate::ops::conv2d::{self, BwdW, BwdX, Conv2d, Fwd, Pass};
use crate::ops::load::Operand;
use crate::ops::pool::{self, Kind, Pool};
use crate::ops::Op;
use crate::tensor::TensorType;

/// Exchanges every such pair.
pub(super) fn pool_first(graph: &mut Graph) {
    if graph.nodes.iter().any(|n| n.gate.is_some()) {
        return; // no network has transitions and stochastic depth
    }
    let uses = count_uses(graph);
    let mut at = 0;
    while at < graph.nodes.len() {
        if let Some(pair) = Pair::find(graph, &uses, at) {
            pair.exchange(graph);
        }
        at += 1;
    }
}

/// A 1x1 convolution and a pooling that is the only reader of its result, with their backward nodes.
struct Pair {
    /// Nodes of the forward pass.
    conv: usize,
    pool: usize,
    /// The pooling's backward node and its readers: bwd_w and, if the input has a gradient, bwd_x.
    backward: Option<(usize, usize, Option<usize>)>,
    /// The descriptors after the exchange.
    first: Pool,
    then: Conv2d,
}

impl Pair {
    /// The pair whose pooling is node `at`.
    fn find(graph: &Graph, uses: &[usize], at: usize) -> Option<Self> {
        let node = &graph.nodes[at];
        let Op::Pool(op) = node.op else { return None };
        let averages = matches!(op.pool.spec().kind, Kind::Average { count_padding: false });
        if op != op.pool.fwd() || !averages {
            return None;
        }
        let z = node.bind(pool::Fwd::default()).x.value;
        let conv = graph.nodes[..at].iter().rposition(|n| n.outputs == [z])?;
        let Op::Conv2d(conv2d::Node { conv: by, pass }) = graph.nodes[conv].op else { return None };
        let (spec, [p, q]) = (*by.spec(), op.pool.output());
        let pointwise = (spec.kernel, spec.stride, spec.padding) == ([1; 2], [1; 2], [0; 2]);
        let is_plain = pass == Pass::fwd(false) && uses[z.index()] == 1;
        if !pointwise || !is_plain || p * q >= spec.h * spec.w {
            return None;
        }
        let first = Pool::new(pool::Spec { x: [spec.n, spec.h, spec.w, spec.c], ..*op.pool.spec() }).ok()?;
        let then = Conv2d::new(conv2d::Spec { h: p, w: q, ..spec }).ok()?;
        Self { conv, pool: at, backward: None, first, then }.with_backward(graph, uses, by)
    }

    /// The pair with its backward nodes, if there are any; `None` if they are not as expected.
    fn with_backward(self, graph: &Graph, uses: &[usize], conv: Conv2d) -> Option<Self> {
        let Op::Pool(pool) = graph.nodes[self.pool].op else { return None };
        let Fwd { x, w, .. } = graph.nodes[self.conv].bind(Fwd::default());
        // Of several poolings with this shape, the convolution's backward nodes read only this one's gradient.
        let unpools = graph.nodes.iter().enumerate().filter(|(_, n)| n.op == Op::Pool(pool.pool.bwd()));
        for (unpool, node) in unpools {
            let pool::Bwd { dx: Stored { value: dz, .. }, .. } = node.bind(pool::Bwd::default());
            let dy = Operand::from(dz);
            let find = |is: &dyn Fn(Pass<ValueId, Stored>) -> bool| {
                graph.nodes.iter().position(|n| matches!(n.op, Op::Conv2d(c) if c.conv == conv && is(n.bind(c.pass))))
            };
            let Some(bwd_w) = find(&|p| matches!(p, Pass::BwdW(c) if c.dy == dy && c.x == x)) else { continue };
            let bwd_x = find(&|p| matches!(p, Pass::BwdX(c) if c.dy == dy && c.w == w && c.mask.is_none()));
            let read = 1 + usize::from(bwd_x.is_some());
            return (uses[dz.index()] == read).then_some(Self { backward: Some((unpool, bwd_w, bwd_x)), ..self });
        }
        // A gradient of w without these nodes is not as expected.
        let trained = graph.parameters.iter().any(|p| p.value == w && p.grad.is_some());
        (!trained).then_some(self)
    }

    /// Rewrites the nodes in place, but moves the unpooling behind bwd_x, whose result it then reads.
    fn exchange(self, graph: &mut Graph) {
        let pooled = graph.add_value(TensorType::real(self.first.y_shape()), Origin::Node);
        let conv = |pass| Node::conv2d(self.then, pass, None);
        let (fwd, pool) =
            (graph.nodes[self.conv].bind(Fwd::default()), graph.nodes[self.pool].bind(pool::Fwd::default()));
        let call = pool::Fwd { x: fwd.x, y: pooled.into(), index: None };
        graph.nodes[self.conv] = Node::new(Op::Pool(self.first.fwd()), call, None);
        graph.nodes[self.pool] = conv(Pass::Fwd(Fwd { x: pooled.into(), y: pool.y, ..fwd }));
        let Some((unpool, bwd_w, bwd_x)) = self.backward else { return };
        let unpooled = graph.nodes[unpool].bind(pool::Bwd::default());
        let dy = unpooled.dy;
        let call = BwdW { dy: dy.into(), x: pooled.into(), ..graph.nodes[bwd_w].bind(BwdW::default()) };
        graph.nodes[bwd_w] = conv(Pass::BwdW(call));
        if let Some(bwd_x) = bwd_x {
            let d_pooled = graph.add_value(TensorType::real(self.first.y_shape()), Origin::Node);
            let call = graph.nodes[bwd_x].bind(BwdX::default());
            graph.nodes[bwd_x] = conv(Pass::BwdX(BwdX { dy: dy.into(), dx: d_pooled.into(), ..call }));
            let unpooled = pool::Bwd { dy: d_pooled, dx: call.dx, ..unpooled };
            graph.nodes.insert(bwd_x + 1, Node::new(Op::Pool(self.first.bwd()), unpooled, None));
        }
        graph.nodes.remove(unpool);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Builder, ConvOptions, LossOptions, Mode};
    use crate::ops::pool::Window;

    /// A 3x3 convolution, then `conv`, whose result is an output if `seen`, then a pooling and the loss.
    fn graph(conv: ConvOptions, window: Window, count_padding: bool, seen: bool) -> Graph {
        let mut b = Builder::new(Mode::Train);
        let x = b.input("input", [2, 6, 6, 3]);
        let x = b.conv2d("first", x, ConvOptions { k: 5, kernel: [3; 2], ..Default::default() }).unwrap();
        let z = b.conv2d("second", x, conv).unwrap();
        let y = b.pool(z, window, Kind::Average { count_padding }).unwrap();
        let logits = b.linear("fc", y, 3).unwrap();
        if seen {
            b.output("z", z);
        }
        b.loss(logits, LossOptions::default()).unwrap();
        b.finish()
    }

    fn ops(graph: &Graph) -> String {
        graph.nodes.iter().map(|n| n.op.operator().name()).collect::<Vec<_>>().join(" ")
    }

    const HALF: Window = Window::Sliding { kernel: [2; 2], stride: [2; 2], padding: [0; 2], ceil: false };

    #[test]
    fn the_convolution_comes_last_in_both_directions() {
        let mut graph = graph(ConvOptions { k: 4, ..Default::default() }, HALF, false, false);
        let macs = graph.macs();
        graph.differentiate().unwrap();
        pool_first(&mut graph);
        assert_eq!(
            ops(&graph),
            "conv2d_fwd pool_avg_fwd conv2d_fwd linear_fwd cross_entropy_fwd cross_entropy_bwd linear_bwd_bias \
             linear_bwd_w linear_bwd_x conv2d_bwd_w conv2d_bwd_x pool_avg_bwd conv2d_bwd_w"
        );
        assert_eq!(macs - graph.macs(), 2 * 4 * 5 * (16 - 4), "a quarter of the pixels");
    }

    #[test]
    fn what_is_not_that_pattern_stays() {
        let conv = |kernel: usize, stride: usize, padding: usize, bias| {
            let [kernel, stride, padding] = [kernel, stride, padding].map(|extent| [extent; 2]);
            ConvOptions { k: 4, kernel, stride, padding, bias, ..Default::default() }
        };
        let padded = Window::Sliding { kernel: [2; 2], stride: [2; 2], padding: [1; 2], ceil: false };
        let same = Window::Sliding { kernel: [3; 2], stride: [1; 2], padding: [1; 2], ceil: false };
        for (what, options, window, count_padding, seen) in [
            ("a larger kernel", conv(3, 1, 1, false), HALF, false, false),
            ("a stride", conv(1, 2, 0, false), HALF, false, false),
            ("padding", conv(1, 1, 1, false), HALF, false, false),
            ("a bias", conv(1, 1, 0, true), HALF, false, false),
            ("padding that counts", conv(1, 1, 0, false), padded, true, false),
            ("as many pixels", conv(1, 1, 0, false), same, false, false),
            ("a result that the caller reads", conv(1, 1, 0, false), HALF, false, true),
        ] {
            for differentiate in [false, true] {
                let mut graph = graph(options, window, count_padding, seen);
                if differentiate {
                    graph.differentiate().unwrap();
                }
                let before = ops(&graph);
                pool_first(&mut graph);
                assert_eq!(ops(&graph), before, "{what}");
            }
        }
    }
}
