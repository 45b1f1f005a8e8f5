//! Both gradients in one launch.
//!
//! The plan is bwd_w's. Each row of its table has a partner in bwd_x's table, which is the same entry.

use super::bind::{int, Factors, Matrix};
use super::choose::{self, x_dims, y_dims, Plan, Problem, Product};
use super::fused::params::GradientsParams;
use super::fused::variants::{BOTH_W, BOTH_X};
use super::loads::{data_gradient, weight_gradient, Reader};
use super::passes::Run;
use super::product::{grid, Extras};
use super::variants::Variant;
use crate::device::{Cost, Launch, Target, View};
use crate::ops::conv2d::{Bwd, Node};
use crate::ops::{Arg, Operator};
use crate::Result;

/// The two products of a node.
pub struct Problems {
    pub x: Problem,
    pub w: Problem,
}

pub fn problems(node: &Node) -> Problems {
    let problem = |product, table, split_launches| Problem {
        conv: node.conv,
        product,
        table,
        split_launches,
        raw: false, // no network needs dx of a stem
    };
    Problems { x: problem(Product::BwdX, &BOTH_X, None), w: problem(Product::BwdW, &BOTH_W, Some(1)) }
}

/// The entry of `v` with its tile of dx.
fn partner(v: &'static Variant) -> &'static Variant {
    BOTH_W.iter().position(|w| w == v).map_or(v, |i| &BOTH_X[i])
}

/// The joint `plan` as bwd_x sees it: the same entries with their tile of dx, and no splits.
pub fn data_plan(plan: Plan) -> Plan {
    Plan { vector: plan.vector.map(partner), scalar: partner(plan.scalar), splits: 1, ..plan }
}

/// The most bytes that a segment reads, if that needs no more partial sums than allowed: it shares the L2 cache (40 MB
/// on an A100, 50 MB on an H200) with its neighbours.
const SEGMENT_BYTES: usize = 16 << 20;

/// The plan whose two products take the fewest clocks.
pub fn choose(node: &Node, target: Target) -> Option<Plan> {
    let Problems { x, w } = problems(node);
    let read = (2 * node.conv.y().shape.len() + node.conv.x().shape.len()) * target.dtype.bytes();
    let data = |v: &'static Variant, pack: usize| choose::clocks(&x, x.formed(v.access, pack), partner(v), 1);
    choose::choose_beside(&w, target, read.div_ceil(SEGMENT_BYTES).next_power_of_two(), data)
}

impl<'a> Run<'a> {
    pub fn bwd(&self, call: Bwd<&'a Arg, &'a Arg>) -> Result<Vec<Launch>> {
        let Bwd { dy, w, x, mask, dx, dw, sums } = call;
        let (conv, dtype, mut reader) = (&self.node.conv, self.target.dtype, Reader::default());
        let correcting = reader.correcting(dy.load, y_dims(conv), dtype)?;
        let activating = reader.activating(x.load, conv.spec().c)?;
        let masking = reader.masking(mask, x_dims(conv), dtype)?;
        let (problems, none) = (problems(self.node), Extras::default());
        let factors = Factors { a: dy.value, b: w, out: dx };
        let mut data = self.bound(problems.x, data_plan(self.plan), factors, none)?;
        correcting.beside(&mut data);
        masking.beside(&mut data);
        data.whole_out = sums.is_some(); // the sums need every pixel of dx
        let factors = Factors { a: dy.value, b: x.value, out: dw };
        let mut weight = self.bound(problems.w, self.plan, factors, none)?;
        correcting.beside(&mut weight);
        activating.beside(&mut weight);
        if !(data.is_fast() && weight.is_fast()) {
            data.slow();
            weight.slow();
        }
        let tiles = self.tiles(&data)?;

        let (formed, splits) = (data.formed(), self.plan.splits);
        let x_blocks = formed.blocks().saturating_mul(formed.shape.residues);
        let (x_segment, w_blocks) = (x_blocks.div_ceil(splits), weight.formed().blocks());
        let params = GradientsParams {
            x: data_gradient(&data, &correcting, &masking, &tiles.views)?,
            w: weight_gradient(&weight, &correcting, &activating)?,
            x_blocks: int(x_blocks)?,
            x_segment: int(x_segment)?,
            x_residues: int(formed.shape.residues)?,
            w_blocks: int(w_blocks)?,
        };
        let kernel = &formed.variant.kernel;
        let blocks = splits.saturating_mul(x_segment.saturating_add(w_blocks));
        let grid = grid(conv, self.node.name(), [blocks, 1, 1])?;
        let beside = reader.read.iter().map(|&m| (m, m.bytes()));
        let read: Vec<(Matrix<'_>, u64)> = data.reads().into_iter().chain(weight.reads()).chain(beside).collect();
        let besides = Cost { flops: 0, bytes_read: once(&read), bytes_written: tiles.bytes() as u64 };
        let cost = data.result_cost() + weight.result_cost() + besides;
        let views: Vec<View> = Self::views(&data, &reader.read, &tiles).into_iter().chain(weight.views()).collect();
        // SAFETY: the rows of the tables BOTH take GradientsParams; every matrix was checked to lie in its view, the
        // tiles' sums in the scratch memory after the partial sums.
        let mut launches = vec![unsafe { Launch::new(kernel, grid, &params, cost, views) }];
        launches.extend(weight.reduce(self.target.in_f32())?);
        launches.extend(self.merge_sums(&tiles, sums)?);
        Ok(launches)
    }
}

/// Bytes of `read`, where each matrix counts once, with the most bytes: the mask's y can be the same matrix as x.
fn once(read: &[(Matrix<'_>, u64)]) -> u64 {
    let same = |a: &Matrix<'_>, b: &Matrix<'_>| (a.address(), a.rows, a.cols) == (b.address(), b.rows, b.cols);
    let first = |&(i, (m, _)): &(usize, &(Matrix<'_>, u64))| !read[..i].iter().any(|(other, _)| same(other, m));
    let most = |m: &Matrix<'_>| read.iter().filter(|(other, _)| same(other, m)).map(|&(_, bytes)| bytes).max();
    read.iter().enumerate().filter(first).filter_map(|(_, (m, _))| most(m)).sum()
}
