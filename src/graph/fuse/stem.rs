//! Images with a pixel stride of four elements, so that the stem's kernels can use vector loads.
//!
//! ```text
//! x[N,H,W,3]   ->  x is the first three channels of an x'[N,H,W,4]
//! ```
//!
//! Legal for an input that only convolutions read. Saves time, not bytes: loads of 8 or 16 bytes replace loads of one
//! element, and x grows by a third. Before `norms`, which may add readers.

use super::index::{Index, Reader};
use super::{Fused, Place};
use crate::graph::Origin;
use crate::ops::Op;
use crate::tensor::{Elem, TensorType};

/// The pixel stride of a padded input. Elements beyond its channels are zeros.
const PIXEL: usize = 4;

/// Pads the inputs that only convolutions read: each becomes a slice of a tensor of four channels.
pub(super) fn pad_inputs(fused: &mut Fused) {
    let index = Index::new(&fused.graph, &fused.views);
    for (_, x) in fused.graph.inputs.clone() {
        let ty = fused.graph.ty(x).clone();
        let (Elem::Real, &[n, h, w, c]) = (ty.elem, ty.shape.dims()) else { continue };
        let pads = |r: &Reader| r.operand == "x" && matches!(fused.graph.nodes[r.node].op, Op::Conv2d(_));
        if c >= PIXEL || !index.is_alone(x) || index.is_output(x) || !index.readers(x).iter().all(pads) {
            continue;
        }
        let root = fused.graph.add_value(TensorType::real([n, h, w, PIXEL]), Origin::Input);
        fused.views.resize(fused.graph.values.len(), None);
        fused.views[x.index()] = Some(Place { root, channel: 0 });
    }
}
