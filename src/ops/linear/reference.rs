//! The op in plain loops; on the CPU device it is a convolution.

use rayon::prelude::*;

use super::{conv2d, BwdBias, BwdW, BwdX, Fwd, Node, Pass};
use crate::device::threads;
use crate::ops::{HostIo, HostOp};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        threads::ensure();
        let [n, f, k] = self.linear.extents();
        match self.pass {
            Pass::Fwd(form) => {
                let Fwd { x, w, bias, y } = io.numbers(form);
                y.par_iter_mut().enumerate().for_each(|(i, y)| {
                    let (image, feature) = (i / k, i % k);
                    *y = bias.map_or(T::ZERO, |bias| bias[feature]);
                    for j in 0..f {
                        *y += x[image * f + j] * w[feature * f + j];
                    }
                });
            }
            Pass::BwdX => {
                let BwdX { dy, w, dx } = io.numbers(BwdX::default());
                dx.par_iter_mut().enumerate().for_each(|(i, dx)| {
                    *dx = (0..k).map(|feature| dy[i / f * k + feature] * w[feature * f + i % f]).sum();
                });
            }
            Pass::BwdW => {
                let BwdW { dy, x, dw } = io.numbers(BwdW::default());
                dw.par_iter_mut().enumerate().for_each(|(i, dw)| {
                    *dw = (0..n).map(|image| dy[image * k + i / f] * x[image * f + i % f]).sum();
                });
            }
            Pass::BwdBias => {
                let BwdBias { dy, dbias } = io.numbers(BwdBias::default());
                for (feature, dbias) in dbias.iter_mut().enumerate() {
                    *dbias = (0..n).map(|image| dy[image * k + feature]).sum();
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
    /// The layer as a 1x1 convolution of images of one pixel.
    fn as_pointwise(&self) -> conv2d::Node {
        self.as_conv(self.linear.conv.flattened())
    }
}
