//! The choice of tile and splits: pure functions of shape, dtype and architecture.

use super::variants::{Access, Variant, STAGE_ROW_BYTES, STEM_C};
use crate::device::{table, Target};
use crate::ops::conv2d::Conv2d;
use crate::tensor::DType;

/// A product of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// Pixels of x by weights.
    Fwd,
    /// Pixels of dy by weights.
    BwdX,
    /// Pixels of dy by pixels of x.
    BwdW,
}

/// A product to plan.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub conv: Conv2d,
    pub product: Product,
    /// The kernels for it, of every architecture.
    pub table: &'static [Variant],
    /// Launches that a split reduction needs after the product; `None` if it must not be split.
    pub split_launches: Option<usize>,
    /// True if x is loaded as it is, as the stem's kernels do.
    pub raw: bool,
}

/// The plan of a pass. It gives the same bits on every device of an architecture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// The kernel for operands that fit its `Access`.
    pub(super) vector: Option<&'static Variant>,
    /// The kernel for other operands. `conv2d_fused_fwd_end_*` has none: there it is a vector kernel, and the launch
    /// refuses operands that do not fit.
    pub(super) scalar: &'static Variant,
    /// Adjacent groups that `vector` computes as one; `scalar` computes each alone.
    pub(super) pack: usize,
    /// Splits of the reduction; they are added in order.
    pub(super) splits: usize,
}

impl Plan {
    /// The entry for operands that allow 16-byte accesses (in the stem: an x with a pixel stride of 4), if there is
    /// one, else the entry for any operands.
    pub fn kernel(&self) -> &'static str {
        self.vector.unwrap_or(self.scalar).kernel.name
    }

    /// Adjacent groups that are computed as one.
    pub fn pack(&self) -> usize {
        self.pack
    }

    /// Splits of the reduction.
    pub fn splits(&self) -> usize {
        self.splits
    }

    /// Rows of the tiles of the scalar and the vector kernel.
    pub(super) fn rows(&self) -> [usize; 2] {
        [self.scalar.tile.m, self.vector.unwrap_or(self.scalar).tile.m]
    }

    /// Bytes of the partial sums of `problem`.
    pub(super) fn partial_bytes(&self, problem: &Problem) -> usize {
        match self.splits {
            1 => 0,
            splits => splits * problem.result_len() * 4,
        }
    }
}

/// A pass as matrix products: groups times residues of m x n results, each a reduction over `depth`.
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
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}

/// Rows and columns of x.
pub fn x_dims(conv: &Conv2d) -> [usize; 2] {
    [conv.spec.n * conv.spec.h * conv.spec.w, conv.spec.c]
}

/// Rows and columns of y.
pub fn y_dims(conv: &Conv2d) -> [usize; 2] {
    [conv.spec.n * conv.p * conv.q, conv.spec.k]
}

