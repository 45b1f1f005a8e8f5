//! The launches: kernels, grids and parameters.

use super::{Bwd, Fwd, Node, Pass, Spec};
use crate::device::table::{entry, kernels, only};
use crate::device::{Cost, Launch, Target};
use crate::ops::params::params;
use crate::ops::strips::THREADS;
use crate::ops::{Arg, Io, Operator};
use crate::{Error, Result};

/// Bytes of shared memory: two numbers per thread.
const SHARED: u32 = THREADS * 2 * 4;

params! {
    /// `CrossEntropyFwd` of kernels/cross_entropy/cross_entropy.cu.
    struct CrossEntropyFwd {
        logits: u64, labels: u64, loss: u64, correct: u64,
        classes: u32, on: f32, everywhere: f32, unused: u32,
    }

    /// `CrossEntropyMean` of kernels/cross_entropy/cross_entropy.cu.
    struct CrossEntropyMean { row_loss: u64, row_correct: u64, loss: u64, correct: u64, n: u32, unused: u32 }

    /// `CrossEntropyBwd` of kernels/cross_entropy/cross_entropy.cu.
    struct CrossEntropyBwd {
        logits: u64, labels: u64, dlogits: u64, loss_scale: u64,
        classes: u32, on: f32, everywhere: f32, scale: f32,
    }
}

kernels! {
    FWD: CrossEntropyFwd = "cross_entropy_fwd_*", SHARED;
    MEAN: CrossEntropyMean = "cross_entropy_mean_*", SHARED;
    BWD: CrossEntropyBwd = "cross_entropy_bwd_*", SHARED;
}

/// Forward: the loss of each image, and 1 if it is right.
pub(super) fn scratch_bytes(node: &Node, _target: Target) -> usize {
    match node.pass {
        Pass::Fwd => 2 * node.loss.spec.n * size_of::<f32>(),
        Pass::Bwd(_) => 0,
    }
}

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    match node.pass {
        Pass::Fwd => fwd(node, target, io),
        Pass::Bwd(form) => bwd(node, form, target, io),
    }
}

/// N and K, if they fit the grid and the kernels' counters.
fn extents(spec: &Spec) -> Result<[u32; 2]> {
    match (i32::try_from(spec.n), i32::try_from(spec.classes)) {
        (Ok(n), Ok(classes)) => Ok([n as u32, classes as u32]),
        _ => Err(Error::unsupported("cross_entropy", format!("{} images of {} classes", spec.n, spec.classes))),
    }
}

fn fwd(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let Fwd { logits, labels, loss, correct } = io.bind(Fwd::default());
    let Some(scratch) = io.scratch else { return Err(Error::invalid(node.name(), "no scratch memory")) };
    let spec = &node.loss.spec;
    let [n, classes] = extents(spec)?;
    let rows = scratch.address();
    let rows_bytes = u64::from(n) * 8;
    let params = CrossEntropyFwd {
        logits: logits.address(),
        labels: labels.address(),
        loss: rows,
        correct: rows + rows_bytes / 2,
        classes,
        on: (1.0 - spec.smoothing) as f32,
        everywhere: (spec.smoothing / spec.classes as f64) as f32,
        unused: 0,
    };
    let cost = Cost { bytes_written: rows_bytes, ..node.cost(target.dtype) };
    let views = vec![logits.view.clone(), labels.view.clone(), scratch.clone()];
    // SAFETY: one block per row of K logits, and two numbers per row in the scratch memory (`Io::check`).
    let fwd = unsafe { Launch::new(entry(target, &FWD)?, [n, 1, 1], &params, cost, views) };

    let params = CrossEntropyMean {
        row_loss: rows,
        row_correct: rows + rows_bytes / 2,
        loss: loss.address(),
        correct: correct.address(),
        n,
        unused: 0,
    };
    let cost = Cost { flops: 2 * u64::from(n), bytes_read: rows_bytes, bytes_written: 8 };
    let views = vec![scratch.clone(), loss.view.clone(), correct.view.clone()];
    // SAFETY: two numbers per image in the scratch memory, and one in each output (`Io::check`).
    let mean = unsafe { Launch::new(only(&MEAN), [1, 1, 1], &params, cost, views) };
    Ok(vec![fwd, mean])
}

fn bwd(node: &Node, form: Bwd, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let Bwd { logits, labels, loss_scale, dlogits } = io.bind(form);
    let spec = &node.loss.spec;
    let [n, classes] = extents(spec)?;
    let params = CrossEntropyBwd {
        logits: logits.address(),
        labels: labels.address(),
        dlogits: dlogits.address(),
        loss_scale: loss_scale.map_or(0, Arg::address),
        classes,
        on: (1.0 - spec.smoothing) as f32,
        everywhere: (spec.smoothing / spec.classes as f64) as f32,
        scale: (spec.grad_scale / spec.n as f64) as f32,
    };
    let kernel = entry(target, &BWD)?;
    // SAFETY: one block per row of K logits; the views hold logits, labels and the loss scale, if any (`Io::check`).
    Ok(vec![unsafe { Launch::new(kernel, [n, 1, 1], &params, node.cost(target.dtype), io.views()) }])
}
