//! The op in plain loops.

use rayon::prelude::*;

use super::{conv2d, Node, Pass};
use crate::device::threads;
use crate::ops::{HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        threads::ensure();
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

    fn host(&self, io: &mut HostIo<'_, T>) {
        HostOp::<T>::host(&self.as_pointwise(), io);
    }

    fn host_scratch(&self) -> usize {
        HostOp::<T>::host_scratch(&self.as_pointwise())
    }
}

impl Node {
    /// The same sums as a 1x1 convolution over images of one pixel.
    fn as_pointwise(&self) -> conv2d::Node {
        let pass = match self.pass {
            Pass::Fwd { bias } => conv2d::Pass::Fwd(conv2d::Epilogue { shift: bias, ..Default::default() }),
            Pass::BwdX => conv2d::Pass::BwdX,
            Pass::BwdW => conv2d::Pass::BwdW,
            Pass::BwdBias => conv2d::Pass::BwdBias,
        };
        conv2d::Node { conv: self.linear.conv.flattened(), pass }
    }
}
