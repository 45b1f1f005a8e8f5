//! Which tile and how many splits: pure functions of the shape, the dtype and the architecture.

use super::variants::{Access, Tile, Variant, STAGE_ROW_BYTES};
use crate::ops::conv2d::Conv2d;
use crate::tensor::DType;

/// Which of a convolution's products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// Pixels of x by weights.
    Fwd,
    /// Pixels of dy by weights.
    BwdX,
    /// Pixels of dy by pixels of x.
    BwdW,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    /// The convolution.
    pub conv: Conv2d,
    /// The product.
    pub product: Product,
    /// The kernels that compute it.
    pub table: &'static [Variant],
    /// Launches that a split of the reduction needs besides the product; `None` where it must not be split.
    pub split_launches: Option<usize>,
}

/// How a pass is computed. The same plan gives the same bits on every device of an architecture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// The kernel where all operands take 16-byte accesses.
    pub vector: Option<&'static Variant>,
    /// The kernel that takes any operands.
    pub scalar: &'static Variant,
    /// Into how many parts the reduction is cut; they are added in ascending order.
    pub splits: usize,
}

impl Plan {
    /// The entry that runs where all operands take 16-byte accesses, or else the one that takes any.
    pub fn kernel(&self) -> &'static str {
        self.vector.unwrap_or(self.scalar).kernel.name
    }

    /// The parts of the reduction.
    pub fn splits(&self) -> usize {
        self.splits
    }

    /// Rows of the tiles of its kernels.
    pub fn rows(&self) -> [usize; 2] {
        [self.scalar.tile.m, self.vector.unwrap_or(self.scalar).tile.m]
    }

    /// Bytes of the partial sums of `problem`.
    pub fn partial_bytes(&self, problem: &Problem) -> usize {
        if self.splits > 1 {
            self.splits * problem.result_len() * 4
        } else {
            0
        }
    }
}

/// A pass as matrix products: `batches` times (groups times residues) an m x n result of a reduction over `depth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub depth: usize,
    pub groups: usize,
    /// Residues of the stride, in bwd_x.
    pub residues: usize,
}

pub fn gcd(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        gcd(b, a % b)
    }
}

/// x or its gradient, [rows, cols].
pub fn x_dims(conv: &Conv2d) -> [usize; 2] {
    [conv.spec.n * conv.spec.h * conv.spec.w, conv.spec.c]
}

/// y or its gradient, [rows, cols].
pub fn y_dims(conv: &Conv2d) -> [usize; 2] {
    [conv.spec.n * conv.p * conv.q, conv.spec.k]
}

impl Problem {
    /// The largest of the products that it consists of.
    pub fn shape(&self) -> Shape {
        let s = self.conv.spec;
        let (cg, kg) = (s.c / s.groups, s.k / s.groups);
        let [r, t] = s.kernel;
        let groups = s.groups;
        let pixels = y_dims(&self.conv)[0];
        match self.product {
            Product::Fwd => Shape { m: pixels, n: kg, depth: r * t * cg, groups, residues: 1 },
            Product::BwdW => Shape { m: kg, n: r * t * cg, depth: pixels, groups, residues: 1 },
            Product::BwdX => {
                let axis = |i: usize, extent: usize, taps: usize| {
                    let (rows, residues) = (extent.div_ceil(s.stride[i]), s.stride[i].min(extent));
                    (rows, residues, taps.div_ceil(s.stride[i] / gcd(s.stride[i], s.dilation[i])))
                };
                let (h, v) = (axis(0, s.h, r), axis(1, s.w, t));
                Shape { m: s.n * h.0 * v.0, n: cg, depth: h.2 * v.2 * kg, groups, residues: h.1 * v.1 }
            }
        }
    }

    /// Elements of the whole result.
    pub fn result_len(&self) -> usize {
        match self.product {
            Product::Fwd => self.conv.y().shape.len(),
            Product::BwdX => self.conv.x().shape.len(),
            Product::BwdW => self.conv.w_shape().iter().product(),
        }
    }

    /// Whether the channels allow 16-byte accesses to the operands.
    fn allows_vectors(&self, dtype: DType) -> bool {
        let (s, width) = (self.conv.spec, 16 / dtype.bytes());
        let (c, k) = ((s.c / s.groups).is_multiple_of(width), (s.k / s.groups).is_multiple_of(width));
        c && (k || self.product == Product::Fwd)
    }

    fn variants(&self, dtype: DType, access: Access) -> impl Iterator<Item = &'static Variant> {
        self.table.iter().filter(move |v| v.dtype == dtype && v.access == access)
    }
}