impl Problem {
    /// The matrix products, with the extents of the largest residue.
    pub fn shape(&self) -> Shape {
        let s = self.conv.spec;
        let (groups, cg, kg) = (s.groups, s.c / s.groups, s.k / s.groups);
        let (pixels, taps) = (y_dims(&self.conv)[0], s.kernel[0] * s.kernel[1]);
        match self.product {
            Product::Fwd => Shape { m: pixels, n: kg, depth: taps * cg, groups, residues: 1 },
            Product::BwdW => Shape { m: kg, n: taps * cg, depth: pixels, groups, residues: 1 },
            Product::BwdX => {
                let on_both = |along: &dyn Fn(usize, usize) -> usize| along(0, s.h) * along(1, s.w);
                let rows = on_both(&|i, extent| extent.div_ceil(s.stride[i]));
                let taps = on_both(&|i, _| s.kernel[i].div_ceil(s.stride[i] / gcd(s.stride[i], s.dilation[i])));
                let residues = on_both(&|i, extent| s.stride[i].min(extent));
                Shape { m: s.n * rows, n: cg, depth: taps * kg, groups, residues }
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

    /// The products as a kernel of `access` computes them: `pack` groups as one; in the stem, [`STEM_C`] channels.
    pub fn formed(&self, access: Access, pack: usize) -> Shape {
        let s = self.shape();
        let taps = |products: usize| match access {
            Access::Stem => products / self.conv.spec.c * STEM_C,
            _ => products * pack,
        };
        let groups = s.groups / pack;
        match self.product {
            Product::Fwd => Shape { n: s.n * pack, depth: taps(s.depth), groups, ..s },
            Product::BwdX => Shape { n: s.n * pack, depth: s.depth * pack, groups, ..s },
            Product::BwdW => Shape { m: s.m * pack, n: taps(s.n), groups, ..s },
        }
    }

    /// True if the channels of `pack` groups fill 16-byte accesses to the pixels and, unpacked, to the weights.
    fn allows_vectors(&self, dtype: DType, pack: usize) -> bool {
        let (s, width) = (self.conv.spec, 16 / dtype.bytes());
        let fills = |channels: usize| (channels / s.groups * pack).is_multiple_of(width);
        match self.product {
            Product::Fwd => fills(s.c),
            Product::BwdX => fills(s.k) && (pack > 1 || fills(s.c)),
            Product::BwdW => fills(s.c) && fills(s.k),
        }
    }

    /// True if the stem's kernels, for few input channels, apply.
    fn is_stem(&self, dtype: DType) -> bool {
        let s = self.conv.spec;
        let product = match self.product {
            Product::Fwd => true,
            Product::BwdW => s.k.is_multiple_of(16 / dtype.bytes()),
            Product::BwdX => false,
        };
        product && self.raw && s.groups == 1 && s.c <= STEM_C && !self.allows_vectors(dtype, 1)
    }

    /// Every possible pack: the smallest that fills 16-byte accesses, and any larger one that `channels` allows. A pack
    /// of p costs p times the needed products, less those that a tile would have wasted anyway.
    fn packs(&self, dtype: DType, channels: impl Fn(usize) -> bool) -> Vec<usize> {
        let groups = self.conv.spec.groups;
        let possible = |&p: &usize| groups.is_multiple_of(p) && self.allows_vectors(dtype, p);
        let fewest = (1..=groups).find(possible);
        (2..=groups).filter(possible).filter(|&p| Some(p) == fewest || channels(p)).collect()
    }

    /// The packs to choose from. Up to the width of the narrowest tile they are free: its columns (in bwd_w its rows)
    /// would be empty.
    fn free_packs(&self, target: Target) -> Vec<usize> {
        let rows = self.product == Product::BwdW;
        let extent = |s: Shape| if rows { s.m } else { s.n };
        let tiles = self.variants(target, Access::Packed).map(|v| if rows { v.tile.m } else { v.tile.n });
        let narrowest = tiles.min().unwrap_or(0);
        self.packs(target.dtype, |p| extent(self.formed(Access::Packed, p)) <= narrowest)
    }

    /// The packs that tests try: up to 64 channels of x and of y.
    fn tested_packs(&self, dtype: DType) -> Vec<usize> {
        const MOST: usize = 64;
        let s = self.conv.spec;
        self.packs(dtype, |p| s.c.max(s.k) / s.groups * p <= MOST)
    }

    /// The vector, packed and stem kernels, each with its packs.
    fn fast(&self, target: Target, packs: &[usize]) -> Vec<(&'static Variant, usize)> {
        let of = |v: &Variant| match v.access {
            Access::Vector if self.allows_vectors(target.dtype, 1) => vec![1],
            Access::Packed => packs.to_vec(),
            Access::Stem if self.is_stem(target.dtype) => vec![1],
            _ => Vec::new(),
        };
        self.entries(target).flat_map(|v| of(v).into_iter().map(move |p| (v, p))).collect()
    }

    /// The best scalar kernel without splits; if the table has none, a vector kernel, which the operands must fit.
    fn scalar(&self, target: Target) -> Option<&'static Variant> {
        let scalar = self.variants(target, Access::Scalar).min_by_key(|v| clocks(self, self.shape(), v, 1));
        scalar.or_else(|| self.variants(target, Access::Vector).next())
    }

    fn variants(&self, target: Target, access: Access) -> impl Iterator<Item = &'static Variant> {
        self.entries(target).filter(move |v| v.access == access)
    }

    fn most_splits(&self) -> usize {
        self.split_launches.map_or(1, |_| MAX_SPLITS)
    }

    /// The target's kernels, its own family's first, so that they win ties.
    fn entries(&self, target: Target) -> impl Iterator<Item = &'static Variant> {
        table::on(self.table, target.arch).filter(move |v| v.dtype == target.dtype)
    }
}

