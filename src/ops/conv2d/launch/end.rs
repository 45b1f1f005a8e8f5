//! The end of a residual block, and the convolution that loads it.

use super::bind::{Factors, Matrix};
use super::choose::x_dims;
use super::fused::params::EndParams;
use super::loads::{forward, Reader};
use super::passes::Run;
use super::product::{address, Extras};
use crate::device::{Cost, Launch};
use crate::ops::conv2d::Fwd;
use crate::ops::load::Load;
use crate::ops::store::sign_bytes;
use crate::ops::{Arg, Operator};
use crate::{Error, Result};

impl<'a> Run<'a> {
    pub fn fwd_end(&self, call: Fwd<&'a Arg, &'a Arg>) -> Result<Vec<Launch>> {
        let (conv, elem, name) = (&self.node.conv, self.target.dtype.bytes(), self.node.name());
        let [rows, channels] = x_dims(conv);
        let plain = call.epilogue.is_plain() && conv.can_load_sum();
        let (Fwd { x, w, y, moments: Some(moments), end: Some(end), .. }, true) = (call, plain) else {
            let reason = "see `Conv2d::can_load_sum`; it stores the end and moments, without an epilogue";
            return Err(Error::unsupported(format!("{name} of {:?}", conv.spec()), reason));
        };
        let Load::Sum { own, other, others } = x.load else { unreachable!("the end of a block is a sum") };
        let mut reader = Reader::default();
        let other = reader.pixels("the other operand", other, [rows, channels], elem)?;
        let (own, others) = (reader.affine(own, channels)?, reader.affine(others, channels)?);
        let z = Matrix::pixels("z", end.z, [rows, channels], elem)?;
        let signs = Matrix::pixels("signs", end.signs, [rows, sign_bytes(channels)], 1)?;
        let factors = Factors { a: x.value, b: w, out: y };
        let mut bound = self.bound(self.problem, self.plan, factors, Extras::default())?;
        bound.beside.x = reader.read.iter().copied().chain([z]).collect();
        if !bound.is_fast() {
            let reason = "both operands, z and w take 16-byte accesses";
            return Err(Error::unsupported(format!("{name} of unaligned operands"), reason));
        }
        let (tiles, grid) = (self.tiles(&bound)?, bound.grid()?);
        let params = EndParams {
            forward: forward(&bound, &own, &tiles.views)?,
            other: other.address(),
            other_scale: address(others.scale),
            other_shift: address(others.shift),
            z: z.address(),
            signs: signs.address(),
            other_stride: other.stride(),
            z_stride: z.stride(),
            signs_stride: signs.stride(),
            unused: 0,
        };
        let (flops, bytes_written) = (self.node.flops() - 2 * conv.macs(), z.bytes() + signs.bytes());
        let cost = Self::cost(&bound, &reader.read, &tiles) + Cost { flops, bytes_read: 0, bytes_written };
        let mut views = Self::views(&bound, &reader.read, &tiles);
        views.extend([z, signs].map(|m| m.view.clone()));
        let kernel = &bound.formed().variant.kernel;
        // SAFETY: the rows of the table END take EndParams; every matrix was checked to lie in its view and to allow
        // the kernel's accesses, the tiles' moments in the scratch memory.
        let first = unsafe { Launch::new(kernel, grid, &params, cost, views) };
        self.measured(first, &bound, &tiles, y, Some(moments))
    }
}
