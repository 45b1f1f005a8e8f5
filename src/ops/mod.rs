//! Operators: for each its maths, checked descriptor, cost, gradient, CPU reference, kernels and launch code.
//!
//! A folder here has a folder of the same name in `kernels/`. The graph knows an op only through [`Operator`] and
//! [`HostOp`].

pub mod add;
pub mod batch_norm;
pub mod block_end;
pub mod concat;
pub mod conv2d;
pub mod cross_entropy;
pub mod gate;
pub mod join;
pub mod linear;
pub mod loss_scale;
pub mod norm;
pub mod norm_conv;
pub mod norm_pool;
mod parallel;
pub mod pool;
pub mod relu;
pub mod sgd;
pub mod shortcut;
mod strips;
mod touched;

use std::fmt;

pub use crate::device::cpu::{HostMut, HostRef};
use crate::device::{Cost, Kernel, Launch, Target, View};
use crate::tensor::{DType, Real, Shape, TensorType};
use crate::{Error, Result};

/// What the graph knows of an op: one pass of one operator, with a descriptor that has been checked.
pub trait Operator: fmt::Debug {
    /// A stable name for plans and errors: `conv2d_fwd`, `batch_norm_bwd`.
    fn name(&self) -> &'static str;

    /// Its extents in a few words, for people: `n256 56x56 c64`.
    fn summary(&self) -> String {
        self.inputs().first().map_or_else(String::new, |t| t.shape.summary())
    }

    /// The types of the inputs, in order.
    fn inputs(&self) -> Vec<TensorType>;

    /// The types of the outputs, in order.
    fn outputs(&self) -> Vec<TensorType>;

    /// The outputs that update a buffer in place: they hold its old content when the op starts.
    fn updates(&self) -> &'static [usize] {
        &[]
    }

    /// The outputs that can be added to what is there ([`Write::Accumulate`]).
    fn accumulates(&self) -> &'static [usize] {
        &[]
    }

    /// What of it is behind a gate of its own, its last input. Its cost is that of an open one.
    fn behind_gate(&self) -> Behind {
        Behind::default()
    }

    /// Floating-point operations, and the bytes of every input read and every output written once.
    fn cost(&self, dtype: DType) -> Cost {
        let bytes = |types: Vec<TensorType>| types.iter().map(|t| t.bytes(dtype) as u64).sum();
        Cost { flops: self.flops(), bytes_read: bytes(self.inputs()), bytes_written: bytes(self.outputs()) }
    }

    /// Floating-point operations; a multiply-add counts as two.
    fn flops(&self) -> u64;

    /// The nodes that compute the gradients of those inputs for which `needed` is true.
    fn gradient(&self, needed: &[bool]) -> Result<Vec<Gradient>> {
        let _ = needed;
        Err(Error::unsupported(format!("gradient of {}", self.name()), "it only runs forward"))
    }

    /// Bytes of scratch memory that [`launches`](Self::launches) needs.
    fn scratch_bytes(&self, target: Target) -> usize {
        let _ = target;
        0
    }

    /// The kernel launches that compute the op.
    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>>;
}

/// The same op on the host.
pub trait HostOp<T: Real> {
    /// Plain loops that define the op. Ignores `accumulate` and `scratch`: the executor that calls it never sets them.
    fn reference(&self, io: &mut HostIo<'_, T>);

    /// The `cpu` device's way; where nothing faster is known, the reference.
    fn host(&self, io: &mut HostIo<'_, T>) {
        assert!(io.writes.iter().all(|&w| w == Write::Overwrite), "an op that accumulates has its own way");
        self.reference(io);
    }

    /// Elements of `T` that [`host`](Self::host) needs as scratch memory.
    fn host_scratch(&self) -> usize {
        0
    }
}

/// The operands of an op that count only where its last input, a gate, is not 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// The inputs that are read there only.
    pub inputs: Vec<usize>,
    /// The outputs that say something there only.
    pub outputs: Vec<usize>,
}

/// Whether an output replaces what is there or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// y = f(x).
    Overwrite,
    /// y += f(x).
    Accumulate,
}

/// Where a gradient node's input comes from, seen from the op that is differentiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Input `i` of the op.
    Input(usize),
    /// Output `i` of the op.
    Output(usize),
    /// The gradient of output `i`.
    Grad(usize),
}

/// One rule of an op's gradient.
#[derive(Clone, Debug)]
pub enum Gradient {
    /// A node: its output `j` is the gradient of input `targets[j]`, or of nothing.
    Node {
        /// The op to run.
        op: Op,
        /// Its inputs.
        sources: Vec<Source>,
        /// Whose gradients its outputs are.
        targets: Vec<Option<usize>>,
    },
    /// The gradient of output `output` is the gradient of input `input`, unchanged.
    Same {
        /// The output.
        output: usize,
        /// The input.
        input: usize,
    },
}

/// A tensor bound for launches.
#[derive(Clone, Debug)]
pub struct Arg {
    /// Where it is.
    pub view: View,
    /// Elements from one pixel to the next: C for a dense tensor, more for a slice of channels. Only for NHWC tensors.
    pub pixel_stride: usize,
    /// For outputs: whether it is added to.
    pub write: Write,
}

/// The bound inputs and outputs of an op.
#[derive(Clone, Copy, Debug)]
pub struct Io<'a> {
    /// As [`Operator::inputs`] orders them.
    pub inputs: &'a [Arg],
    /// As [`Operator::outputs`] orders them.
    pub outputs: &'a [Arg],
    /// [`Operator::scratch_bytes`] bytes, where that is not 0.
    pub scratch: Option<&'a View>,
}

