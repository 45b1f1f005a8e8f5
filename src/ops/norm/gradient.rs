//! What the launches with a [`Mask`] share: operands, bands, traffic, and the merge after them.

use super::merge::{self, band_views, Bands};
use crate::device::{Cost, Launch, View};
use crate::ops::store::{Mask, Sums};
use crate::ops::strips::{Rows, Strips};
use crate::ops::{Arg, Write};
use crate::tensor::{DType, TensorType};
use crate::Result;

/// `Epilogue` of kernels/norm/gradient.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::ops) struct Operands {
    g: u64,
    y: [u64; 2],
    bits: u64,
    scale: u64,
    shift: u64,
    mean: [u64; 2],
    sums: [u64; 3],
    open: u64,
    g_stride: i64,
    y_stride: [i64; 2],
    bits_stride: i64,
    relu: u32,
    scaled: u32,
    accumulate: u32,
    unused: u32,
}

/// Forms of a mask that have kernels of their own.
pub(in crate::ops) const FORMS: usize = 3;

/// A mask with its tensors, which have been checked ([`crate::ops::Io::check`]).
pub(in crate::ops) struct Bound<'a> {
    pub mask: Mask<&'a Arg>,
    /// N, H, W, C of the gradient.
    pub shape: [usize; 4],
    /// What is stored.
    pub g: &'a Arg,
    pub sums: Sums<&'a Arg>,
}

/// Where the bands of a launch leave their sums.
pub(in crate::ops) struct BandSums {
    pub strips: Strips,
    bands: Bands,
    views: Vec<View>,
    scratch: View,
}

/// Bytes of scratch memory for the sums of the bands and for merging them.
pub(in crate::ops) fn scratch_bytes(mask: Mask, shape: [usize; 4], dtype: DType) -> usize {
    let count = Strips::bands(rows(shape), dtype, false).map_or(0, |s| s.band_count());
    let (bands, sums) = (Bands { count, channels: shape[3] }, mask.sums().count());
    sums * bands.bytes() + bands.merge_bytes(sums)
}

fn rows([n, h, w, c]: [usize; 4]) -> Rows {
    Rows::pixels(n * h * w, c)
}

impl<'a> Bound<'a> {
    /// Which of the [`FORMS`] it is: one batch norm, or the signs of a block's end with one or two.
    pub fn form(&self) -> usize {
        match &self.mask {
            Mask::Affine { .. } => 0,
            Mask::Signs { second: None, .. } => 1,
            Mask::Signs { second: Some(_), .. } => 2,
        }
    }

    /// The tensors y.
    fn ys(&self) -> Vec<&'a Arg> {
        self.mask.normalised().into_iter().map(|n| *n.y).collect()
    }

    /// The bands of a launch that also reads `numbers` and window `positions`, and their places in the scratch memory.
    pub fn bands(
        &self,
        dtype: DType,
        numbers: &[&Arg],
        positions: &[&Arg],
        scratch: Option<&View>,
    ) -> Result<BandSums> {
        let rows = rows(self.shape);
        let all = [numbers, &self.ys(), &[self.g]].concat();
        let strips = Strips::bands(rows, dtype, rows.wide(dtype, &all, positions))?;
        let bands = Bands { count: strips.band_count(), channels: self.shape[3] };
        let (views, scratch) = band_views(bands, self.sums.count(), scratch)?;
        Ok(BandSums { strips, bands, views, scratch })
    }

    /// The kernels' view of it.
    pub fn params(&self, sums: &BandSums) -> Operands {
        let (rows, g) = (rows(self.shape), self.g);
        let address = |arg: &Arg| arg.view.address();
        let params = Operands {
            g: address(g),
            g_stride: rows.stride(g),
            sums: std::array::from_fn(|i| sums.views.get(i).map_or(0, View::address)),
            accumulate: (g.write == Write::Accumulate).into(),
            ..bytemuck::Zeroable::zeroed()
        };
        match self.mask {
            Mask::Affine { y, scale, shift, mean, relu, scaled } => Operands {
                y: [address(y), 0],
                y_stride: [rows.stride(y), 0],
                scale: address(scale),
                shift: address(shift),
                mean: [address(mean), 0],
                relu: relu.into(),
                scaled: scaled.into(),
                ..params
            },
            Mask::Signs { bits, first, second, gate } => Operands {
                bits: address(bits),
                bits_stride: rows.stride(bits),
                y: [address(first.y), second.map_or(0, |n| address(n.y))],
                y_stride: [rows.stride(first.y), second.map_or(0, |n| rows.stride(n.y))],
                mean: [address(first.mean), second.map_or(0, |n| address(n.mean))],
                open: gate.map_or(0, address),
                relu: 1,
                ..params
            },
        }
    }

    /// Every view that a launch with `inputs` touches.
    pub fn views(&self, inputs: &[Arg], sums: &BandSums) -> Vec<View> {
        let args = inputs.iter().chain([self.g]).map(|a| a.view.clone());
        args.chain(sums.views.iter().cloned()).collect()
    }

    /// The traffic of a launch that reads `inputs` once: g is read too where it is added to, and the bands' sums are
    /// written.
    pub fn cost(&self, dtype: DType, inputs: &[TensorType], flops: u64, sums: &BandSums) -> Cost {
        let g = TensorType::real(self.shape).bytes(dtype) as u64;
        let old = if self.g.write == Write::Accumulate { g } else { 0 };
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
        merge::sums(sums.bands, &from, &to, Some(&sums.scratch))
    }
}
