//! The passes with their operands bound.

use bytemuck::Pod;

use super::bind::{Factors, Matrix};
use super::choose::{x_dims, y_dims, Plan, Problem};
use super::loads::{data_gradient, forward, weight_gradient, Reader};
use super::product::{Bound, Extras};
use super::{bands, is_measured, numbers_per_column, Node};
use crate::device::{Cost, Launch, Target, View};
use crate::ops::conv2d::{BwdW, BwdX, Fwd, Pass};
use crate::ops::norm;
use crate::ops::norm::merge::{self, BandRows, Bands};
use crate::ops::store::{Moments, Sums};
use crate::ops::{Arg, Io, Operator};
use crate::{Error, Result};

/// A pass with its plan and its scratch memory.
pub struct Run<'a> {
    pub node: &'a Node,
    pub target: Target,
    pub problem: Problem,
    pub plan: Plan,
    scratch: Option<&'a View>,
    /// The scratch memory after the partial sums.
    tiles: Option<View>,
}

/// The numbers that the tiles leave: a tensor `[bands][channels]` for each.
pub struct Tiles {
    pub views: Vec<View>,
    bands: Bands,
    /// Rows per band.
    rows: usize,
}

impl Tiles {
    pub fn bytes(&self) -> usize {
        self.views.len() * self.bands.bytes()
    }
}

impl<'a> Run<'a> {
    pub fn new(node: &'a Node, target: Target, problem: Problem, plan: Plan, io: &Io<'a>) -> Result<Self> {
        let partial = plan.partial_bytes(&problem);
        let tiles = io.scratch.map(|view| view.part(partial, view.bytes() - partial)).transpose()?;
        Ok(Self { node, target, problem, plan, scratch: io.scratch, tiles })
    }

    pub fn launches(&self, io: &Io<'a>) -> Result<Vec<Launch>> {
        match self.node.pass {
            Pass::Fwd(form) if self.node.loads_sum() => self.fwd_end(io.bind(form)),
            Pass::Fwd(form) => self.fwd(io.bind(form)),
            Pass::BwdX(form) => self.bwd_x(io.bind(form)),
            Pass::BwdW(form) => self.bwd_w(io.bind(form)),
            Pass::Bwd(form) => self.bwd(io.bind(form)),
            Pass::BwdBias(_) => Err(Error::unsupported("conv2d_bwd_bias", "it is no product")),
        }
    }

