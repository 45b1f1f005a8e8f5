//! The op on the CPU: matrix products with the input pixels of each output pixel gathered to a row (im2col).
//!
//! For each group and each run `px` of output pixels, flattened over N, P and Q:
//!
//! ```text
//! fwd    y[px, K]        = rows[px, R S C] w[K, R S C]^T
//! bwd_x  rows[px, R S C] = dy[px, K] w[K, R S C], scattered into dx
//! bwd_w  dw[K, R S C]    = sum over px of dy[px, K]^T rows[px, R S C]
//! ```
//!
//! The forward pass first transposes the weights to have output channels innermost: packing them for each product costs
//! more. A 1x1 convolution of stride 1 without padding needs no rows: it reads x and writes dx directly. The work is
//! cut into lanes, which run in parallel, and a lane into chunks, whose rows stay in the L2 cache. The cuts depend only
//! on the shapes, so the bits do not depend on the number of threads.

use std::ops::Range;

use super::{BwdBias, BwdW, BwdX, Conv2d, Fwd, Node, Pass, Spec};
use crate::device::cpu::{gemm, vectorized, Matrix};
use crate::ops::parallel::{self, in_lanes, split, Pieces};
use crate::ops::store::Epilogue;
use crate::ops::{HostIo, HostOp, HostOut, HostRef};
use crate::tensor::Real;

/// The most lanes: few machines have more cores.
const LANES: usize = 32;
/// The fewest multiply-adds of a lane: about 40 us.
const LANE_MACS: u64 = 1 << 20;
/// The fewest output pixels of a lane: each lane packs the weights again.
const LANE_PIXELS: usize = 64;
/// The elements of a chunk's rows: 256 KiB in f32.
const CHUNK: usize = 1 << 16;
/// The fewest output pixels of a chunk, however long its rows: each chunk reads all weights.
const CHUNK_PIXELS: usize = 128;
/// The fewest weights that a task transposes.
const TRANSPOSED: usize = 1 << 14;
/// The most elements of all partial weight gradients together.
const PARTIALS: usize = 1 << 20;
/// With fewer parts, the weight gradient is also cut into blocks of output channels.
const FEW_PARTS: usize = 4;
/// The most blocks of output channels.
const BLOCKS: usize = 8;
/// The fewest channels of a block: enough to pay for gathering the rows again.
const BLOCK: usize = 64;

/// Runs a plain pass as above, any other pass as the reference.
pub(super) fn run<T: Real>(node: &Node, io: &mut HostIo<'_, T>) {
    if !node.pass.is_plain() {
        return node.reference(io);
    }
    let plan = Plan::new(&node.conv);
    let scratch = std::mem::take(&mut io.scratch);
    match node.pass {
        Pass::Fwd(form) => plan.fwd(io.bind(form), scratch),
        Pass::BwdX(form) => plan.bwd_x(io.bind(form), scratch),
        Pass::BwdW(form) => plan.bwd_w(io.bind(form), scratch),
        Pass::BwdBias(_) => {
            let BwdBias { dy, mut dbias } = io.bind(BwdBias::default());
            let adds = dbias.adds();
            parallel::columns(dy.real(), dbias.real(), adds, scratch);
        }
        Pass::Bwd(_) => panic!("never plain"),
    }
}

/// Elements of scratch memory for [`run`].
pub(super) fn scratch(node: &Node) -> usize {
    if !node.pass.is_plain() {
        return 0;
    }
    let plan = Plan::new(&node.conv);
    let rows = |cut: &Cut| cut.lanes * plan.scratch_of(cut);
    match node.pass {
        Pass::Fwd(_) => rows(&plan.cut(plan.pixels, 1)) + plan.transposed(),
        Pass::BwdX(_) => rows(&plan.cut(plan.spec.n, plan.image)),
        Pass::BwdW(_) => {
            let (cut, block) = plan.cut_weights();
            let partials = if cut.lanes > 1 { cut.lanes * plan.spec.k * plan.row } else { 0 };
            rows(&cut) * plan.spec.k.div_ceil(block) + partials
        }
        Pass::BwdBias(_) => parallel::columns_scratch(plan.pixels * plan.spec.k, plan.spec.k),
        Pass::Bwd(_) => 0,
    }
}

/// The extents that the passes share.
struct Plan {
    spec: Spec,
    /// P and Q.
    output: [usize; 2],
    /// Output pixels per image and in total.
    image: usize,
    pixels: usize,
    /// Elements of a gathered row: R S C / groups.
    row: usize,
    /// Input and output channels per group.
    cg: usize,
    kg: usize,
    macs: u64,
    /// True if the rows are the pixels of x.
    direct: bool,
}

