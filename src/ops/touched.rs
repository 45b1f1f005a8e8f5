//! The bytes that a launch touches of a tensor that it reads in part, or that is a slice of a wider one.

use super::{Arg, Io, Operator};
use crate::device::Cost;
use crate::tensor::{DType, TensorType};

/// Bytes of a sector, the unit in which a GPU's caches fetch and write back.
const SECTOR: usize = 32;

impl Io<'_> {
    /// The cost of `op` as it is bound: each tensor is touched once, and an accumulated output is also read.
    pub(super) fn cost(&self, op: &dyn Operator, dtype: DType) -> Cost {
        let bytes = |types: Vec<TensorType>, args: &[Arg], counts: &dyn Fn(&Arg) -> bool| -> u64 {
            types.iter().zip(args).filter(|(_, arg)| counts(arg)).map(|(ty, arg)| arg.touched(ty, dtype)).sum()
        };
        let added = bytes(op.outputs(), self.outputs, &Arg::adds);
        Cost {
            flops: op.flops(),
            bytes_read: bytes(op.inputs(), self.inputs, &|_| true) + added,
            bytes_written: bytes(op.outputs(), self.outputs, &|_| true),
        }
    }
}

impl Arg {
    /// Bytes touched by a launch that touches all of a tensor of type `ty`.
    fn touched(&self, ty: &TensorType, dtype: DType) -> u64 {
        let element = ty.elem.bytes(dtype);
        match *ty.shape.dims() {
            [n, h, w, c] => rows(self.view.address(), n * h * w, c * element, self.pixel_stride * element),
            _ => ty.bytes(dtype) as u64,
        }
    }

    /// As [`pixels`], for elements of `element` bytes.
    pub(super) fn touched_pixels(&self, shape: [usize; 4], element: usize, reached: [&[bool]; 2]) -> u64 {
        pixels(self.view.address(), shape, [self.pixel_stride * element, element], reached)
    }
}

/// Bytes touched in images `[N,H,W,C]` at `address`, if the touched rows and columns are those with `reached`. Pixels
/// are `pitch` bytes apart, an element has `element` bytes.
pub(super) fn pixels(
    address: u64,
    [n, h, w, c]: [usize; 4],
    [pitch, element]: [usize; 2],
    reached: [&[bool]; 2],
) -> u64 {
    if reached.iter().all(|axis| axis.iter().all(|&reached| reached)) {
        return rows(address, n * h * w, c * element, pitch);
    }
    let which = |axis: &[bool]| -> Vec<usize> { (0..axis.len()).filter(|&i| axis[i]).collect() };
    let [lines, columns] = reached.map(which);
    let first = address as usize % SECTOR;
    let starts = lines.iter().flat_map(|line| columns.iter().map(move |column| first + (line * w + column) * pitch));
    (n * SECTOR * sectors(starts, c * element)) as u64
}

/// Bytes of the sectors touched by `count` rows of `bytes` bytes, the first at `address`, `pitch` bytes apart. Dense
/// rows count only their own bytes.
pub(super) fn rows(address: u64, count: usize, bytes: usize, pitch: usize) -> u64 {
    let first = address as usize % SECTOR;
    if pitch == bytes || [first, bytes, pitch].iter().all(|v| v.is_multiple_of(SECTOR)) {
        return (count * bytes) as u64;
    }
    // From the second row on, the sectors that a row adds depend on its offset in a sector, which is periodic.
    let period = SECTOR >> pitch.trailing_zeros().min(SECTOR.ilog2());
    let of = |rows: usize| sectors((0..rows).map(|i| first + i * pitch), bytes);
    let touched = match count <= 2 * period {
        true => of(count),
        false => of(period + count % period) + (count / period - 1) * (of(2 * period) - of(period)),
    };
    (SECTOR * touched) as u64
}

/// The number of sectors touched by runs of `bytes` bytes that begin at `starts`, in ascending order.
fn sectors(starts: impl Iterator<Item = usize>, bytes: usize) -> usize {
    let (mut count, mut next) = (0, 0);
    for start in starts {
        let (first, end) = ((start / SECTOR).max(next), (start + bytes).div_ceil(SECTOR));
        count += end.saturating_sub(first);
        next = next.max(end);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Arch, Device, View};
    use crate::ops::Write;

    #[test]
    fn rows_touch_whole_sectors_once() {
        let slow = |first: usize, count: usize, bytes: usize, pitch: usize| {
            let touched: std::collections::BTreeSet<usize> =
                (0..count).flat_map(|i| (0..bytes).map(move |b| (first + i * pitch + b) / SECTOR)).collect();
            (touched.len() * SECTOR) as u64
        };
        for (first, bytes, pitch) in
            [(0, 24, 48), (8, 24, 40), (16, 64, 96), (0, 2, 6), (30, 6, 7), (0, 32, 64), (4, 20, 512)]
        {
            for count in [1, 2, 3, 16, 31, 64, 65, 100, 333] {
                assert_eq!(
                    rows(first as u64, count, bytes, pitch),
                    slow(first, count, bytes, pitch),
                    "{count} rows of {bytes} at {first} + {pitch} i"
                );
            }
        }
        assert_eq!(rows(4, 10, 6, 6), 60, "dense rows are as many bytes");
    }

    #[test]
    fn pixels_in_between_are_not_touched() {
        let Device::Kernels(backend) = Device::blueprint(Arch::Sm90) else { unreachable!("it runs kernels") };
        let view = View::whole(backend.allocate(1 << 20).expect("addresses"));
        let arg = |pixel_stride| Arg { view: view.clone(), pixel_stride, write: Write::Overwrite };
        let (all, every_other) = ([true; 4], [true, false, true, false]);
        assert_eq!(arg(16).touched_pixels([2, 4, 4, 16], 2, [&all, &all]), 1024);
        assert_eq!(arg(16).touched_pixels([2, 4, 4, 16], 2, [&every_other, &every_other]), 256);
        let halves = arg(8).touched_pixels([2, 4, 4, 8], 2, [&every_other, &every_other]);
        assert_eq!(halves, 256, "half sectors count whole");
        let slice = arg(24).touched_pixels([2, 4, 4, 16], 2, [&all, &all]);
        assert_eq!(slice, 2 * 16 * 48, "a slice's gaps are in its sectors");
    }
}
