//! Which tensors of an op may share memory.

use super::{Arg, Io, Operator};
use crate::device::{Target, View};
use crate::tensor::{Shape, TensorType};
use crate::{Error, Result};

/// The bytes of a tensor: runs of `run` bytes, `stride` bytes from one to the next, up to `end`.
struct Extent<'a> {
    view: &'a View,
    run: u64,
    stride: u64,
    end: u64,
}

impl<'a> Extent<'a> {
    fn of(arg: &'a Arg, shape: &Shape, element: usize) -> Self {
        let (start, element) = (arg.view.address(), element as u64);
        let (runs, run, stride) = match shape.nhwc() {
            Some([n, h, w, c]) => (n * h * w, c, arg.pixel_stride),
            _ => (1, shape.len(), shape.len()),
        };
        let [runs, run, stride] = [runs as u64, run as u64 * element, stride as u64 * element];
        Self { view: &arg.view, run, stride, end: start + runs.saturating_sub(1) * stride + run }
    }

    fn start(&self) -> u64 {
        self.view.address()
    }

    /// True if the two share no byte: they may be slices of channels that interleave.
    fn is_apart(&self, other: &Self) -> bool {
        let (a, b) = if self.start() <= other.start() { (self, other) } else { (other, self) };
        let offset = (b.start() - a.start()).checked_rem(a.stride).unwrap_or(0);
        let interleave = a.stride == b.stride && a.run <= offset && offset + b.run <= a.stride;
        interleave || !a.view.overlaps(b.view) || a.end <= b.start()
    }

    /// True if this is `other`, or a slice of its channels.
    fn is_within(&self, other: &Self) -> bool {
        let offset = self.start().checked_sub(other.start()).and_then(|bytes| bytes.checked_rem(other.stride));
        self.stride == other.stride && self.end <= other.end && offset.is_some_and(|at| at + self.run <= other.run)
    }
}

impl Io<'_> {
    /// Fails if an output shares a byte with another tensor or the scratch memory, unless an input is the output or a
    /// slice of its channels: the op then works in place. [`Launch::new`](crate::device::Launch::new) says what its
    /// kernels must then do.
    pub fn check_aliases(&self, op: &dyn Operator, target: Target) -> Result<()> {
        let extents = |types: Vec<TensorType>, args| -> Vec<Extent<'_>> {
            let of = |(ty, arg): (TensorType, _)| Extent::of(arg, &ty.shape, ty.elem.bytes(target.dtype));
            types.into_iter().zip::<std::slice::Iter<'_, Arg>>(args).map(of).collect()
        };
        let (inputs, outputs) = (extents(op.inputs(), self.inputs.iter()), extents(op.outputs(), self.outputs.iter()));
        for (i, output) in outputs.iter().enumerate() {
            let input = inputs.iter().position(|input| !input.is_apart(output) && !input.is_within(output));
            let input = input.map(|j| format!("input {j}"));
            let other = || outputs[..i].iter().position(|other| !other.is_apart(output)).map(|j| format!("output {j}"));
            let scratch =
                || self.scratch.filter(|view| view.overlaps(output.view)).map(|_| "scratch memory".to_string());
            if let Some(what) = input.or_else(other).or_else(scratch) {
                return Err(Error::invalid(op.name(), format!("output {i} shares memory with {what}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Arch, Device};
    use crate::ops::Write;

    #[test]
    fn tensors_are_apart_or_within() {
        let Device::Kernels(backend) = Device::blueprint(Arch::Sm80) else { unreachable!("it has memory") };
        let whole = View::whole(backend.allocate(1 << 12).expect("addresses"));
        let other = View::whole(backend.allocate(1 << 12).expect("addresses"));
        let tensor = |view: &View, channel: usize, c: usize, pixel_stride: usize| {
            let bytes = view.bytes() - 4 * channel;
            let view = view.part(4 * channel, bytes).expect("a slice");
            (Arg { view, pixel_stride, write: Write::Overwrite }, Shape::from([2, 3, 3, c]))
        };
        for (a, b, apart, what) in [
            (tensor(&whole, 0, 8, 8), tensor(&whole, 0, 8, 8), false, "in place"),
            (tensor(&whole, 0, 8, 8), tensor(&other, 0, 8, 8), true, "two buffers"),
            (tensor(&whole, 0, 8, 8), tensor(&whole, 144, 8, 8), true, "one behind the other"),
            (tensor(&whole, 0, 8, 8), tensor(&whole, 143, 8, 8), false, "an element in both"),
            (tensor(&whole, 0, 3, 8), tensor(&whole, 3, 5, 8), true, "slices of channels"),
            (tensor(&whole, 0, 3, 8), tensor(&whole, 11, 5, 8), true, "slices, a pixel apart"),
            (tensor(&whole, 0, 3, 8), tensor(&whole, 2, 5, 8), false, "a channel in both"),
            (tensor(&whole, 3, 5, 8), tensor(&whole, 8, 3, 8), true, "slices of two pixels"),
            (tensor(&whole, 3, 6, 8), tensor(&whole, 8, 3, 8), false, "a channel in the next pixel"),
            (tensor(&whole, 0, 3, 8), tensor(&whole, 3, 5, 16), false, "strides that differ"),
            (tensor(&whole, 0, 8, 8), tensor(&whole, 0, 4, 8), false, "a slice of the whole"),
        ] {
            let [a, b] = [&a, &b].map(|(arg, shape)| Extent::of(arg, shape, 4));
            assert_eq!((a.is_apart(&b), b.is_apart(&a)), (apart, apart), "{what}");
        }
        let (all, slice, wide) = (tensor(&whole, 0, 8, 8), tensor(&whole, 3, 5, 8), tensor(&whole, 3, 6, 8));
        let [all, slice, wide] = [&all, &slice, &wide].map(|(arg, shape)| Extent::of(arg, shape, 4));
        assert!(all.is_within(&all) && slice.is_within(&all));
        assert!(!all.is_within(&slice) && !wide.is_within(&all));
    }
}
