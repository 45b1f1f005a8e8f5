//! What the launches with an [`Epilogue`] share: operands, bands, traffic, and the merge after them.

use super::launch::band_views;
use super::merge::{self, Bands};
use super::Epilogue;
use crate::device::{Cost, Launch, View};
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

/// Forms of an epilogue that have kernels of their own.
pub(in crate::ops) const FORMS: usize = 3;

/// An epilogue with its tensors, which have been checked ([`crate::ops::Io::check`]).
pub(in crate::ops) struct Bound<'a> {
    pub epilogue: Epilogue,
    /// N, H, W, C of the gradient.
    pub shape: [usize; 4],
    pub operands: &'a [Arg],
    /// g and the sums.
    pub outputs: &'a [Arg],
}

/// Where the bands of a launch leave their sums.
pub(in crate::ops) struct BandSums {
    pub strips: Strips,
    bands: Bands,
    views: Vec<View>,
    scratch: View,
}

/// Bytes of scratch memory for the sums of the bands and for merging them.
pub(in crate::ops) fn scratch_bytes(epilogue: Epilogue, shape: [usize; 4], dtype: DType) -> usize {
    let count = Strips::bands(rows(shape), dtype, false).map_or(0, |s| s.band_count());
    let (bands, sums) = (Bands { count, channels: shape[3] }, epilogue.sums(shape[3]).len());
    sums * bands.bytes() + bands.merge_bytes(sums)
}

fn rows([n, h, w, c]: [usize; 4]) -> Rows {
    Rows::pixels(n * h * w, c)
}

impl<'a> Bound<'a> {
    /// Which of the [`FORMS`] it is: one batch norm, or the signs of a block's end with one or two.
    pub fn form(&self) -> usize {
        match self.epilogue {
            Epilogue::Affine { .. } => 0,
            Epilogue::Signs { norms, .. } => norms,
        }
    }

    /// The tensors y.
    fn ys(&self) -> Vec<&'a Arg> {
        match self.epilogue {
            Epilogue::Affine { .. } => vec![&self.operands[0]],
            Epilogue::Signs { norms, .. } => (0..norms).map(|i| &self.operands[1 + 2 * i]).collect(),
        }
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
        let all = [numbers, &self.ys(), &[&self.outputs[0]]].concat();
        let strips = Strips::bands(rows, dtype, rows.wide(dtype, &all, positions))?;
        let bands = Bands { count: strips.band_count(), channels: self.shape[3] };
        let (views, scratch) = band_views(bands, self.outputs.len() - 1, scratch)?;
        Ok(BandSums { strips, bands, views, scratch })
    }

    /// The kernels' view of it.
    pub fn params(&self, sums: &BandSums) -> Operands {
        let (rows, ys, g) = (rows(self.shape), self.ys(), &self.outputs[0]);
        let address = |i: usize| self.operands[i].view.address();
        let second = |of: &dyn Fn(&Arg) -> u64| [of(ys[0]), ys.get(1).map_or(0, |y| of(y))];
        let (signs, means) = match self.epilogue {
            Epilogue::Affine { .. } => (None, [address(3), 0]),
            Epilogue::Signs { norms, .. } => {
                (Some(&self.operands[0]), [address(2), if norms == 2 { address(4) } else { 0 }])
            }
        };
        let (relu, scaled) = match self.epilogue {
            Epilogue::Affine { relu, scaled } => (relu, scaled),
            Epilogue::Signs { .. } => (true, false),
        };
        Operands {
            g: g.view.address(),
            y: second(&|y| y.view.address()),
            bits: signs.map_or(0, |s| s.view.address()),
            scale: if signs.is_none() { address(1) } else { 0 },
            shift: if signs.is_none() { address(2) } else { 0 },
            mean: means,
            sums: std::array::from_fn(|i| sums.views.get(i).map_or(0, View::address)),
            open: if self.epilogue.is_gated() { address(self.operands.len() - 1) } else { 0 },
            g_stride: rows.stride(g),
            y_stride: second(&|y| rows.stride(y) as u64).map(|stride| stride as i64),
            bits_stride: signs.map_or(0, |s| rows.stride(s)),
            relu: relu.into(),
            scaled: scaled.into(),
            accumulate: (g.write == Write::Accumulate).into(),
            unused: 0,
        }
    }

    /// Every view that a launch with `inputs` touches.
    pub fn views(&self, inputs: &[Arg], sums: &BandSums) -> Vec<View> {
        let args = inputs.iter().chain([&self.outputs[0]]).map(|a| a.view.clone());
        args.chain(sums.views.iter().cloned()).collect()
    }

    /// The traffic of a launch that reads `inputs` once: g is read too where it is added to, and the bands' sums are
    /// written.
    pub fn cost(&self, dtype: DType, inputs: &[TensorType], flops: u64, sums: &BandSums) -> Cost {
        let g = TensorType::real(self.shape).bytes(dtype) as u64;
        let old = if self.outputs[0].write == Write::Accumulate { g } else { 0 };
        Cost {
            flops,
            bytes_read: inputs.iter().map(|t| t.bytes(dtype) as u64).sum::<u64>() + old,
            bytes_written: g + (sums.views.len() * sums.bands.bytes()) as u64,
        }
    }

    /// The launches that merge the bands' sums.
    pub fn merge(&self, sums: &BandSums) -> Result<Vec<Launch>> {
        let from: Vec<&View> = sums.views.iter().collect();
        let to: Vec<&View> = self.outputs[1..].iter().map(|a| &a.view).collect();
        merge::sums(sums.bands, &from, &to, Some(&sums.scratch))
    }
}
