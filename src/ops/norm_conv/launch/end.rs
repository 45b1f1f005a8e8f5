//! The end of a block and the convolution of it.

use super::params::EndParams;
use super::{forward, launch_end, Call};
use crate::device::{Cost, Launch};
use crate::ops::conv2d::launch::bind::Matrix;
use crate::ops::conv2d::launch::choose::{x_dims, Plan, Problem};
use crate::ops::conv2d::launch::product::{address, output, Extras};
use crate::ops::norm::sign_bytes;
use crate::ops::norm_conv::allows_end;
use crate::ops::Operator;
use crate::{Error, Result};

impl Call<'_> {
    pub(super) fn fwd_end(&mut self, problem: Problem, plan: Plan, affine: [bool; 2]) -> Result<Vec<Launch>> {
        let (conv, elem) = (self.node.conv, self.dtype.bytes());
        let ([rows, channels], name) = (x_dims(&conv), self.node.name());
        if !allows_end(&conv) {
            return Err(Error::unsupported(format!("{name} of {:?}", conv.spec()), "see `allows_end`"));
        }
        let b = self.pixels("b", [rows, channels], elem)?;
        let [a_scale, a_shift] =
            [self.numbers(affine[0], "a_scale", channels)?, self.numbers(affine[0], "a_shift", channels)?];
        let [b_scale, b_shift] =
            [self.numbers(affine[1], "b_scale", channels)?, self.numbers(affine[1], "b_shift", channels)?];
        let z = Matrix::pixels("z", output(self.io, name, 3)?, [rows, channels], elem)?;
        let signs = Matrix::pixels("signs", output(self.io, name, 4)?, [rows, sign_bytes(channels)], 1)?;
        let mut bound = self.bound(problem, plan, [0, 1], 0, Extras::default())?;
        bound.beside.x = self.read.clone();
        bound.beside.x.push(z);
        if !bound.is_fast() {
            return Err(Error::unsupported(
                format!("{name} of unaligned operands"),
                "a, b, z and w take 16-byte accesses",
            ));
        }
        let (tiles, bytes) = self.tiles(&bound, plan)?;
        let params = EndParams {
            forward: forward(&bound, &([a_scale, a_shift], 0), &tiles)?,
            b: address(b),
            b_scale: address(b_scale),
            b_shift: address(b_shift),
            z: z.address(),
            signs: signs.address(),
            b_stride: b.map_or(0, |b| b.stride()),
            z_stride: z.stride(),
            signs_stride: signs.stride(),
            unused: 0,
        };
        let cost = Self::cost(&bound, &self.read, bytes + z.bytes() as usize + signs.bytes() as usize);
        let cost = cost + Cost { flops: self.node.flops() - 2 * conv.macs(), ..Cost::default() };
        let mut views = Self::views(&bound, &self.read, tiles.first());
        views.extend([z, signs].map(|m| m.view.clone()));
        let kernel = &bound.formed().variant.kernel;
        let first = launch_end(kernel, bound.grid()?, &params, cost, views);
        self.measured(first, &bound, plan, &tiles)
    }
}
