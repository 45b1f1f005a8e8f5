//! The launches: kernels, grids and parameters.

use super::{BandRows, Bands};
use crate::device::table::{kernels, only};
use crate::device::{Cost, Launch, View};
use crate::ops::params::{narrow, params};
use crate::ops::strips::THREADS;
use crate::{Error, Result};

/// Channels per block.
const CHANNELS: usize = 8;

params! {
    /// `MergeMoments` of kernels/norm/merge.cu.
    struct MergeMoments {
        band_mean: u64, band_m2: u64, mean: u64, m2: u64,
        rows: i64, rows_per_band: i64,
        bands: u32, channels: u32, bands_per_part: u32, last: u32,
    }

    /// `MergeSums` of kernels/norm/merge.cu.
    struct MergeSums {
        from: [u64; 3], to: [u64; 3],
        bands: u32, channels: u32, bands_per_part: u32, unused: u32,
    }
}

kernels! {
    MOMENTS: MergeMoments = "norm_merge_moments_*", THREADS * 3 * 4;
    SUMS: MergeSums = "norm_merge_sums_*", THREADS * 4;
}

/// The launches that merge each band's mean and sum of squares about it (M2) into `[mean, var]`, the variance biased.
///
/// `from` are `[bands][channels]`; `scratch` has [`Bands::merge_bytes`]`(2)` bytes, or is `None` if that is 0. Fails if
/// a view is too small, or `rows` does not make `bands.count` bands.
pub fn moments(
    bands: Bands,
    rows: BandRows,
    from: [&View; 2],
    to: [&View; 2],
    scratch: Option<&View>,
) -> Result<Vec<Launch>> {
    let fits = rows.rows.div_ceil(rows.each) == bands.count;
    Error::check(fits, "norm_merge", || format!("{} bands of {rows:?}", bands.count))?;
    let Some((parts, each)) = bands.parts() else {
        return Ok(vec![moments_step(bands, rows, bands.count, from, to)?]);
    };
    let scratch = parts.views(2, scratch)?;
    let between = [&scratch[0], &scratch[1]];
    let merged = BandRows { rows: rows.rows, each: rows.each * each };
    Ok(vec![moments_step(bands, rows, each, from, between)?, moments_step(parts, merged, parts.count, between, to)?])
}

/// The launches that sum the bands of one to three tensors `from`, `[bands][channels]`, into `to`, `[channels]`.
///
/// `scratch` has [`Bands::merge_bytes`] bytes, or is `None` if that is 0. Fails if a view is too small.
pub fn sums(bands: Bands, from: &[&View], to: &[&View], scratch: Option<&View>) -> Result<Vec<Launch>> {
    let Some((parts, each)) = bands.parts() else {
        return Ok(vec![sums_step(bands, bands.count, from, to)?]);
    };
    let scratch = parts.views(from.len(), scratch)?;
    let between: Vec<&View> = scratch.iter().collect();
    Ok(vec![sums_step(bands, each, from, &between)?, sums_step(parts, parts.count, &between, to)?])
}

/// One launch: merges `each` bands to a part.
fn moments_step(bands: Bands, rows: BandRows, each: usize, from: [&View; 2], to: [&View; 2]) -> Result<Launch> {
    let parts = Bands { count: bands.count.div_ceil(each), ..bands };
    check(&from, bands)?;
    check(&to, parts)?;
    let cost = Cost {
        flops: 10 * (bands.bytes() / 4) as u64,
        bytes_read: 2 * bands.bytes() as u64,
        bytes_written: 2 * parts.bytes() as u64,
    };
    let [band_mean, band_m2, mean, m2] = [from[0], from[1], to[0], to[1]].map(View::address);
    let [bands, channels, bands_per_part] = narrow("norm_merge", [bands.count, bands.channels, each])?;
    let (rows, rows_per_band, last) = (rows.rows as i64, rows.each as i64, (parts.count == 1).into());
    let params =
        MergeMoments { band_mean, band_m2, mean, m2, rows, rows_per_band, bands, channels, bands_per_part, last };
    let views = [from, to].concat().into_iter().cloned().collect();
    // SAFETY: `check` found room for two numbers per channel and band, and per channel and part.
    Ok(unsafe { Launch::new(only(&MOMENTS), [blocks(parts)?, 1, 1], &params, cost, views) })
}

/// As [`moments_step`], for sums.
fn sums_step(bands: Bands, each: usize, from: &[&View], to: &[&View]) -> Result<Launch> {
    let parts = Bands { count: bands.count.div_ceil(each), ..bands };
    let fits = (1..=3).contains(&from.len()) && from.len() == to.len();
    Error::check(fits, "norm_merge", || format!("sums of {} tensors to {}", from.len(), to.len()))?;
    check(from, bands)?;
    check(to, parts)?;
    let addresses = |views: &[&View]| std::array::from_fn(|i| views.get(i).map_or(0, |v| v.address()));
    let [count, channels, bands_per_part] = narrow("norm_merge", [bands.count, bands.channels, each])?;
    let (from_at, to_at, tensors) = (addresses(from), addresses(to), from.len());
    let params = MergeSums { from: from_at, to: to_at, bands: count, channels, bands_per_part, unused: 0 };
    let cost = Cost {
        flops: (tensors * bands.bytes() / 4) as u64,
        bytes_read: (tensors * bands.bytes()) as u64,
        bytes_written: (tensors * parts.bytes()) as u64,
    };
    let views = [from, to].concat().into_iter().cloned().collect();
    // SAFETY: each tensor has a row of blocks; `check` found room for a number per channel and band, or part.
    Ok(unsafe { Launch::new(only(&SUMS), [blocks(parts)?, tensors as u32, 1], &params, cost, views) })
}

fn check(views: &[&View], of: Bands) -> Result<()> {
    let bad = views.iter().find(|view| view.bytes() < of.bytes() || !view.address().is_multiple_of(4));
    let problem = |view: &&View| format!("a view of {} bytes at {:#x} for {of:?}", view.bytes(), view.address());
    bad.map_or(Ok(()), |view| Err(Error::invalid("norm_merge", problem(view))))
}

fn blocks(parts: Bands) -> Result<u32> {
    narrow("norm_merge", [parts.channels.div_ceil(CHANNELS) * parts.count]).map(|[blocks]| blocks)
}
