//! Concatenation without copies: the parts are slices of the whole.
//!
//! ```text
//! x = f(..)  y = concat(a, x)   ->  y[.., a's channels..] = f(..)
//! da, dx = split(dy)            ->  da and dx are slices of dy
//! ```
//!
//! Legal, op by op in execution order, if
//!
//! ```text
//! fwd  x is written only before the concatenation, and y only by it: neither changes later
//! bwd  dy is written only before the split and not read after it: from then on its memory is dx's
//! ```
//!
//! and if neither x nor dx is a part of a second whole or a tensor of the caller (an input, an output, a parameter or
//! its gradient: these are dense). Other parts are copied. `autodiff` concatenates only values and splits only
//! gradients.
//!
//! Saves, forward and backward, writing and reading each part once more: 2 accesses per element of the whole. After
//! `accumulate`, so that all writers of a gradient are known.
//!
//! The producer of x writes with y's pixel stride, and ops that add to dx add to dy's memory. Wholes that are parts
//! themselves resolve to one root: a dense block is one buffer, and its gradient another, to which every layer adds the
//! gradient of the channels that it read.

use super::index::Index;
use crate::graph::{Graph, Node, Origin, ValueId};
use crate::ops::{concat, Op};
use crate::tensor::Elem;

/// The place of a slice: channels `channel..` of every pixel of `root`, which has memory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::graph) struct Place {
    pub root: ValueId,
    pub channel: usize,
}

/// Makes slices of parts and removes the ops whose parts are all slices. Returns the place of each slice.
pub(super) fn in_place(graph: &mut Graph) -> Vec<Option<Place>> {
    let views = places(graph);
    let lies_in = |part: ValueId, whole: ValueId, at: usize| {
        let of = |v: ValueId| views[v.index()].unwrap_or(Place { root: v, channel: 0 });
        of(part) == Place { channel: of(whole).channel + at, ..of(whole) }
    };
    graph.nodes.retain(|node| match &node.op {
        Op::Concat(op) => {
            let (whole, parts) = sides(op, node);
            !op.concat.offsets().into_iter().zip(parts).all(|(at, part)| lies_in(part, whole, at))
        }
        _ => true,
    });
    views
}

/// The whole and the parts of a concatenation or a split.
fn sides(op: &concat::Node, node: &Node) -> (ValueId, Vec<ValueId>) {
    match op.pass {
        concat::Pass::Fwd => {
            let concat::Fwd { x, y } = node.bind(op.concat.joins());
            (y.value, x)
        }
        concat::Pass::Bwd => {
            let concat::Bwd { dy, dx } = node.bind(op.concat.splits());
            (dy, dx.into_iter().map(|part| part.value).collect())
        }
    }
}

/// For each value, true if it must be dense: a tensor of the caller, or one that an op does not take as images.
fn dense(graph: &Graph) -> Vec<bool> {
    let mut dense: Vec<bool> =
        graph.values.iter().map(|v| v.origin != Origin::Node || v.ty.elem != Elem::Real).collect();
    for node in &graph.nodes {
        let types = node.op.operator().inputs().into_iter().chain(node.op.operator().outputs());
        for (v, ty) in node.inputs.iter().chain(&node.outputs).zip(types) {
            dense[v.index()] |= ty.shape.dims().len() != 4;
        }
    }
    let gradients = graph.parameters.iter().filter_map(|p| p.grad);
    graph.outputs.iter().map(|&(_, v)| v).chain(gradients).for_each(|v| dense[v.index()] = true);
    dense
}

/// The place of each value that can be a slice.
fn places(graph: &Graph) -> Vec<Option<Place>> {
    let (index, dense) = (Index::new(graph, &[]), dense(graph));
    // The whole of each part that can be a slice, and the part's first channel in it.
    let mut parent: Vec<Option<(ValueId, usize)>> = vec![None; graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        let Op::Concat(op) = &node.op else { continue };
        let (whole, parts) = sides(op, node);
        let is_owned = graph.values[whole.index()].origin == Origin::Node;
        let before = |v: ValueId| index.writers(v).iter().all(|&at| at < i);
        let read_last = index.readers(whole).last().is_some_and(|r| r.node == i) && !index.is_output(whole);
        for (channel, part) in op.concat.offsets().into_iter().zip(parts) {
            let unchanged = match op.pass {
                concat::Pass::Fwd => index.writers(whole) == [i] && before(part),
                concat::Pass::Bwd => before(whole) && read_last && index.writers(part).first() == Some(&i),
            };
            if parent[part.index()].is_none() && is_owned && !dense[part.index()] && unchanged {
                parent[part.index()] = Some((whole, channel));
            }
        }
    }
    let mut resolved = vec![None; parent.len()];
    (0..parent.len()).for_each(|i| resolve(ValueId(i as u32), &parent, &mut resolved));
    resolved
}

