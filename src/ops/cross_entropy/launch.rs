//! Which kernels, on what grid.

use super::{Bwd, Fwd, Node, Pass, Spec};
use crate::device::table::{entry, kernels, only};
use crate::device::{Cost, Launch, Target};
use crate::ops::strips::THREADS;
use crate::ops::{Io, Operator};
use crate::{Error, Result};

/// Shared memory: two numbers for each thread.
const SHARED: u32 = THREADS * 2 * 4;

/// `CrossEntropyFwd` of kernels/cross_entropy/cross_entropy.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CrossEntropyFwd {
    logits: u64,
    labels: u64,
    loss: u64,
    correct: u64,
    classes: u32,
    on: f32,
    everywhere: f32,
    unused: u32,
}

/// `CrossEntropyMean` of kernels/cross_entropy/cross_entropy.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CrossEntropyMean {
    row_loss: u64,
    row_correct: u64,
    loss: u64,
    correct: u64,
    n: u32,
    unused: u32,
}

/// `CrossEntropyBwd` of kernels/cross_entropy/cross_entropy.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CrossEntropyBwd {
    logits: u64,
    labels: u64,
    dlogits: u64,
    loss_scale: u64,
    classes: u32,
    on: f32,
    everywhere: f32,
    scale: f32,
}

kernels! {
    FWD: CrossEntropyFwd = "cross_entropy_fwd_*", SHARED;
    MEAN: CrossEntropyMean = "cross_entropy_mean_*", SHARED;
    BWD: CrossEntropyBwd = "cross_entropy_bwd_*", SHARED;
}

/// Forward: the loss of each image, and whether it was right.
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

/// N and K, where a grid and the kernels' counters hold them.
fn extents(spec: &Spec) -> Result<[u32; 2]> {
    match (i32::try_from(spec.n), i32::try_from(spec.classes)) {
        (Ok(n), Ok(classes)) => Ok([n as u32, classes as u32]),
        _ => Err(Error::unsupported("cross_entropy", format!("{} images of {} classes", spec.n, spec.classes))),
    }
}

fn fwd(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let Fwd { logits, labels, loss, correct } = io.bind(Fwd::default());
    let Some(scratch) = io.scratch else {
        return Err(Error::invalid(node.name(), "no scratch memory"));
    };
    let spec = &node.loss.spec;
    let [n, classes] = extents(spec)?;
    let rows = scratch.address();
    let rows_bytes = u64::from(n) * 8;
    let params = CrossEntropyFwd {
        logits: logits.view.address(),
        labels: labels.view.address(),
        loss: rows,
        correct: rows + rows_bytes / 2,
        classes,
        on: (1.0 - spec.smoothing) as f32,
        everywhere: (spec.smoothing / spec.classes as f64) as f32,
        unused: 0,
    };
    let cost = Cost { bytes_written: rows_bytes, ..node.cost(target.dtype) };
    let views = vec![logits.view.clone(), labels.view.clone(), scratch.clone()];
    // SAFETY: a block for each of the N rows of K logits, and two numbers for each in the scratch memory (`Io::check`).
    let fwd = unsafe { Launch::new(entry(target, &FWD)?, [n, 1, 1], &params, cost, views) };

    let params = CrossEntropyMean {
        row_loss: rows,
        row_correct: rows + rows_bytes / 2,
        loss: loss.view.address(),
        correct: correct.view.address(),
        n,
        unused: 0,
    };
    let cost = Cost { flops: 2 * u64::from(n), bytes_read: rows_bytes, bytes_written: 8 };
    let views = vec![scratch.clone(), loss.view.clone(), correct.view.clone()];
    // SAFETY: two numbers for each of N images in the scratch memory, one in each output (`Io::check`).
    let mean = unsafe { Launch::new(only(&MEAN), [1, 1, 1], &params, cost, views) };
    Ok(vec![fwd, mean])
}

fn bwd(node: &Node, form: Bwd, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let Bwd { logits, labels, loss_scale, dlogits } = io.bind(form);
    let spec = &node.loss.spec;
    let [n, classes] = extents(spec)?;
    let params = CrossEntropyBwd {
        logits: logits.view.address(),
        labels: labels.view.address(),
        dlogits: dlogits.view.address(),
        loss_scale: loss_scale.map_or(0, |scale| scale.view.address()),
        classes,
        on: (1.0 - spec.smoothing) as f32,
        everywhere: (spec.smoothing / spec.classes as f64) as f32,
        scale: (spec.grad_scale / spec.n as f64) as f32,
    };
    let views = io.inputs.iter().chain(io.outputs).map(|a| a.view.clone()).collect();
    let kernel = entry(target, &BWD)?;
    // SAFETY: a block for each of the N rows of K logits, and one loss scale or none, as large as the descriptor says
    // (`Io::check`).
    Ok(vec![unsafe { Launch::new(kernel, [n, 1, 1], &params, node.cost(target.dtype), views) }])
}