/// A cut of the output pixels.
struct Cut {
    lanes: usize,
    /// Units per lane; the last may have fewer.
    units: usize,
    /// Output pixels per chunk.
    chunk: usize,
}

impl Plan {
    fn new(conv: &Conv2d) -> Self {
        let (spec, output, [_, r, s, cg]) = (conv.spec, conv.output(), conv.w_shape());
        let image = output[0] * output[1];
        Self {
            spec,
            output,
            image,
            pixels: spec.n * image,
            row: r * s * cg,
            cg,
            kg: spec.k / spec.groups,
            macs: conv.macs(),
            direct: spec.kernel == [1, 1] && spec.stride == [1, 1] && spec.padding == [0, 0],
        }
    }

    /// Cuts `units` units of `pixels` output pixels.
    fn cut(&self, units: usize, pixels: usize) -> Cut {
        let most = LANES.min(units).min(self.pixels.div_ceil(LANE_PIXELS)) as u64;
        let each = units.div_ceil((self.macs / LANE_MACS).clamp(1, most) as usize);
        let lane = each * pixels;
        let chunk = if self.direct { lane } else { (CHUNK / self.row).max(CHUNK_PIXELS).min(lane) };
        Cut { lanes: units.div_ceil(each), units: each, chunk }
    }

    /// The cut of the pixels into partial weight gradients, and the output channels per block.
    fn cut_weights(&self) -> (Cut, usize) {
        let Spec { k, groups, .. } = self.spec;
        let most = (PARTIALS / (k * self.row)).clamp(1, LANES).min(self.pixels.div_ceil(LANE_PIXELS));
        let parts = most.min((self.macs / LANE_MACS).max(1) as usize);
        let each = self.pixels.div_ceil(parts);
        let chunk = (CHUNK / self.row).max(CHUNK_PIXELS).min(each);
        let parts = self.pixels.div_ceil(each);
        let block = if parts < FEW_PARTS { k.div_ceil(BLOCKS).max(BLOCK).min(k) } else { k };
        let block = if groups > 1 { block.next_multiple_of(self.kg) } else { block };
        (Cut { lanes: parts, units: each, chunk }, block)
    }

    fn fwd<T: Real>(&self, call: Fwd<HostRef<'_, T>, HostOut<'_, '_, T>>, scratch: &mut [T]) {
        let Fwd { x, w, epilogue, mut y, .. } = call;
        let (x, w, epilogue, y) = (x.value.real(), w.real(), epilogue.map(|_, v| v.real()), y.real());
        let cut = self.cut(self.pixels, 1);
        let k = self.spec.k;
        let (transposed, scratch) = scratch.split_at_mut(self.transposed());
        self.transpose(w, transposed);
        let transposed = &*transposed;
        let pieces = Pieces::new(scratch, self.scratch_of(&cut));
        in_lanes(split(y, cut.units * k), |i, y| {
            pieces.with(|rows| {
                for (j, y) in y.chunks_mut(cut.chunk * k).enumerate() {
                    let start = i * cut.units + j * cut.chunk;
                    let pixels = start..start + y.len() / k;
                    for g in 0..self.spec.groups {
                        let rows = self.rows(x, pixels.clone(), g, rows);
                        let w = if transposed.is_empty() {
                            let (w, matrix) = self.weights(w, g * self.kg..(g + 1) * self.kg);
                            (w, matrix.transposed())
                        } else {
                            (&transposed[g * self.kg * self.row..], Matrix::rows(self.row, self.kg, self.kg))
                        };
                        let to = Matrix::rows(pixels.len(), self.kg, k);
                        gemm((&mut y[g * self.kg..], to), rows, w, false);
                    }
                    vectorized(|| finish(epilogue, y, k, pixels.start));
                }
            });
        });
    }

    fn bwd_x<T: Real>(&self, call: BwdX<HostRef<'_, T>, HostOut<'_, '_, T>>, scratch: &mut [T]) {
        let BwdX { dy, w, mut dx, .. } = call;
        let accumulate = dx.adds();
        let (dy, w, dx) = (dy.value.real(), w.real(), dx.real());
        let Spec { n, c, k, groups, .. } = self.spec;
        let image = self.spec.h * self.spec.w * c;
        let cut = self.cut(n, self.image);
        let pieces = Pieces::new(scratch, self.scratch_of(&cut));
        in_lanes(split(dx, cut.units * image), |i, dx| {
            pieces.with(|rows| {
                if !accumulate && !self.direct {
                    dx.fill(T::ZERO);
                }
                let first = i * cut.units;
                let lane = first * self.image..(first + dx.len() / image) * self.image;
                for start in lane.clone().step_by(cut.chunk) {
                    let pixels = start..(start + cut.chunk).min(lane.end);
                    for g in 0..groups {
                        let dy = (&dy[start * k + g * self.kg..], Matrix::rows(pixels.len(), self.kg, k));
                        let w = self.weights(w, g * self.kg..(g + 1) * self.kg);
                        if self.direct {
                            let to = Matrix::rows(pixels.len(), self.cg, c);
                            gemm((&mut dx[g * self.cg..], to), dy, w, accumulate);
                        } else {
                            let to = Matrix::rows(pixels.len(), self.row, self.row);
                            gemm((&mut *rows, to), dy, w, false);
                            let within = pixels.start - lane.start..pixels.end - lane.start;
                            vectorized(|| self.scatter(rows, within, g, dx));
                        }
                    }
                }
            });
        });
    }