/// Resolves `value` and the wholes in which it lies.
fn resolve(value: ValueId, parent: &[Option<(ValueId, usize)>], resolved: &mut [Option<Place>]) {
    let mut chain = Vec::new();
    let mut at = value;
    while let (None, Some((whole, channel))) = (resolved[at.index()], parent[at.index()]) {
        chain.push((at, channel));
        at = whole;
    }
    let mut place = resolved[at.index()].unwrap_or(Place { root: at, channel: 0 });
    for (part, channel) in chain.into_iter().rev() {
        place.channel += channel;
        resolved[part.index()] = Some(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Builder, ConvOptions, LossOptions, Mode};
    use crate::ops::pool::{Kind, Window};

    fn conv(b: &mut Builder, name: &str, x: ValueId, k: usize) -> ValueId {
        b.conv2d(name, x, ConvOptions { k, ..Default::default() }).unwrap()
    }

    /// Appends a classifier of `x` and differentiates.
    fn differentiated(mut b: Builder, x: ValueId) -> Graph {
        let x = b.pool(x, Window::Adaptive([1; 2]), Kind::Average { count_padding: false }).unwrap();
        let logits = b.linear("fc", x, 3).unwrap();
        b.loss(logits, LossOptions::default()).unwrap();
        let mut graph = b.finish();
        graph.differentiate().unwrap();
        graph
    }

    fn count(graph: &Graph, name: &str) -> usize {
        graph.nodes.iter().filter(|n| n.op.operator().name() == name).count()
    }

    fn at(root: ValueId, channel: usize) -> Option<Place> {
        Some(Place { root, channel })
    }

    #[test]
    fn a_dense_block_is_one_buffer() {
        let mut b = Builder::new(Mode::Train);
        let x = b.input("input", [2, 4, 4, 3]);
        let first = conv(&mut b, "first", x, 5);
        let (mut whole, mut wholes, mut new) = (first, vec![first], vec![first]);
        for i in 0..3 {
            new.push(conv(&mut b, &format!("layer{i}"), whole, 2));
            whole = b.concat(&[whole, new[i + 1]]).unwrap();
            wholes.push(whole);
        }
        let mut graph = differentiated(b, whole);
        super::super::accumulate::in_place(&mut graph);
        assert_eq!((count(&graph, "concat_fwd"), count(&graph, "concat_bwd"), count(&graph, "sum_fwd")), (3, 3, 0));
        let views = in_place(&mut graph);
        assert_eq!((count(&graph, "concat_fwd"), count(&graph, "concat_bwd")), (0, 0));
        for (i, channel) in [0, 5, 7, 9].into_iter().enumerate() {
            assert_eq!(views[new[i].index()], at(whole, channel), "new channels {i}");
        }
        assert!(wholes[..3].iter().all(|v| views[v.index()] == at(whole, 0)), "{views:?}");
        let slices: Vec<Place> = views.iter().flatten().copied().filter(|view| view.root != whole).collect();
        let gradient = slices[0].root;
        assert!(slices.iter().all(|view| view.root == gradient), "{slices:?}");
        let mut channels: Vec<usize> = slices.iter().map(|view| view.channel).collect();
        channels.sort_unstable();
        assert_eq!(channels, [0, 0, 0, 5, 7, 9], "three prefixes and three gradients of new channels");
    }

    #[test]
    fn what_must_be_dense_or_is_taken_is_copied() {
        let mut b = Builder::new(Mode::Infer);
        let x = b.input("input", [2, 4, 4, 3]);
        let (seen, twice, free) = (conv(&mut b, "seen", x, 2), conv(&mut b, "twice", x, 2), conv(&mut b, "free", x, 2));
        b.output("seen", seen);
        let y = b.concat(&[x, seen, twice, twice, free]).unwrap();
        let z = b.concat(&[free, twice]).unwrap();
        b.output("y", y);
        b.output("z", z);
        let mut graph = b.finish();
        let views = in_place(&mut graph);
        assert_eq!(count(&graph, "concat_fwd"), 2);
        let of = |v: ValueId| views[v.index()];
        assert_eq!([x, seen, twice, free].map(of), [None, None, at(y, 5), at(y, 9)]);
        assert_eq!([y, z].map(of), [None, None]);
    }

    /// Even if nothing reads it then.
    #[test]
    fn a_whole_that_changes_later_is_copied() {
        for name in ["concat_fwd", "concat_bwd"] {
            let mut b = Builder::new(Mode::Train);
            let x = b.input("input", [2, 4, 4, 3]);
            let (first, second) = (conv(&mut b, "first", x, 4), conv(&mut b, "second", x, 2));
            let y = b.concat(&[first, second]).unwrap();
            let mut graph = differentiated(b, y);
            let node = graph.nodes.iter().find(|n| n.op.operator().name() == name).unwrap();
            let Op::Concat(op) = &node.op else { panic!("{name} concatenates") };
            let (whole, _) = sides(op, node);
            assert!(in_place(&mut graph.clone()).iter().flatten().any(|view| view.root == whole), "{name}");
            let mut writer = graph.nodes.iter().find(|n| n.outputs == [whole]).unwrap().clone();
            writer.inputs.fill(x);
            graph.nodes.push(writer);
            assert!(in_place(&mut graph).iter().flatten().all(|view| view.root != whole), "{name}");
        }
    }

    /// The other branch of the sum reads it after the split.
    #[test]
    fn a_gradient_that_is_read_again_is_copied() {
        let mut b = Builder::new(Mode::Train);
        let x = b.input("input", [2, 4, 4, 3]);
        let first = conv(&mut b, "first", x, 4);
        let branch = conv(&mut b, "branch", first, 6);
        let part = conv(&mut b, "part", first, 2);
        let whole = b.concat(&[first, part]).unwrap();
        let y = b.add(branch, whole).unwrap();
        let mut graph = differentiated(b, y);
        super::super::accumulate::in_place(&mut graph);
        let views = in_place(&mut graph);
        assert_eq!((count(&graph, "concat_fwd"), count(&graph, "concat_bwd")), (0, 1));
        assert_eq!(views[part.index()], at(whole, 4));
        assert_eq!(views.iter().flatten().filter(|view| view.root != whole).count(), 0);
    }
}