/// True if `plan` is for `problem` on `target`.
pub fn fits(plan: Plan, problem: &Problem, target: Target) -> bool {
    let known = |v: &Variant| problem.entries(target).any(|entry| entry == v);
    let allowed = |v: &Variant| match v.access {
        Access::Vector => plan.pack == 1 && problem.allows_vectors(target.dtype, 1),
        Access::Packed => plan.pack > 1 && problem.allows_vectors(target.dtype, plan.pack),
        Access::Stem => problem.is_stem(target.dtype),
        Access::Scalar => false,
    };
    known(plan.scalar)
        && plan.vector.is_none_or(|v| known(v) && allowed(v))
        && problem.conv.spec.groups.is_multiple_of(plan.pack)
        && (1..=problem.most_splits()).contains(&plan.splits)
}

/// Elements of the reduction per stage.
fn stage_depth(dtype: DType) -> usize {
    STAGE_ROW_BYTES / dtype.bytes()
}

/// The fewest stages per split that pay for the second kernel.
const MIN_STAGES: usize = 4;
const MAX_SPLITS: usize = 256;
/// The most partial sums, in floats.
const MAX_PARTIAL: usize = 16 << 20;

fn possible_splits(problem: &Problem, shape: Shape, dtype: DType) -> impl Iterator<Item = usize> {
    let stages = shape.depth.div_ceil(stage_depth(dtype));
    let (partial, most) = (problem.result_len(), problem.most_splits());
    std::iter::successors(Some(1), |s| Some(s * 2))
        .take_while(move |&s| s == 1 || (s <= most && stages / s >= MIN_STAGES && s * partial <= MAX_PARTIAL))
}

/// Multiply-adds per clock and multiprocessor for this tile: assumed, not measured (A100, H200: 1,024 and more for
/// mma.sync, 64 and 128 for f32). Narrow tiles wait for shared memory, because they use each loaded element in fewer
/// products. Packed groups and the stem assemble operands from small pieces.
fn rate(v: &Variant) -> u64 {
    let tile = v.tile;
    let whole = match tile.m.min(tile.n) {
        _ if v.dtype == DType::F32 => 100,
        128 => 1024,
        64 if tile.m * tile.n > 64 * 64 => 900,
        64 => 700,
        32 => 560,
        _ => 320,
    };
    match v.access {
        Access::Packed | Access::Stem => whole * 3 / 4,
        Access::Vector | Access::Scalar => whole,
    }
}

/// Clocks of `v` with `splits` on a nominal chip of 128 multiprocessors. A rough model: only the order of its results
/// matters, and nothing in it has been measured.
pub fn clocks(problem: &Problem, shape: Shape, v: &Variant, splits: usize) -> u64 {
    const PROCESSORS: u64 = 128;
    const BLOCK_OVERHEAD: u64 = 1500; // fill the pipeline, write the tile
    const LAUNCH: u64 = 4000;
    const BYTES_PER_CLOCK: u64 = 16 * PROCESSORS;
    let tile = v.tile;
    let (partial, launches) = (problem.result_len(), problem.split_launches.unwrap_or(0) as u64 * LAUNCH);
    let blocks = shape.m.div_ceil(tile.m) * shape.n.div_ceil(tile.n) * shape.groups * shape.residues * splits;
    let depth = shape.depth.div_ceil(splits).next_multiple_of(stage_depth(v.dtype));
    let block = (tile.m * tile.n * depth) as u64 / rate(v) + BLOCK_OVERHEAD;
    // The mean of whole and fractional waves: if two plans need the same number of waves, the one with less work wins.
    let waves = (blocks as u64).div_ceil(PROCESSORS) * PROCESSORS + blocks as u64;
    let second = if splits > 1 { launches + (splits * partial * 8) as u64 / BYTES_PER_CLOCK } else { 0 };
    waves * block / (2 * PROCESSORS) + second
}