    fn bwd_w<T: Real>(&self, call: BwdW<HostRef<'_, T>, HostOut<'_, '_, T>>, scratch: &mut [T]) {
        let BwdW { dy, x, mut dw } = call;
        let accumulate = dw.adds();
        let (dy, x, dw) = (dy.value.real(), x.value.real(), dw.real());
        let (cut, block) = self.cut_weights();
        let blocks = self.spec.k.div_ceil(block);
        let partial = if cut.lanes > 1 { dw.len() } else { 0 };
        let (partials, rows) = scratch.split_at_mut(cut.lanes * partial);
        let whole = accumulate && cut.lanes == 1;
        let targets = if cut.lanes > 1 { split(partials, partial) } else { vec![&mut *dw] };
        let targets = targets.into_iter().flat_map(|t| split(t, block * self.row)).collect();
        let pieces = Pieces::new(rows, self.scratch_of(&cut));
        in_lanes(targets, |task, dw: &mut [T]| {
            pieces.with(|rows| {
                let (part, first) = (task / blocks, task % blocks * block);
                let lane = part * cut.units..((part + 1) * cut.units).min(self.pixels);
                for start in lane.clone().step_by(cut.chunk) {
                    let pixels = start..(start + cut.chunk).min(lane.end);
                    let sum = whole || start > lane.start;
                    self.block_of_weights([dy, x], pixels, first, sum, (dw, rows));
                }
            });
        });
        if cut.lanes > 1 {
            add_partials(partials, dw, accumulate);
        }
    }

    /// Rows of `dw[K, R S C]` from output channel `first` on, over one chunk of pixels.
    fn block_of_weights<T: Real>(
        &self,
        [dy, x]: [&[T]; 2],
        pixels: Range<usize>,
        first: usize,
        sum: bool,
        (dw, rows): (&mut [T], &mut [T]),
    ) {
        let last = first + dw.len() / self.row;
        for g in first / self.kg..last.div_ceil(self.kg) {
            let channels = first.max(g * self.kg)..last.min((g + 1) * self.kg);
            let (rows, matrix) = self.rows(x, pixels.clone(), g, rows);
            let dy = &dy[pixels.start * self.spec.k + channels.start..];
            let dy = (dy, Matrix::rows(pixels.len(), channels.len(), self.spec.k).transposed());
            let to = Matrix::rows(channels.len(), self.row, self.row);
            gemm((&mut dw[(channels.start - first) * self.row..], to), dy, (rows, matrix), sum);
        }
    }

    fn scratch_of(&self, cut: &Cut) -> usize {
        if self.direct {
            0
        } else {
            cut.chunk * self.row
        }
    }

