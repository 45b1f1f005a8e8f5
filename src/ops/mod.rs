//! Operators: for each its maths, checked descriptor, cost, gradient, CPU reference, kernels and launch code.
//!
//! A folder here has a folder of the same name in `kernels/`. The graph knows an op only through [`Operator`] and
//! [`HostOp`].

mod aliasing;
pub mod batch_norm;
pub mod concat;
pub mod conv2d;
pub mod cross_entropy;
pub mod linear;
pub mod load;
#[doc(hidden)]
pub mod norm;
pub mod operands;
pub(crate) mod parallel;
pub mod pool;
pub mod relu;
pub mod shortcut;
pub mod store;
pub(crate) mod strips;
pub mod sum;
mod touched;

use std::fmt;

pub use self::operands::{Call, Old, Operands, Read, Written};
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

    /// The inputs and outputs, in order, with their names.
    fn operands(&self) -> Operands;

    /// The types of the inputs, in order.
    fn inputs(&self) -> Vec<TensorType> {
        self.operands().reads.into_iter().map(|(_, read)| read.ty).collect()
    }

    /// The types of the outputs, in order.
    fn outputs(&self) -> Vec<TensorType> {
        self.operands().writes.into_iter().map(|(_, written)| written.ty).collect()
    }

    /// The outputs that update a buffer in place: they hold its old content when the op starts.
    fn updates(&self) -> Vec<usize> {
        self.operands().written(|w| w.old == Old::Updated)
    }

    /// The outputs that can be added to what is there ([`Write::Accumulate`]).
    fn accumulates(&self) -> Vec<usize> {
        self.operands().written(|w| w.old == Old::MayBeAddedTo)
    }

    /// The operands behind the op's own gate, its last input. Its cost is that of an open one.
    fn behind_gate(&self) -> Behind {
        let operands = self.operands();
        let reads = operands.reads.iter().enumerate();
        Behind {
            inputs: reads.filter(|(_, (_, read))| read.gated).map(|(i, _)| i).collect(),
            outputs: operands.written(|w| w.gated),
        }
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

impl Gradient {
    /// The node `op` with the operands of `call`: where each input comes from, and whose gradient each output is.
    pub fn node(op: Op, call: impl Call<Source, Option<usize>>) -> Self {
        let (sources, targets) = call.into_lists();
        Self::Node { op, sources, targets }
    }
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

impl<'a> Io<'a> {
    /// The bound operands of `form` by name.
    pub fn bind<C: Call<(), ()>>(&self, form: C) -> C::Of<&'a Arg, &'a Arg> {
        form.with(self.inputs, self.outputs)
    }

    /// The views of all inputs and outputs.
    pub(crate) fn views(&self) -> Vec<View> {
        self.inputs.iter().chain(self.outputs).map(|arg| arg.view.clone()).collect()
    }

    /// Fails unless as many tensors are bound as `op` has.
    pub(crate) fn check_counts(&self, op: &dyn Operator) -> Result<()> {
        let Operands { reads, writes } = op.operands();
        for (side, expected, found) in [("input", reads.len(), self.inputs), ("output", writes.len(), self.outputs)] {
            if found.len() != expected {
                return Err(Error::invalid(op.name(), format!("{} {side}s bound, expected {expected}", found.len())));
            }
        }
        Ok(())
    }

    /// Fails where the scratch memory has less than `expected` bytes.
    pub(crate) fn check_scratch(&self, op: &str, expected: usize) -> Result<()> {
        let found = self.scratch.map_or(0, View::bytes);
        if found < expected {
            return Err(Error::invalid(op, format!("{found} bytes of scratch memory, expected {expected}")));
        }
        Ok(())
    }

    /// Fails unless there is a view for every tensor of `op`, large enough for it at its pixel stride, and for its
    /// scratch memory, and no two share memory that may not: what launch code relies on.
    pub fn check(&self, op: &dyn Operator, target: Target) -> Result<()> {
        self.check_counts(op)?;
        let Operands { reads, writes } = op.operands();
        let reads = reads.into_iter().map(|(name, read)| ("input", name, read.ty)).zip(self.inputs);
        let writes = writes.into_iter().map(|(name, written)| ("output", name, written.ty)).zip(self.outputs);
        for ((side, name, ty), arg) in reads.chain(writes) {
            let needed = arg.elements(&ty.shape).map(|n| n * ty.elem.bytes(target.dtype));
            if needed.is_none_or(|n| n > arg.view.bytes()) {
                let (bytes, stride) = (arg.view.bytes(), arg.pixel_stride);
                let problem = format!(
                    "a view of {bytes} bytes with a pixel stride of {stride} for {} of shape {}",
                    target.dtype, ty.shape
                );
                return Err(Error::invalid(format!("{side} `{name}` of {}", op.name()), problem));
            }
        }
        self.check_scratch(op.name(), op.scratch_bytes(target))?;
        self.check_aliases(op, target)
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

/// An output on the host.
#[derive(Debug)]
pub struct HostOut<'a, 'b, T> {
    /// Where it is.
    pub to: &'b mut HostMut<'a, T>,
    /// How it is written.
    pub write: Write,
}

impl<T: Real> HostOut<'_, '_, T> {
    /// The numbers; panics where it does not hold numbers.
    pub fn real(&mut self) -> &mut [T] {
        self.to.real()
    }

    /// The bytes; panics where it does not hold bytes.
    pub fn byte(&mut self) -> &mut [u8] {
        self.to.byte()
    }
}

impl<'a, T: Real> HostIo<'a, T> {
    /// The operands of `form` by name.
    pub fn bind<C: Call<(), ()>>(&mut self, form: C) -> C::Of<HostRef<'a, T>, HostOut<'a, '_, T>> {
        let outputs = self.outputs.iter_mut().zip(&self.writes).map(|(to, &write)| HostOut { to, write });
        form.with(self.inputs.iter().copied(), outputs)
    }

    /// As [`bind`](Self::bind), for operands that all hold numbers; panics where one does not.
    pub fn numbers<C: Call<(), ()>>(&mut self, form: C) -> C::Of<&'a [T], &mut [T]> {
        form.with(self.inputs.iter().map(HostRef::real), self.outputs.iter_mut().map(HostMut::real))
    }

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
    BatchNorm(batch_norm::Node),
    Concat(concat::Node),
    Conv2d(conv2d::Node),
    CrossEntropy(cross_entropy::Node),
    Linear(linear::Node),
    Norm(norm::Node),
    Pool(pool::Node),
    Relu(relu::Node),
    Shortcut(shortcut::Node),
    Sum(sum::Node),
}

impl Op {
    /// What the graph asks of it.
    pub fn operator(&self) -> &dyn Operator {
        match self {
            Self::BatchNorm(o) => o,
            Self::Concat(o) => o,
            Self::Conv2d(o) => o,
            Self::CrossEntropy(o) => o,
            Self::Linear(o) => o,
            Self::Norm(o) => o,
            Self::Pool(o) => o,
            Self::Relu(o) => o,
            Self::Shortcut(o) => o,
            Self::Sum(o) => o,
        }
    }

    /// The op on the host, in `T`.
    pub fn host<T: Real>(&self) -> &dyn HostOp<T> {
        match self {
            Self::BatchNorm(o) => o,
            Self::Concat(o) => o,
            Self::Conv2d(o) => o,
            Self::CrossEntropy(o) => o,
            Self::Linear(o) => o,
            Self::Norm(o) => o,
            Self::Pool(o) => o,
            Self::Relu(o) => o,
            Self::Shortcut(o) => o,
            Self::Sum(o) => o,
        }
    }
}

/// Every kernel that the ops' launch code uses.
pub(crate) fn kernels() -> impl Iterator<Item = &'static Kernel> {
    let chosen_by_dtype = [
        batch_norm::KERNELS,
        concat::KERNELS,
        cross_entropy::KERNELS,
        norm::KERNELS,
        norm::merge::KERNELS,
        pool::KERNELS,
        relu::KERNELS,
        shortcut::KERNELS,
        sum::KERNELS,
    ];
    let entries = chosen_by_dtype.into_iter().flatten().copied().flatten().map(|entry| &entry.kernel);
    entries.chain(conv2d::kernels())
}