/// True if `splits` leave few partial sums: few relative to the pixels that bwd_w reads, or so few that they stay in
/// the L2 cache.
fn affordable(problem: &Problem, dtype: DType, splits: usize) -> bool {
    const SHARE: usize = 32;
    const CACHED: usize = 4 << 20;
    let pixels = (problem.conv.x().shape.len() + problem.conv.y().shape.len()) * dtype.bytes();
    let partial = splits * problem.result_len() * 8; // written and read
    splits == 1 || problem.product != Product::BwdW || partial <= CACHED.max(pixels / SHARE)
}

/// The plan for `problem`; `None` in f64, which has no tiles.
pub fn choose(problem: &Problem, target: Target) -> Option<Plan> {
    choose_beside(problem, target, 1, |_, _| 0)
}

/// As [`choose`], if `v` with `pack` takes `more(v, pack)` clocks for another product, and the reduction should have at
/// least `least` splits, unless that leaves too many partial sums.
pub fn choose_beside(
    problem: &Problem,
    target: Target,
    least: usize,
    more: impl Fn(&'static Variant, usize) -> u64,
) -> Option<Plan> {
    let dtype = target.dtype;
    let mut candidates = problem.fast(target, &problem.free_packs(target));
    if candidates.is_empty() {
        candidates = problem.variants(target, Access::Scalar).map(|v| (v, 1)).collect();
    }
    let split = |(v, pack): (&'static Variant, usize)| {
        let shape = problem.formed(v.access, pack);
        let possible: Vec<usize> =
            possible_splits(problem, shape, dtype).filter(|&s| affordable(problem, dtype, s)).collect();
        let least = least.min(possible.last().copied()?);
        let all = possible.into_iter().filter(|&s| s >= least).map(|s| (s, clocks(problem, shape, v, s)));
        all.min_by_key(|&(_, clocks)| clocks).map(|(splits, clocks)| (v, pack, splits, clocks + more(v, pack)))
    };
    let (v, pack, splits, _) = candidates.into_iter().filter_map(split).min_by_key(|&(.., clocks)| clocks)?;
    Some(match v.access {
        Access::Scalar => Plan { vector: None, scalar: v, pack: 1, splits },
        _ => Plan { vector: Some(v), scalar: problem.scalar(target)?, pack, splits },
    })
}

/// A plan for every tile, without splits and with the most splits.
pub fn plans(problem: &Problem, target: Target) -> Vec<Plan> {
    let Some(base) = problem.scalar(target) else { return Vec::new() };
    let slow = problem.variants(target, Access::Scalar).map(|v| (v, 1));
    let all = problem.fast(target, &problem.tested_packs(target.dtype)).into_iter().chain(slow);
    let with_splits = |(v, pack): (&'static Variant, usize)| {
        let plan = match v.access {
            Access::Scalar => Plan { vector: None, scalar: v, pack, splits: 1 },
            _ => Plan { vector: Some(v), scalar: base, pack, splits: 1 },
        };
        let most = possible_splits(problem, problem.formed(v.access, pack), target.dtype).last().unwrap_or(1);
        std::iter::once(plan).chain((most > 1).then_some(Plan { splits: most, ..plan }))
    };
    all.flat_map(with_splits).collect()
}

/// Splits of the rows of the bias gradient.
pub fn bias_splits(pixels: usize) -> usize {
    const ROWS_PER_SPLIT: usize = 256;
    pixels.div_ceil(ROWS_PER_SPLIT).min(MAX_SPLITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Arch, Kernel};
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
        Problem { conv: Conv2d::new(spec).expect("a valid case"), product, table, split_launches: Some(1), raw: true }
    }

    fn target(dtype: DType) -> Target {
        Target { arch: Arch::Sm80, dtype }
    }

    fn name(problem: &Problem, dtype: DType) -> (&'static str, usize) {
        let plan = choose(problem, target(dtype)).expect("a plan");
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
    fn channels_that_fill_no_16_bytes_go_element_by_element() {
        assert_eq!(name(&problem(Fwd, [64, 8, 5, 16], 3, 1), DType::F32).0, "conv2d_fwd_f32_128x16_scalar");
        assert_eq!(name(&problem(BwdX, [64, 1, 64, 10], 1, 1), DType::F16).0, "conv2d_bwd_x_f16_64x64_scalar");
        assert_eq!(name(&problem(BwdW, [64, 8, 3, 10], 3, 1), DType::BF16).0, "conv2d_bwd_w_bf16_64x64_scalar");
    }

    #[test]
    fn stems_have_their_own_kernels() {
        let resnet = |product| name(&problem(product, [256, 224, 3, 64], 7, 2), DType::BF16).0;
        assert_eq!(resnet(Fwd), "conv2d_fwd_bf16_128x64_stem");
        assert!(resnet(BwdW).ends_with("_stem"), "{}", resnet(BwdW));
        assert!(resnet(BwdX).ends_with("_scalar"), "no network needs the gradient of its input");
        assert_eq!(name(&problem(Fwd, [64, 8, 1, 16], 3, 1), DType::F32).0, "conv2d_fwd_f32_128x16_stem");
    }

    #[test]
    fn narrow_groups_fill_the_narrowest_tile_and_no_more() {
        let packed = |product, channels: [usize; 2], groups, dtype| {
            let mut problem = problem(product, [256, 14, channels[0], channels[1]], 3, 1);
            problem.conv.spec.groups = groups;
            let plan = choose(&problem, target(dtype)).expect("a plan");
            (plan.kernel(), plan.pack())
        };
        let b = DType::BF16;
        // ResNeXt 32x4d: four groups of four are one of 16.
        assert_eq!(packed(Fwd, [128, 128], 32, b), ("conv2d_fwd_bf16_128x16_packed", 4));
        assert_eq!(packed(BwdX, [128, 128], 32, b), ("conv2d_bwd_x_bf16_128x16_packed", 4));
        assert_eq!(packed(BwdW, [128, 128], 32, b), ("conv2d_bwd_w_bf16_16x64_packed", 4));
        // Depthwise; eight channels per group, two groups per tile; sixteen, which fill a tile.
        assert_eq!(packed(Fwd, [96, 96], 96, b), ("conv2d_fwd_bf16_128x16_packed", 16));
        assert_eq!(packed(Fwd, [96, 96], 96, DType::F32), ("conv2d_fwd_f32_128x16_packed", 16));
        assert_eq!(packed(Fwd, [256, 256], 32, b), ("conv2d_fwd_bf16_128x16_packed", 2));
        assert_eq!(packed(Fwd, [512, 512], 32, b), ("conv2d_fwd_bf16_128x16", 1));
        // Three to five channels: eight groups are the fewest that fill 16 bytes, and five groups cannot.
        assert_eq!(packed(Fwd, [24, 40], 8, b).1, 8);
        assert_eq!(packed(Fwd, [15, 25], 5, b), ("conv2d_fwd_bf16_128x16_scalar", 1));
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

    /// A table where one family has two kernels of its own.
    #[test]
    fn a_family_takes_its_own_kernels_and_nobody_elses() {
        const OWN: [&str; 2] = ["conv2d_fwd_bf16_128x64_sm90", "conv2d_fwd_bf16_128x128_sm90"];
        let mut table = FWD.to_vec();
        for name in OWN {
            let general = *FWD.iter().find(|v| name.starts_with(v.kernel.name)).expect("the tile");
            table.push(Variant { kernel: Kernel { name, family: Some(Arch::Sm90), ..general.kernel }, ..general });
        }
        let table: &'static [Variant] = table.leak();
        let general = problem(Fwd, [256, 56, 64, 64], 3, 1);
        let both = Problem { table, ..general };
        let kernel = |problem: &Problem, arch| {
            let target = Target { arch, dtype: DType::BF16 };
            let plan = choose(problem, target).expect("a plan");
            assert!(fits(plan, problem, target));
            (plan, plan.kernel())
        };
        assert_eq!(kernel(&general, Arch::Sm90).1, "conv2d_fwd_bf16_128x64", "it has none of its own");
        assert_eq!(kernel(&both, Arch::Sm80).1, "conv2d_fwd_bf16_128x64");
        let (own, name) = kernel(&both, Arch::Sm90);
        assert_eq!(name, OWN[0]);
        assert!(!fits(own, &both, target(DType::BF16)), "a plan for another generation");
        let names = |arch| {
            let plans = plans(&both, Target { arch, dtype: DType::BF16 });
            plans.iter().filter(|plan| OWN.contains(&plan.kernel())).count()
        };
        assert_eq!((names(Arch::Sm80), names(Arch::Sm90)), (0, 2));
    }
}