impl Io<'_> {
    /// Fails unless there is a view for every tensor of `op`, large enough for it at its pixel stride, and for its
    /// scratch memory: what launch code relies on.
    pub fn check(&self, op: &dyn Operator, target: Target) -> Result<()> {
        let sides = [("input", op.inputs(), self.inputs), ("output", op.outputs(), self.outputs)];
        for (side, types, args) in sides {
            if types.len() != args.len() {
                return Err(Error::invalid(
                    op.name(),
                    format!("{} {side}s bound, expected {}", args.len(), types.len()),
                ));
            }
            for (i, (ty, arg)) in types.iter().zip(args).enumerate() {
                let needed = arg.elements(&ty.shape).map(|n| n * ty.elem.bytes(target.dtype));
                if needed.is_none_or(|n| n > arg.view.bytes()) {
                    return Err(Error::invalid(
                        format!("{side} {i} of {}", op.name()),
                        format!(
                            "a view of {} bytes with a pixel stride of {} for {} of shape {}",
                            arg.view.bytes(),
                            arg.pixel_stride,
                            target.dtype,
                            ty.shape
                        ),
                    ));
                }
            }
        }
        let (found, expected) = (self.scratch.map_or(0, View::bytes), op.scratch_bytes(target));
        if found < expected {
            return Err(Error::invalid(op.name(), format!("{found} bytes of scratch memory, expected {expected}")));
        }
        Ok(())
    }
}

impl Arg {
    /// Elements from the first to the last of a tensor of `shape`; `None` where the stride is less than a pixel.
    fn elements(&self, shape: &Shape) -> Option<usize> {
        match shape.nhwc() {
            Some([n, h, w, c]) if shape.dims().len() == 4 && self.pixel_stride != c => {
                (self.pixel_stride > c).then(|| (n * h * w).saturating_sub(1) * self.pixel_stride + c)
            }
            _ => Some(shape.len()),
        }
    }
}

/// The inputs and outputs of an op on the host; all dense, in the library's layouts.
#[derive(Debug)]
pub struct HostIo<'a, T> {
    /// As [`Operator::inputs`] orders them.
    pub inputs: Vec<HostRef<'a, T>>,
    /// As [`Operator::outputs`] orders them.
    pub outputs: Vec<HostMut<'a, T>>,
    /// How each output is written.
    pub writes: Vec<Write>,
    /// [`HostOp::host_scratch`] elements.
    pub scratch: &'a mut [T],
}

impl<T: Real> HostIo<'_, T> {
    /// All outputs, where every one of them holds numbers; panics where one does not or there are not `N`.
    pub fn reals<const N: usize>(&mut self) -> [&mut [T]; N] {
        let Ok(outputs) = <&mut [HostMut<'_, T>; N]>::try_from(self.outputs.as_mut_slice()) else {
            panic!("{N} outputs are expected here");
        };
        outputs.each_mut().map(HostMut::real)
    }

    /// As [`reals`](Self::reals), with the scratch memory.
    pub fn split<const N: usize>(&mut self) -> ([&mut [T]; N], &mut [T]) {
        let scratch = std::mem::take(&mut self.scratch);
        (self.reals(), scratch)
    }
}

/// Every operator that a graph can hold.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Op {
    Add(add::Node),
    BatchNorm(batch_norm::Node),
    BlockEnd(block_end::Node),
    Concat(concat::Node),
    Conv2d(conv2d::Node),
    CrossEntropy(cross_entropy::Node),
    Join(join::Node),
    Linear(linear::Node),
    Norm(norm::Node),
    NormConv(norm_conv::Node),
    NormPool(norm_pool::Node),
    Pool(pool::Node),
    Relu(relu::Node),
    Shortcut(shortcut::Node),
}

impl Op {
    /// What the graph asks of it.
    pub fn operator(&self) -> &dyn Operator {
        match self {
            Self::Add(o) => o,
            Self::BatchNorm(o) => o,
            Self::BlockEnd(o) => o,
            Self::Concat(o) => o,
            Self::Conv2d(o) => o,
            Self::CrossEntropy(o) => o,
            Self::Join(o) => o,
            Self::Linear(o) => o,
            Self::Norm(o) => o,
            Self::NormConv(o) => o,
            Self::NormPool(o) => o,
            Self::Pool(o) => o,
            Self::Relu(o) => o,
            Self::Shortcut(o) => o,
        }
    }

    /// The op on the host, in `T`.
    pub fn host<T: Real>(&self) -> &dyn HostOp<T> {
        match self {
            Self::Add(o) => o,
            Self::BatchNorm(o) => o,
            Self::BlockEnd(o) => o,
            Self::Concat(o) => o,
            Self::Conv2d(o) => o,
            Self::CrossEntropy(o) => o,
            Self::Join(o) => o,
            Self::Linear(o) => o,
            Self::Norm(o) => o,
            Self::NormConv(o) => o,
            Self::NormPool(o) => o,
            Self::Pool(o) => o,
            Self::Relu(o) => o,
            Self::Shortcut(o) => o,
        }
    }
}

/// Every kernel that launch code uses.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    [
        add::KERNELS,
        batch_norm::KERNELS,
        block_end::KERNELS,
        concat::KERNELS,
        conv2d::KERNELS,
        cross_entropy::KERNELS,
        gate::KERNELS,
        join::KERNELS,
        loss_scale::KERNELS,
        norm::KERNELS,
        norm::merge::KERNELS,
        norm_conv::KERNELS,
        norm_pool::KERNELS,
        pool::KERNELS,
        relu::KERNELS,
        sgd::KERNELS,
        shortcut::KERNELS,
    ]
    .into_iter()
    .flatten()
    .copied()
}
