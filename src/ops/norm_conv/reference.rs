//! The op in plain loops: conv2d's on copies of what it loads, then what is done to its result.
//!
//! Unlike others it knows `accumulate`: what bwd_x does after the addition is not a sum.

use super::{Node, Pass};
use crate::ops::batch_norm::mean_of;
use crate::ops::norm::{sign_bytes, Correction, Epilogue, Prologue};
use crate::ops::{block_end, conv2d};
use crate::ops::{HostIo, HostMut, HostOp, HostRef, Write};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        let next = if matches!(self.pass, Pass::Bwd { .. }) { 3 } else { 2 };
        let mut inputs = Inputs { all: &io.inputs, next };
        let [first, second] = [0, 1].map(|i| io.inputs[i].real());
        let spec = self.conv.spec();
        match self.pass {
            Pass::Fwd { prologue, epilogue, moments } => {
                let x = activated(first, prologue, &mut inputs, spec.c);
                let rest = inputs.all[inputs.next..].iter().map(|i| i.real());
                let operands: Vec<&[T]> = [&x, second].into_iter().chain(rest).collect();
                convolve(self, conv2d::Pass::Fwd(epilogue), &operands, io.outputs[0].real());
                if moments {
                    let [y, mean, var] = io.reals();
                    measure(y, mean, var);
                }
            }
            Pass::FwdEnd { affine } => {
                let end = block_end::Node {
                    shape: self.x_shape(),
                    affine,
                    activated: [false; 2],
                    gated: false,
                    relu: true,
                    signs: true,
                };
                let (measured, ends) = io.outputs.split_at_mut(3);
                let [z, signs] = ends else { panic!("the end of the block and its signs") };
                let (z, signs) = (z.real(), signs.byte());
                let operands = io.inputs.iter().enumerate().filter(|&(i, _)| i != 1).map(|(_, &input)| input);
                end.reference(&mut HostIo {
                    inputs: operands.collect(),
                    outputs: vec![HostMut::Real(&mut *z), HostMut::Byte(signs)],
                    writes: vec![Write::Overwrite; 2],
                    scratch: &mut [],
                });
                let [y, mean, var] = measured else { panic!("y and its moments") };
                convolve(self, conv2d::Pass::Fwd(conv2d::Epilogue::default()), &[z, second], y.real());
                measure(y.real(), mean.real(), var.real());
            }
            Pass::BwdX { correction, epilogue } => {
                let dy = corrected(first, correction, &mut inputs, spec.k);
                let mut dx = vec![T::ZERO; self.conv.x().shape.len()];
                convolve(self, conv2d::Pass::BwdX, &[&dy, second], &mut dx);
                let rest = &inputs.all[inputs.next..];
                let accumulate = io.writes[0] == Write::Accumulate;
                let mut outputs: Vec<&mut [T]> = io.outputs.iter_mut().map(HostMut::real).collect();
                finish(epilogue, rest, dx, accumulate, spec.c, &mut outputs);
            }
            Pass::BwdW { correction, prologue } => {
                let dy = corrected(first, correction, &mut inputs, spec.k);
                let x = activated(second, prologue, &mut inputs, spec.c);
                convolve(self, conv2d::Pass::BwdW, &[&dy, &x], io.outputs[0].real());
            }
            Pass::Bwd { correction, prologue, epilogue } => {
                let dy = corrected(first, correction, &mut inputs, spec.k);
                let x = activated(inputs.all[2].real(), prologue, &mut inputs, spec.c);
                let mut dx = vec![T::ZERO; self.conv.x().shape.len()];
                convolve(self, conv2d::Pass::BwdX, &[&dy, second], &mut dx);
                let mut dw = vec![T::ZERO; self.conv.w_shape().iter().product()];
                convolve(self, conv2d::Pass::BwdW, &[&dy, &x], &mut dw);
                let rest = &inputs.all[inputs.next..];
                let [dx_added, dw_added] = [0, 1].map(|i| io.writes[i] == Write::Accumulate);
                let mut outputs: Vec<&mut [T]> = io.outputs.iter_mut().map(HostMut::real).collect();
                let to = outputs.remove(1);
                to.iter_mut().zip(dw).for_each(|(to, v)| *to = if dw_added { *to + v } else { v });
                finish(epilogue, rest, dx, dx_added, spec.c, &mut outputs);
            }
        }
    }
}

/// The inputs behind the first two, in order.
struct Inputs<'a, 'b, T> {
    all: &'b [HostRef<'a, T>],
    next: usize,
}

impl<'b, T: Real> Inputs<'_, 'b, T> {
    fn take(&mut self) -> &'b [T] {
        self.next += 1;
        self.all[self.next - 1].real()
    }
}