    /// Binds the operands and the result of `problem`.
    pub fn bound(
        &self,
        problem: Problem,
        plan: Plan,
        factors: Factors<&'a Arg>,
        extras: Extras<'a>,
    ) -> Result<Bound<'a>> {
        let accumulate = factors.out.adds();
        Bound::new(problem, plan, self.target.dtype, factors, Extras { accumulate, ..extras }, self.scratch)
    }

    /// The cost of a launch that also reads `read` and leaves the numbers of `tiles`.
    pub fn cost(bound: &Bound<'_>, read: &[Matrix<'_>], tiles: &Tiles) -> Cost {
        let bytes_read = read.iter().map(Matrix::bytes).sum();
        bound.cost() + Cost { flops: 0, bytes_read, bytes_written: tiles.bytes() as u64 }
    }

    pub fn views(bound: &Bound<'_>, read: &[Matrix<'_>], tiles: &Tiles) -> Vec<View> {
        let read = read.iter().map(|m| m.view.clone());
        bound.views().into_iter().chain(read).chain(tiles.views.iter().cloned()).collect()
    }

    /// The launch of the product.
    ///
    /// # Safety
    /// The entry of a plain pass takes a `P`, the entry of a fused pass an `F`.
    unsafe fn product<P: Pod, F: Pod>(
        &self,
        bound: &Bound<'a>,
        reader: &Reader<'a>,
        tiles: &Tiles,
        (plain, fused): (P, F),
    ) -> Result<Launch> {
        let (kernel, grid) = (&bound.formed().variant.kernel, bound.grid()?);
        let cost = Self::cost(bound, &reader.read, tiles);
        let views = Self::views(bound, &reader.read, tiles);
        Ok(match self.node.pass.is_plain() {
            // SAFETY: the struct is the kernel's, as the caller promises. Every matrix was checked to lie in its view,
            // the tiles' numbers in the scratch memory; the kernel stays inside their extents and strides.
            true => unsafe { Launch::new(kernel, grid, &plain, cost, views) },
            // SAFETY: as above.
            false => unsafe { Launch::new(kernel, grid, &fused, cost, views) },
        })
    }

    fn fwd(&self, call: Fwd<&'a Arg, &'a Arg>) -> Result<Vec<Launch>> {
        let Fwd { x, w, epilogue, y, moments, end: None } = call else {
            let reason = "the end of a block is stored where x is loaded as its sum";
            return Err(Error::unsupported(self.node.name(), reason));
        };
        let (conv, mut reader) = (&self.node.conv, Reader::default());
        let activating = reader.activating(x.load, conv.spec().c)?;
        let extras = Extras::new(conv, self.target.dtype, epilogue)?;
        let mut bound = self.bound(self.problem, self.plan, Factors { a: x.value, b: w, out: y }, extras)?;
        activating.beside(&mut bound);
        let tiles = self.tiles(&bound)?;
        let params = (bound.gather_params()?, forward(&bound, &activating, &tiles.views)?);
        // SAFETY: the rows of the plain table take GatherParams, the rows of the fused one ForwardParams.
        let first = unsafe { self.product(&bound, &reader, &tiles, params)? };
        self.measured(first, &bound, &tiles, y, moments)
    }

    /// `first` of a forward pass, and the launches that add its splits and compute the moments of y.
    pub fn measured(
        &self,
        first: Launch,
        bound: &Bound<'_>,
        tiles: &Tiles,
        y: &Arg,
        moments: Option<Moments<&Arg>>,
    ) -> Result<Vec<Launch>> {
        let mut launches = vec![first];
        launches.extend(bound.reduce(self.target)?);
        let Some(to) = moments.map(|moments| moments.map(|_, arg| &arg.view)) else { return Ok(launches) };
        if let [mean, m2] = &tiles.views[..] {
            let rows = BandRows { rows: y_dims(&self.node.conv)[0], each: tiles.rows };
            let scratch = tiles.bands.after(2, self.tiles.as_ref())?;
            launches.extend(merge::moments(tiles.bands, rows, [mean, m2], [to.mean, to.var], scratch.as_ref())?);
        } else if is_measured(self.node, self.plan) {
            launches.extend(norm::measure(self.node.conv.y_shape(), self.target, y, to, self.scratch)?);
        }
        Ok(launches)
    }

    fn bwd_w(&self, call: BwdW<&'a Arg, &'a Arg>) -> Result<Vec<Launch>> {
        let BwdW { dy, x, dw } = call;
        let (conv, mut reader) = (&self.node.conv, Reader::default());
        let correcting = reader.correcting(dy.load, y_dims(conv), self.target.dtype)?;
        let activating = reader.activating(x.load, conv.spec().c)?;
        let factors = Factors { a: dy.value, b: x.value, out: dw };
        let mut bound = self.bound(self.problem, self.plan, factors, Extras::default())?;
        correcting.beside(&mut bound);
        activating.beside(&mut bound);
        let params = (bound.weight_params()?, weight_gradient(&bound, &correcting, &activating)?);
        // SAFETY: the rows of the plain table take WeightParams, the rows of the fused one WeightGradientParams.
        let first = unsafe { self.product(&bound, &reader, &self.tiles(&bound)?, params)? };
        Ok(std::iter::once(first).chain(bound.reduce(self.target.in_f32())?).collect())
    }

    fn bwd_x(&self, call: BwdX<&'a Arg, &'a Arg>) -> Result<Vec<Launch>> {
        let BwdX { dy, w, mask, dx, sums } = call;
        let (conv, mut reader) = (&self.node.conv, Reader::default());
        let correcting = reader.correcting(dy.load, y_dims(conv), self.target.dtype)?;
        let masking = reader.masking(mask, x_dims(conv), self.target.dtype)?;
        let factors = Factors { a: dy.value, b: w, out: dx };
        let mut bound = self.bound(self.problem, self.plan, factors, Extras::default())?;
        correcting.beside(&mut bound);
        masking.beside(&mut bound);
        bound.whole_out = sums.is_some(); // the sums need every pixel of dx
        let tiles = self.tiles(&bound)?;
        let params = (bound.gather_params()?, data_gradient(&bound, &correcting, &masking, &tiles.views)?);
        // SAFETY: the rows of the plain table take GatherParams, the rows of the fused one DataGradientParams.
        let first = unsafe { self.product(&bound, &reader, &tiles, params)? };
        let mut launches = vec![first];
        launches.extend(bound.reduce(self.target)?);
        launches.extend(self.merge_sums(&tiles, sums)?);
        Ok(launches)
    }

    /// The places of the numbers that the tiles of `bound` leave.
    pub fn tiles(&self, bound: &Bound<'_>) -> Result<Tiles> {
        let rows = bound.formed().variant.tile.m;
        let bands = bands(self.node, rows);
        let views = bands.views(numbers_per_column(self.node, self.plan), self.tiles.as_ref())?;
        Ok(Tiles { views, bands, rows })
    }

    /// The launches that merge the tiles' sums.
    pub fn merge_sums(&self, tiles: &Tiles, sums: Option<Sums<&Arg>>) -> Result<Vec<Launch>> {
        let Some(sums) = sums else { return Ok(Vec::new()) };
        let from: Vec<&View> = tiles.views.iter().collect();
        let to: Vec<&View> = sums.list().into_iter().map(|arg| &arg.view).collect();
        merge::sums(tiles.bands, &from, &to, tiles.bands.after(from.len(), self.tiles.as_ref())?.as_ref())
    }
}