/// Whether `plan` is for `problem` in `dtype`.
pub fn fits(plan: Plan, problem: &Problem, dtype: DType) -> bool {
    let known = |v: &Variant| v.dtype == dtype && problem.table.contains(v);
    let most = if problem.split_launches.is_some() { MAX_SPLITS } else { 1 };
    known(plan.scalar) && plan.vector.is_none_or(known) && plan.splits <= most
}

/// Elements of the reduction in one stage.
fn stage_depth(dtype: DType) -> usize {
    STAGE_ROW_BYTES / dtype.bytes()
}

/// Fewer stages than this a split are not worth their second kernel.
const MIN_STAGES: usize = 4;
const MAX_SPLITS: usize = 256;
/// Floats of partial sums at most.
const MAX_PARTIAL: usize = 16 << 20;

fn possible_splits(problem: &Problem, dtype: DType) -> impl Iterator<Item = usize> {
    let stages = problem.shape().depth.div_ceil(stage_depth(dtype));
    let (partial, most) = (problem.result_len(), if problem.split_launches.is_some() { MAX_SPLITS } else { 1 });
    std::iter::successors(Some(1), |s| Some(s * 2))
        .take_while(move |&s| s == 1 || (s <= most && stages / s >= MIN_STAGES && s * partial <= MAX_PARTIAL))
}

/// Multiply-adds a clock of a whole multiprocessor for this tile, as assumed until they are measured (A100, H200:
/// 1,024 and more for mma.sync, 64 and 128 for f32). Narrow tiles wait for shared memory: they read an operand element
/// for fewer products.
fn rate(tile: Tile, dtype: DType) -> u64 {
    if dtype == DType::F32 {
        return 100;
    }
    match tile.m.min(tile.n) {
        128 => 1024,
        64 if tile.m * tile.n > 64 * 64 => 900,
        64 => 700,
        32 => 560,
        _ => 320,
    }
}

/// Clocks that `tile` with `splits` would take on a nominal chip of 128 multiprocessors. A rough model: only the order of
/// its results matters. Nothing in it has been measured.
fn clocks(problem: &Problem, tile: Tile, splits: usize, dtype: DType) -> u64 {
    const PROCESSORS: u64 = 128;
    const BLOCK_OVERHEAD: u64 = 1500; // fill the pipeline, write the tile
    const LAUNCH: u64 = 4000;
    const BYTES_PER_CLOCK: u64 = 16 * PROCESSORS;
    let (shape, partial) = (problem.shape(), problem.result_len());
    let launches = problem.split_launches.unwrap_or(0) as u64 * LAUNCH;
    let blocks = shape.m.div_ceil(tile.m) * shape.n.div_ceil(tile.n) * shape.groups * shape.residues * splits;
    let depth = shape.depth.div_ceil(splits).next_multiple_of(stage_depth(dtype));
    let block = (tile.m * tile.n * depth) as u64 / rate(tile, dtype) + BLOCK_OVERHEAD;
    // Between whole waves, as if blocks never shared a multiprocessor, and none: less work wins where both fit at once.
    let waves = (blocks as u64).div_ceil(PROCESSORS) * PROCESSORS + blocks as u64;
    let second = if splits > 1 { launches + (splits * partial * 8) as u64 / BYTES_PER_CLOCK } else { 0 };
    waves * block / (2 * PROCESSORS) + second
}

fn best(problem: &Problem, dtype: DType, access: Access, splits: Option<usize>) -> Option<Plan> {
    let scalar = problem.variants(dtype, Access::Scalar).min_by_key(|v| clocks(problem, v.tile, 1, dtype))?;
    let candidates = problem.variants(dtype, access).flat_map(|v| {
        possible_splits(problem, dtype)
            .filter(move |&s| splits.is_none_or(|only| s == only))
            .map(move |s| (v, s, clocks(problem, v.tile, s, dtype)))
    });
    let (chosen, splits, _) = candidates.min_by_key(|&(_, _, clocks)| clocks)?;
    Some(match access {
        Access::Vector => Plan { vector: Some(chosen), scalar, splits },
        Access::Scalar => Plan { vector: None, scalar: chosen, splits },
    })
}

/// The plan for `problem`; `None` in f64, where there are no tiles.
pub fn choose(problem: &Problem, dtype: DType) -> Option<Plan> {
    let access = if problem.allows_vectors(dtype) { Access::Vector } else { Access::Scalar };
    best(problem, dtype, access, None)
}

