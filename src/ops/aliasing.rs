//! Which tensors of an op may share memory.

use super::{Arg, Io, Operator};
use crate::device::{Target, View};
use crate::tensor::{Shape, TensorType};
use crate::{Error, Result};

/// The bytes of a tensor: runs of `run` bytes, `stride` bytes apart, up to `end`.
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

    /// True if the two share no byte; interleaved slices of channels do not.
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
    /// Fails if an output or the scratch memory shares a byte with another tensor. If the op works in place
    /// ([`Written::in_place`](super::Written)), an input may be the output, or either a slice of the other's channels.
    pub(super) fn check_aliases(&self, op: &dyn Operator, target: Target) -> Result<()> {
        let extents = |types: Vec<TensorType>, args| -> Vec<Extent<'_>> {
            let of = |(ty, arg): (TensorType, _)| Extent::of(arg, &ty.shape, ty.elem.bytes(target.dtype));
            types.into_iter().zip::<std::slice::Iter<'_, Arg>>(args).map(of).collect()
        };
        let (inputs, outputs) = (extents(op.inputs(), self.inputs.iter()), extents(op.outputs(), self.outputs.iter()));
        if let Some(j) = inputs.iter().position(|input| self.scratch.is_some_and(|view| view.overlaps(input.view))) {
            return Err(Error::invalid(op.name(), format!("the scratch memory shares memory with input {j}")));
        }
        let in_place: Vec<bool> = op.operands().writes.into_iter().map(|(_, written)| written.in_place).collect();
        for (i, output) in outputs.iter().enumerate() {
            let lies_in = |input: &Extent<'_>| input.is_within(output) || output.is_within(input);
            let shares = |input: &Extent<'_>| !(input.is_apart(output) || in_place[i] && lies_in(input));
            let input = inputs.iter().position(shares).map(|j| format!("input {j}"));
            let other = || outputs[..i].iter().position(|other| !other.is_apart(output)).map(|j| format!("output {j}"));
            let overlaps = self.scratch.is_some_and(|view| view.overlaps(output.view));
            let scratch = || overlaps.then(|| "scratch memory".to_string());
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
    use crate::device::{Arch, Device, Launch};
    use crate::ops::store::{Mask, Moments, Normalised, Sums};
    use crate::ops::{batch_norm, conv2d, norm, pool, relu, sum, Write};
    use crate::tensor::DType;

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

    fn pointwise() -> conv2d::Conv2d {
        let [stride, dilation] = [[1; 2]; 2];
        let (kernel, padding) = ([1; 2], [0; 2]);
        let spec = conv2d::Spec { n: 2, h: 4, w: 4, c: 8, k: 8, kernel, stride, padding, dilation, groups: 1 };
        conv2d::Conv2d::new(spec).expect("a convolution")
    }

    /// The launches of `op` in f32, in buffers of its own that `change` changed, and the scratch memory.
    fn launches(op: &dyn Operator, change: impl FnOnce(&mut [Arg], &mut [Arg])) -> Result<(Vec<Launch>, View)> {
        let Device::Kernels(backend) = Device::blueprint(Arch::Sm80) else { unreachable!("it has memory") };
        let view = || View::whole(backend.allocate(1 << 14).expect("addresses"));
        let new = |ty: &TensorType| {
            let pixel_stride = ty.shape.nhwc().map_or(8, |[_, _, _, c]| c);
            Arg { view: view(), pixel_stride, write: Write::Overwrite }
        };
        let mut inputs: Vec<Arg> = op.inputs().iter().map(new).collect();
        let mut outputs: Vec<Arg> = op.outputs().iter().map(new).collect();
        change(&mut inputs, &mut outputs);
        let scratch = view();
        let io = Io { inputs: &inputs, outputs: &outputs, scratch: Some(&scratch) };
        Ok((op.launches(Target { dtype: DType::F32, arch: Arch::Sm80 }, &io)?, scratch))
    }

    fn average(x: [usize; 4], kernel: usize, stride: usize, padding: usize) -> pool::Pool {
        let window =
            pool::Window::Sliding { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 2], ceil: false };
        let kind = pool::Kind::Average { count_padding: false };
        pool::Pool::new(pool::Spec { x, window, kind }).expect("a pooling")
    }

    #[test]
    fn only_what_says_so_works_in_place() {
        let x = [2, 4, 4, 8];
        let (conv, pool) = (pointwise(), average(x, 3, 1, 1));
        let shape = || Shape::from(x);
        let relu = |pass| relu::Node { shape: shape(), pass };
        for (op, in_place) in [
            (&conv2d::Node { conv, pass: conv2d::Pass::fwd(false) } as &dyn Operator, false),
            (&conv2d::Node { conv, pass: conv2d::Pass::BwdX(conv2d::BwdX::default()) }, false),
            (&pool.fwd(), false),
            (&relu(relu::Pass::Fwd), true),
            (&relu(relu::Pass::Bwd), true),
            (&sum::Node::of(shape()), true),
        ] {
            match launches(op, |inputs, outputs| outputs[0].view = inputs[0].view.clone()) {
                Ok(_) => assert!(in_place, "{} wrote over its input", op.name()),
                Err(e) => assert!(!in_place && e.to_string().contains("shares memory with input 0"), "{e}"),
            }
        }
    }

    #[test]
    fn tensors_are_aligned_to_their_elements() {
        let x = [2, 4, 4, 8];
        let bn = batch_norm::BatchNorm::new(batch_norm::Spec { x, eps: 1e-5, momentum: 0.1 }).expect("a batch norm");
        for op in [
            &relu::Node { shape: x.into(), pass: relu::Pass::Fwd } as &dyn Operator,
            &sum::Node::of(x),
            &average(x, 3, 1, 1).fwd(),
            &norm::Node { x, pass: norm::Pass::Measure },
            &bn.infer(false),
        ] {
            let shifted = |arg: &mut Arg| arg.view = arg.view.part(2, arg.view.bytes() - 2).expect("a part");
            let found = launches(op, |inputs, _| shifted(&mut inputs[0])).map(|_| ());
            let found = [found, launches(op, |_, outputs| shifted(&mut outputs[0])).map(|_| ())];
            assert!(found.iter().all(|e| e.as_ref().is_err_and(|e| e.to_string().contains("is not a multiple of 4"))));
        }
    }

    #[test]
    fn a_launch_names_all_scratch_memory_that_it_writes() {
        let (moments, second) = (Some(Moments::default()), Some(Normalised::default()));
        let mask = Mask::Signs { bits: (), first: Normalised::default(), second, gate: None };
        let bwd_x = conv2d::BwdX { mask: Some(mask), sums: Some(mask.sums()), ..conv2d::BwdX::default() };
        for (pass, numbers) in
            [(conv2d::Pass::Fwd(conv2d::Fwd { moments, ..conv2d::Fwd::default() }), 2), (conv2d::Pass::BwdX(bwd_x), 3)]
        {
            let op = conv2d::Node { conv: pointwise(), pass };
            let (launches, scratch) = launches(&op, |_, _| {}).expect("launches");
            let views = launches[0].views().iter().filter(|view| view.overlaps(&scratch));
            let band = 8 * size_of::<f32>();
            assert_eq!(views.map(View::bytes).sum::<usize>(), numbers * band, "one band of {}", op.name());
        }
    }

    #[test]
    fn forms_that_contradict_themselves_are_refused() {
        let conv = pointwise();
        let end = Some(conv2d::End { z: (), signs: () });
        let sums = conv2d::Node {
            conv,
            pass: conv2d::Pass::BwdX(conv2d::BwdX { sums: Some(Sums::default()), ..conv2d::BwdX::default() }),
        };
        let lone = conv2d::Node { conv, pass: conv2d::Pass::Fwd(conv2d::Fwd { end, ..conv2d::Fwd::default() }) };
        let pool = average([2, 4, 4, 8], 2, 2, 0);
        let index =
            pool::Node { pass: pool::Pass::Fwd(pool::Fwd { index: Some(()), ..Default::default() }), ..pool.fwd() };
        for (op, cause) in [
            (&sums as &dyn Operator, "with the mask None"),
            (&lone, "the end of a block is stored where x is loaded as its sum"),
            (&index, "an index goes with max pooling"),
        ] {
            let e = launches(op, |_, _| {}).map(|_| ()).expect_err(op.name());
            assert!(e.to_string().contains(cause), "{e}");
        }
    }
}