fn convolve<T: Real>(node: &Node, pass: conv2d::Pass, inputs: &[&[T]], out: &mut [T]) {
    let conv = conv2d::Node { conv: node.conv, pass };
    conv.reference(&mut HostIo {
        inputs: inputs.iter().map(|i| HostRef::Real(i)).collect(),
        outputs: vec![HostMut::Real(out)],
        writes: vec![Write::Overwrite],
        scratch: &mut [],
    });
}

fn activated<T: Real>(x: &[T], prologue: Option<Prologue>, inputs: &mut Inputs<'_, '_, T>, channels: usize) -> Vec<T> {
    let Some(Prologue { relu }) = prologue else { return x.to_vec() };
    let (scale, shift) = (inputs.take(), inputs.take());
    let z = x.iter().enumerate().map(|(i, &x)| x * scale[i % channels] + shift[i % channels]);
    z.map(|z| if relu { z.maximum(T::ZERO) } else { z }).collect()
}

fn corrected<T: Real>(
    g: &[T],
    correction: Option<Correction>,
    inputs: &mut Inputs<'_, '_, T>,
    channels: usize,
) -> Vec<T> {
    let Some(Correction { a }) = correction else { return g.to_vec() };
    let y = inputs.take();
    let a = a.then(|| inputs.take());
    let (b, c) = (inputs.take(), inputs.take());
    let at = |i: usize, g: T| {
        let k = i % channels;
        a.map_or(T::ONE, |a| a[k]) * g + b[k] * y[i] + c[k]
    };
    g.iter().enumerate().map(|(i, &g)| at(i, g)).collect()
}

/// The mean and the biased variance of each channel of y.
fn measure<T: Real>(y: &[T], mean: &mut [T], var: &mut [T]) {
    let (channels, count) = (mean.len(), (y.len() / mean.len()) as f64);
    for k in 0..channels {
        let channel = || y.iter().skip(k).step_by(channels).map(|v| v.to_f64());
        let mu = mean_of(channel, count);
        mean[k] = T::from_f64(mu);
        var[k] = T::from_f64(channel().map(|v| (v - mu) * (v - mu)).sum::<f64>() / count);
    }
}

/// What the epilogue does to `dx`; `outputs` are dx and its sums.
fn finish<T: Real>(
    epilogue: Option<Epilogue>,
    operands: &[HostRef<'_, T>],
    mut dx: Vec<T>,
    accumulate: bool,
    channels: usize,
    outputs: &mut [&mut [T]],
) {
    let Some((out, sums)) = outputs.split_first_mut() else { return };
    let scaled = matches!(epilogue, Some(Epilogue::Affine { scaled: true, .. }));
    if accumulate && !scaled {
        dx.iter_mut().zip(out.iter()).for_each(|(v, &old)| *v += old);
    }
    // The batch norms whose sums are left: y and its mean.
    let mut norms: Vec<(&[T], &[T])> = Vec::new();
    let mut scale: &[T] = &[];
    match epilogue {
        None => {}
        Some(Epilogue::Affine { relu, .. }) => {
            let [y, by, shift, mean] = [0, 1, 2, 3].map(|i| operands[i].real());
            (norms, scale) = (vec![(y, mean)], by);
            for (i, v) in dx.iter_mut().enumerate().filter(|_| relu) {
                if y[i] * scale[i % channels] + shift[i % channels] <= T::ZERO {
                    *v = T::ZERO;
                }
            }
        }
        Some(Epilogue::Signs { norms: count, .. }) => {
            let HostRef::Byte(bits) = &operands[0] else { panic!("the signs are bytes") };
            norms.extend((0..count).map(|i| (operands[1 + 2 * i].real(), operands[2 + 2 * i].real())));
            for (i, v) in dx.iter_mut().enumerate() {
                let (pixel, c) = (i / channels, i % channels);
                if bits[pixel * sign_bytes(channels) + c / 8] >> (c % 8) & 1 == 0 {
                    *v = T::ZERO;
                }
            }
        }
    }
    let closed = epilogue.is_some_and(|e| e.is_gated()) && operands[operands.len() - 1].real()[0] == T::ZERO;
    for (i, sum) in sums.iter_mut().enumerate() {
        sum.fill(T::ZERO);
        if closed && i == 1 {
            continue;
        }
        for (at, &v) in dx.iter().enumerate() {
            let c = at % channels;
            sum[c] += if i == 0 { v } else { v * (norms[i - 1].0[at] - norms[i - 1].1[c]) };
        }
    }
    for (i, (out, v)) in out.iter_mut().zip(dx).enumerate() {
        *out = match scaled {
            false => v,
            true if accumulate => *out + scale[i % channels] * v,
            true => scale[i % channels] * v,
        };
    }
}