/// Every tile that can compute `problem`, each unsplit and with the most splits that are allowed.
pub fn plans(problem: &Problem, dtype: DType) -> Vec<Plan> {
    let most = possible_splits(problem, dtype).last().unwrap_or(1);
    let mut plans = Vec::new();
    for v in problem.table.iter().filter(|v| v.dtype == dtype) {
        if v.access == Access::Vector && !problem.allows_vectors(dtype) {
            continue;
        }
        let Some(base) = best(problem, dtype, Access::Scalar, Some(1)) else { continue };
        let plan = match v.access {
            Access::Vector => Plan { vector: Some(v), ..base },
            Access::Scalar => Plan { vector: None, scalar: v, splits: 1 },
        };
        plans.push(plan);
        if most > 1 {
            plans.push(Plan { splits: most, ..plan });
        }
    }
    plans
}

/// Into how many slices of rows the bias gradient is cut.
pub fn bias_splits(pixels: usize) -> usize {
    const ROWS_PER_SPLIT: usize = 256;
    pixels.div_ceil(ROWS_PER_SPLIT).min(MAX_SPLITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::conv2d::launch::variants::{BWD_W, BWD_X, FWD};
    use crate::ops::conv2d::Spec;
    use Product::{BwdW, BwdX, Fwd};

    fn problem(product: Product, [n, hw, c, k]: [usize; 4], rs: usize, stride: usize) -> Problem {
        let spec = Spec {
            n,
            h: hw,
            w: hw,
            c,
            k,
            kernel: [rs, rs],
            stride: [stride, stride],
            padding: [rs / 2, rs / 2],
            dilation: [1, 1],
            groups: 1,
        };
        let table: &[Variant] = match product {
            Fwd => &FWD,
            BwdX => &BWD_X,
            BwdW => &BWD_W,
        };
        Problem { conv: Conv2d::new(spec).expect("a valid case"), product, table, split_launches: Some(1) }
    }

    fn name(problem: &Problem, dtype: DType) -> (&'static str, usize) {
        let plan = choose(problem, dtype).expect("a plan");
        (plan.kernel(), plan.splits)
    }

    #[test]
    fn wide_layers_take_wide_tiles_and_narrow_layers_narrow_ones() {
        let b = DType::BF16;
        assert_eq!(name(&problem(Fwd, [256, 14, 256, 256], 3, 1), b), ("conv2d_fwd_bf16_128x128", 1));
        assert_eq!(name(&problem(Fwd, [256, 56, 64, 64], 3, 1), b), ("conv2d_fwd_bf16_128x64", 1));
        assert_eq!(name(&problem(Fwd, [128, 32, 16, 16], 3, 1), b), ("conv2d_fwd_bf16_128x16", 1));
        assert_eq!(name(&problem(Fwd, [128, 16, 32, 32], 3, 1), b), ("conv2d_fwd_bf16_128x32", 1));
        assert_eq!(name(&problem(BwdX, [128, 32, 16, 32], 3, 2), b).0, "conv2d_bwd_x_bf16_128x16");
        assert_eq!(name(&problem(BwdW, [128, 32, 16, 16], 3, 1), b).0, "conv2d_bwd_w_bf16_16x128");
    }

    #[test]
    fn channels_that_do_not_fill_16_bytes_go_element_by_element() {
        assert_eq!(name(&problem(Fwd, [256, 224, 3, 64], 7, 2), DType::BF16).0, "conv2d_fwd_bf16_64x64_scalar");
        assert_eq!(name(&problem(Fwd, [64, 8, 1, 16], 3, 1), DType::F32).0, "conv2d_fwd_f32_128x16_scalar");
        assert_eq!(name(&problem(BwdX, [64, 1, 64, 10], 1, 1), DType::F16).0, "conv2d_bwd_x_f16_64x64_scalar");
    }

    #[test]
    fn few_blocks_and_a_long_reduction_are_split() {
        let (kernel, splits) = name(&problem(BwdW, [256, 56, 64, 64], 3, 1), DType::BF16);
        assert!(kernel.starts_with("conv2d_bwd_w_bf16_64x") && splits >= 16, "{kernel} in {splits}");
        let (_, splits) = name(&problem(Fwd, [1, 7, 512, 512], 3, 1), DType::BF16);
        assert!(splits >= 4, "batch 1, 7x7: {splits}");
        assert_eq!(name(&problem(Fwd, [256, 56, 64, 64], 3, 1), DType::F32).1, 1);
    }

    #[test]
    fn residues_of_the_stride_share_the_taps() {
        let s = problem(BwdX, [2, 8, 16, 32], 3, 2).shape();
        assert_eq!((s.m, s.n, s.depth, s.residues), (2 * 4 * 4, 16, 2 * 2 * 32, 4));
    }
}
