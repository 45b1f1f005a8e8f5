//! Both gradients in one launch.
//!
//! A plan is that of bwd_w, of whose table each row has a partner in that of bwd_x: the same entry.

use super::params::GradientsParams;
use super::variants::{BOTH_W, BOTH_X};
use super::{data_gradient, launch_both, load_both, load_gradient, weight_gradient, Call};
use crate::device::{Cost, Launch, View};
use crate::ops::conv2d::launch::bind::{int, Matrix};
use crate::ops::conv2d::launch::choose::{self, Plan, Problem, Product};
use crate::ops::conv2d::launch::product::{grid, Extras};
use crate::ops::conv2d::launch::variants::Variant;
use crate::ops::norm::{Correction, Epilogue, Prologue};
use crate::ops::norm_conv::Node;
use crate::ops::Operator;
use crate::tensor::DType;
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

/// The same entry with its tile of dx.
fn partner(v: &'static Variant) -> &'static Variant {
    BOTH_W.iter().position(|w| w == v).map_or(v, |i| &BOTH_X[i])
}

/// What `plan` means for dx.
pub fn data_plan(plan: Plan) -> Plan {
    Plan { vector: plan.vector.map(partner), scalar: partner(plan.scalar), splits: 1, ..plan }
}

/// A segment reads no more than this where that needs no more partial sums than are allowed. It shares with those before
/// and behind it the 40 MB of L2 cache of an A100, or the 50 MB of an H200.
const SEGMENT_BYTES: usize = 16 << 20;

/// The plan whose two products take the fewest clocks.
pub fn choose(node: &Node, dtype: DType) -> Option<Plan> {
    let Problems { x, w } = problems(node);
    let read = (2 * node.conv.y().shape.len() + node.conv.x().shape.len()) * dtype.bytes();
    let data = |v: &'static Variant, pack: usize| choose::clocks(&x, x.formed(v.access, pack), partner(v), 1);
    choose::choose_beside(&w, dtype, read.div_ceil(SEGMENT_BYTES).next_power_of_two(), data)
}

impl Call<'_> {
    pub(super) fn bwd(
        &mut self,
        plan: Plan,
        correction: Option<Correction>,
        prologue: Option<Prologue>,
        epilogue: Option<Epilogue>,
    ) -> Result<Vec<Launch>> {
        let Problems { x, w } = problems(self.node);
        let correcting = self.correction(correction)?;
        let activating = self.prologue(prologue)?;
        let masking = self.masking(epilogue)?;
        let mut data = self.bound(x, data_plan(plan), [0, 1], 0, Extras::default())?;
        load_gradient(&mut data, &correcting, &masking);
        let mut weight = self.bound(w, plan, [0, 2], 1, Extras::default())?;
        load_both(&mut weight, &correcting, &activating);
        if !(data.is_fast() && weight.is_fast()) {
            data.slow();
            weight.slow();
        }
        let (tiles, bytes) = self.tiles(&data, plan)?;

        let (formed, splits) = (data.formed(), plan.splits());
        let x_blocks = formed.blocks().saturating_mul(formed.shape.residues);
        let (x_segment, w_blocks) = (x_blocks.div_ceil(splits), weight.formed().blocks());
        let params = GradientsParams {
            x: data_gradient(&data, &correcting, &masking, &tiles)?,
            w: weight_gradient(&weight, &correcting, &activating)?,
            x_blocks: int(x_blocks)?,
            x_segment: int(x_segment)?,
            x_residues: int(formed.shape.residues)?,
            w_blocks: int(w_blocks)?,
        };
        let kernel = &formed.variant.kernel;
        let blocks = splits.saturating_mul(x_segment.saturating_add(w_blocks));
        let grid = grid(&self.node.conv, self.node.name(), [blocks, 1, 1])?;
        let beside = self.read.iter().map(|&m| (m, m.bytes()));
        let read: Vec<(Matrix<'_>, u64)> = data.reads().into_iter().chain(weight.reads()).chain(beside).collect();
        let sums = Cost { flops: 0, bytes_read: once(&read), bytes_written: bytes as u64 };
        let cost = data.result_cost() + weight.result_cost() + sums;
        let views: Vec<View> =
            Self::views(&data, &self.read, tiles.first()).into_iter().chain(weight.views()).collect();
        let mut launches = vec![launch_both(kernel, grid, &params, cost, views)];
        launches.extend(weight.reduce(DType::F32)?);
        launches.extend(self.merge(&data, &tiles, 2)?);
        Ok(launches)
    }
}

/// Bytes of `read`, of which several may be the same: y of the epilogue is x where that is the batch norm's input. Of
/// the same the most is counted.
fn once(read: &[(Matrix<'_>, u64)]) -> u64 {
    let same = |a: &Matrix<'_>, b: &Matrix<'_>| (a.address(), a.rows, a.cols) == (b.address(), b.rows, b.cols);
    let first = |&(i, (m, _)): &(usize, &(Matrix<'_>, u64))| !read[..i].iter().any(|(other, _)| same(other, m));
    let most = |m: &Matrix<'_>| read.iter().filter(|(other, _)| same(other, m)).map(|&(_, bytes)| bytes).max();
    read.iter().enumerate().filter(first).filter_map(|(_, (m, _))| most(m)).sum()
}