    /// The weights `[K, R S C]` of output channels of one group.
    fn weights<'a, T>(&self, w: &'a [T], channels: Range<usize>) -> (&'a [T], Matrix) {
        let matrix = Matrix::rows(channels.len(), self.row, self.row);
        (&w[channels.start * self.row..channels.end * self.row], matrix)
    }

    /// Elements of the transposed weights, which the forward products read much faster; 0 if there are too few pixels
    /// to pay for transposing.
    fn transposed(&self) -> usize {
        if self.pixels < LANE_PIXELS {
            0
        } else {
            self.spec.k * self.row
        }
    }

    /// `[K, R S C]` to `[R S C, K]`, group by group, in tiles that stay in the L1 cache.
    fn transpose<T: Real>(&self, w: &[T], transposed: &mut [T]) {
        const TILE: usize = 16;
        let (kg, row) = (self.kg, self.row);
        let columns = if self.spec.groups > 1 { row } else { TRANSPOSED.div_ceil(kg).next_multiple_of(TILE).min(row) };
        in_lanes(split(transposed, columns * kg), |i, transposed| {
            let (g, first) = (i * columns / row, i * columns % row);
            let w = &w[g * kg * row + first..];
            for (block, transposed) in transposed.chunks_mut(TILE * kg).enumerate() {
                for k in (0..kg).step_by(TILE) {
                    for (j, transposed) in transposed.chunks_exact_mut(kg).enumerate() {
                        for (k, to) in (k..kg.min(k + TILE)).zip(&mut transposed[k..]) {
                            *to = w[k * row + block * TILE + j];
                        }
                    }
                }
            }
        });
    }

    /// The rows of `pixels` in group `g`: in x, or gathered into `rows`.
    fn rows<'a, T: Real>(&self, x: &'a [T], pixels: Range<usize>, g: usize, rows: &'a mut [T]) -> (&'a [T], Matrix) {
        if self.direct {
            let c = self.spec.c;
            return (&x[pixels.start * c + g * self.cg..], Matrix::rows(pixels.len(), self.cg, c));
        }
        let matrix = Matrix::rows(pixels.len(), self.row, self.row);
        vectorized(|| self.gather(x, pixels, g, rows));
        (rows, matrix)
    }

    fn gather<T: Real>(&self, x: &[T], pixels: Range<usize>, g: usize, rows: &mut [T]) {
        for (row, pixel) in rows.chunks_exact_mut(self.row).zip(pixels) {
            self.taps(pixel, g, |at, source| match source {
                Some(source) => row[at.clone()].copy_from_slice(&x[source..source + at.len()]),
                None => row[at].fill(T::ZERO),
            });
        }
    }

    fn scatter<T: Real>(&self, rows: &[T], pixels: Range<usize>, g: usize, dx: &mut [T]) {
        for (row, pixel) in rows.chunks_exact(self.row).zip(pixels) {
            self.taps(pixel, g, |at, source| {
                if let Some(source) = source {
                    parallel::add(&mut dx[source..source + at.len()], &row[at]);
                }
            });
        }
    }

    /// Calls `f` for the runs of an output pixel's row, in order, with the place in the row and the start in x; `None`
    /// in the padding.
    #[inline(always)]
    fn taps(&self, pixel: usize, g: usize, mut f: impl FnMut(Range<usize>, Option<usize>)) {
        let Spec { h, w, c, kernel: [r, s], stride, padding, dilation, groups, .. } = self.spec;
        let (n, i, j) = (pixel / self.image, pixel % self.image / self.output[1], pixel % self.output[1]);
        let line = s * self.cg;
        for tap in 0..r {
            let row = (i * stride[0] + tap * dilation[0]).checked_sub(padding[0]).filter(|&row| row < h);
            let at = tap * line;
            let Some(row) = row else {
                f(at..at + line, None);
                continue;
            };
            let first = (n * h + row) * w;
            if dilation[1] == 1 && groups == 1 {
                let left = j * stride[1];
                let before = padding[1].saturating_sub(left).min(s);
                let inside = (w + padding[1]).saturating_sub(left).min(s).max(before);
                if before > 0 {
                    f(at..at + before * c, None);
                }
                if inside > before {
                    f(at + before * c..at + inside * c, Some((first + left + before - padding[1]) * c));
                }
                if inside < s {
                    f(at + inside * c..at + line, None);
                }
            } else {
                for tap in 0..s {
                    let column =
                        (j * stride[1] + tap * dilation[1]).checked_sub(padding[1]).filter(|&column| column < w);
                    let at = at + tap * self.cg;
                    f(at..at + self.cg, column.map(|column| (first + column) * c + g * self.cg));
                }
            }
        }
    }
}

/// Adds the partial gradients in order.
fn add_partials<T: Real>(partials: &[T], dw: &mut [T], accumulate: bool) {
    let len = dw.len();
    parallel::elements(dw, |first, dw| {
        if !accumulate {
            dw.fill(T::ZERO);
        }
        for partial in partials.chunks_exact(len) {
            parallel::add(dw, &partial[first..first + dw.len()]);
        }
    });
}

/// Applies the epilogue to the output pixels from `first` on.
fn finish<T: Real>(epilogue: Epilogue<&[T]>, y: &mut [T], k: usize, first: usize) {
    let Epilogue { scale, shift, residual, relu } = epilogue;
    for (i, y) in y.chunks_exact_mut(k).enumerate() {
        for (y, &scale) in y.iter_mut().zip(scale.unwrap_or_default()) {
            *y *= scale;
        }
        parallel::add(y, shift.unwrap_or_default());
        if let Some(residual) = residual {
            parallel::add(y, &residual[(first + i) * k..]);
        }
        if relu {
            y.iter_mut().for_each(|y| *y = y.maximum(T::ZERO));
        }
    }
}
