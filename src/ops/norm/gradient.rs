//! Launches with a [`Mask`]: operands, bands, traffic, and the merge of the bands' sums.

use super::merge::{self, Bands};
use crate::device::{Cost, Launch, View};
use crate::ops::params::params;
use crate::ops::store::{Mask, Sums};
use crate::ops::strips::{Rows, Strips};
use crate::ops::Arg;
use crate::tensor::{DType, TensorType};
use crate::Result;

params! {
    /// `Epilogue` of kernels/norm/gradient.cuh.
    pub(in crate::ops) struct Operands {
        g: u64, y: [u64; 2], bits: u64, scale: u64, shift: u64, mean: [u64; 2], sums: [u64; 3], gate: u64,
        g_stride: i64, y_stride: [i64; 2], bits_stride: i64,
        relu: u32, scaled: u32, accumulate: u32, unused: u32,
    }
}

/// The number of mask forms; each has kernels of its own.
pub(in crate::ops) const FORMS: usize = 3;

/// A mask with its operands, which [`Io::check`](crate::ops::Io::check) has checked.
pub(in crate::ops) struct Bound<'a> {
    pub mask: Mask<&'a Arg>,
    /// The shape of the gradient, `[N,H,W,C]`.
    pub shape: [usize; 4],
    /// The stored gradient.
    pub g: &'a Arg,
    pub sums: Sums<&'a Arg>,
}

/// The bands of a launch and the places of their sums.
pub(in crate::ops) struct BandSums {
    pub strips: Strips,
    bands: Bands,
    views: Vec<View>,
    /// The scratch memory for merging them.
    scratch: Option<View>,
}

/// Bytes of scratch memory for the sums of the bands and for merging them.
pub(in crate::ops) fn scratch_bytes(mask: Mask, shape: [usize; 4], dtype: DType) -> usize {
    Bands::of(shape, dtype).scratch_bytes(mask.sums().count())
}

impl<'a> Bound<'a> {
    /// Which of the [`FORMS`] it is: one batch norm, or signs with one or two.
    pub fn form(&self) -> usize {
        match &self.mask {
            Mask::Affine { .. } => 0,
            Mask::Signs { second: None, .. } => 1,
            Mask::Signs { second: Some(_), .. } => 2,
        }
    }

    /// The bands of a launch that also reads `numbers` and window `positions`, with their sums in the scratch memory.
    pub fn bands(
        &self,
        dtype: DType,
        numbers: &[&Arg],
        positions: &[&Arg],
        scratch: Option<&View>,
    ) -> Result<BandSums> {
        let ys: Vec<&Arg> = self.mask.normalised().into_iter().map(|n| *n.y).collect();
        let numbers = [numbers, &ys, &[self.g]].concat();
        let strips = Strips::bands(Rows::pixels(self.shape), dtype, &numbers, positions)?;
        let (bands, sums) = (Bands::of(self.shape, dtype), self.sums.count());
        Ok(BandSums { strips, bands, views: bands.views(sums, scratch)?, scratch: bands.after(sums, scratch)? })
    }

    /// The mask as the kernels take it.
    pub fn params(&self, sums: &BandSums) -> Operands {
        let (rows, norms) = (Rows::pixels(self.shape), self.mask.normalised());
        let params = Operands {
            g: self.g.address(),
            g_stride: rows.stride(self.g),
            y: std::array::from_fn(|i| norms.get(i).map_or(0, |norm| norm.y.address())),
            y_stride: std::array::from_fn(|i| norms.get(i).map_or(0, |norm| rows.stride(norm.y))),
            mean: std::array::from_fn(|i| norms.get(i).map_or(0, |norm| norm.mean.address())),
            sums: std::array::from_fn(|i| sums.views.get(i).map_or(0, View::address)),
            accumulate: self.g.adds().into(),
            ..bytemuck::Zeroable::zeroed()
        };
        match self.mask {
            Mask::Affine { scale, shift, relu, scaled, .. } => {
                let [scale, shift] = [scale, shift].map(Arg::address);
                Operands { scale, shift, relu: relu.into(), scaled: scaled.into(), ..params }
            }
            Mask::Signs { bits, gate, .. } => {
                let (bits_stride, gate) = (rows.stride(bits), gate.map_or(0, Arg::address));
                Operands { bits: bits.address(), bits_stride, gate, relu: 1, ..params }
            }
        }
    }

    /// Every view that the launch touches; its op has `inputs`.
    pub fn views(&self, inputs: &[Arg], sums: &BandSums) -> Vec<View> {
        let args = inputs.iter().chain([self.g]).map(|a| a.view.clone());
        args.chain(sums.views.iter().cloned()).collect()
    }

    /// The cost of the launch: it reads `inputs` once, and g if it accumulates; it writes g and the bands' sums.
    pub fn cost(&self, dtype: DType, inputs: &[TensorType], flops: u64, sums: &BandSums) -> Cost {
        let g = TensorType::real(self.shape).bytes(dtype) as u64;
        let old = if self.g.adds() { g } else { 0 };
        Cost {
            flops,
            bytes_read: inputs.iter().map(|t| t.bytes(dtype) as u64).sum::<u64>() + old,
            bytes_written: g + (sums.views.len() * sums.bands.bytes()) as u64,
        }
    }

    /// The launches that merge the bands' sums.
    pub fn merge(&self, sums: &BandSums) -> Result<Vec<Launch>> {
        let from: Vec<&View> = sums.views.iter().collect();
        let to: Vec<&View> = self.sums.list().into_iter().map(|arg| &arg.view).collect();
        merge::sums(sums.bands, &from, &to, sums.scratch.as_ref())
    }
}
