//! The launches: kernels, grids and parameters.

use super::{Bwd, Fwd, Node, Pass, Spec};
use crate::device::table::{entry, kernels, only};
use crate::device::{Cost, Launch, Target};
use crate::ops::params::{narrow, params};
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

pub(super) fn launches(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    io.check(node, target)?;
    match node.pass {
        Pass::Fwd => fwd(node, target, io),
        Pass::Bwd(form) => bwd(node, form, target, io),
    }
}

/// The target of an image's own class, less that of the others, and the target of every class.
fn targets(spec: &Spec) -> [f32; 2] {
    [(1.0 - spec.smoothing) as f32, (spec.smoothing / spec.classes as f64) as f32]
}

fn fwd(node: &Node, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let Fwd { logits, labels, loss, correct } = io.bind(Fwd::default());
    let Some(scratch) = io.scratch else { return Err(Error::invalid(node.name(), "no scratch memory")) };
    let spec = &node.loss.spec;
    let ([n, classes], [on, everywhere]) = (narrow("cross_entropy", [spec.n, spec.classes])?, targets(spec));
    let rows_bytes = u64::from(n) * 8;
    let (row_loss, row_correct) = (scratch.address(), scratch.address() + rows_bytes / 2);
    let params = CrossEntropyFwd {
        logits: logits.address(),
        labels: labels.address(),
        loss: row_loss,
        correct: row_correct,
        classes,
        on,
        everywhere,
        unused: 0,
    };
    let cost = Cost { bytes_written: rows_bytes, ..node.cost(target.dtype) };
    let views = vec![logits.view.clone(), labels.view.clone(), scratch.clone()];
    // SAFETY: one block per row of K logits, and two numbers per row in the scratch memory (`Io::check`).
    let fwd = unsafe { Launch::new(entry(target, &FWD)?, [n, 1, 1], &params, cost, views) };

    let views = vec![scratch.clone(), loss.view.clone(), correct.view.clone()];
    let [loss, correct] = [loss, correct].map(Arg::address);
    let params = CrossEntropyMean { row_loss, row_correct, loss, correct, n, unused: 0 };
    let cost = Cost { flops: 2 * u64::from(n), bytes_read: rows_bytes, bytes_written: 8 };
    // SAFETY: two numbers per image in the scratch memory, and one in each output (`Io::check`).
    let mean = unsafe { Launch::new(only(&MEAN), [1, 1, 1], &params, cost, views) };
    Ok(vec![fwd, mean])
}

fn bwd(node: &Node, form: Bwd, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
    let Bwd { logits, labels, loss_scale, dlogits } = io.bind(form);
    let spec = &node.loss.spec;
    let ([n, classes], [on, everywhere]) = (narrow("cross_entropy", [spec.n, spec.classes])?, targets(spec));
    let [logits, labels, dlogits] = [logits, labels, dlogits].map(Arg::address);
    let (loss_scale, scale) = (loss_scale.map_or(0, Arg::address), (spec.grad_scale / spec.n as f64) as f32);
    let params = CrossEntropyBwd { logits, labels, dlogits, loss_scale, classes, on, everywhere, scale };
    let kernel = entry(target, &BWD)?;
    // SAFETY: one block per row of K logits; the views hold logits, labels and the loss scale, if any (`Io::check`).
    Ok(vec![unsafe { Launch::new(kernel, [n, 1, 1], &params, node.cost(target.dtype), io.views()) }])
}
