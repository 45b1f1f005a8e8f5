//! The op in plain loops.

use rayon::prelude::*;

use super::{Node, Pass};
use crate::ops::{HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        let [n, f, k] = self.linear.extents();
        let (a, b) = (io.inputs[0].real(), io.inputs.get(1).map(|b| b.real()).unwrap_or_default());
        let bias = io.inputs.get(2).map(|bias| bias.real());
        let [out] = io.reals();
        match self.pass {
            Pass::Fwd { .. } => out.par_iter_mut().enumerate().for_each(|(i, y)| {
                let (image, feature) = (i / k, i % k);
                *y = bias.map_or(T::ZERO, |bias| bias[feature]);
                for j in 0..f {
                    *y += a[image * f + j] * b[feature * f + j];
                }
            }),
            Pass::BwdX => out.par_iter_mut().enumerate().for_each(|(i, dx)| {
                *dx = (0..k).map(|feature| a[i / f * k + feature] * b[feature * f + i % f]).sum();
            }),
            Pass::BwdW => out.par_iter_mut().enumerate().for_each(|(i, dw)| {
                *dw = (0..n).map(|image| a[image * k + i / f] * b[image * f + i % f]).sum();
            }),
            Pass::BwdBias => {
                for (feature, dbias) in out.iter_mut().enumerate() {
                    *dbias = (0..n).map(|image| a[image * k + feature]).sum();
                }
            }
        }
    }
}
