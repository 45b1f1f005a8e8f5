//! Operators: for each op its maths, checked descriptor, cost, gradient, CPU reference and launch code.
//!
//! The kernels of an op are in the folder of the same name in `kernels/` (`linear` uses conv2d's). The graph sees an op
//! only through [`Operator`] and [`HostOp`]. Activations are NHWC, weights KRSC. `[C]` in an operand's documentation is
//! f32: one number per channel.

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
pub(crate) mod params;
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

/// One pass of an op, with a checked descriptor, as the graph sees it.
pub trait Operator: fmt::Debug {
    /// A stable name for plans and errors: `conv2d_fwd`, `batch_norm_bwd`.
    fn name(&self) -> &'static str;

    /// The extents in short form, for people: `n256 56x56 c64`.
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

    /// The outputs that are updated in place: the op reads their old content.
    fn updates(&self) -> Vec<usize> {
        self.operands().written(|w| w.old == Old::Updated)
    }

    /// The outputs that may be accumulated ([`Write::Accumulate`]).
    fn accumulates(&self) -> Vec<usize> {
        self.operands().written(|w| w.old == Old::MayBeAddedTo)
    }

    /// The operands used only while the op's gate, its last input, is open. The op's cost assumes an open gate.
    fn behind_gate(&self) -> Behind {
        let operands = self.operands();
        let reads = operands.reads.iter().enumerate();
        Behind {
            inputs: reads.filter(|(_, (_, read))| read.gated).map(|(i, _)| i).collect(),
            outputs: operands.written(|w| w.gated),
        }
    }

    /// Floating-point operations, and bytes if each input is read once and each output written once.
    fn cost(&self, dtype: DType) -> Cost {
        let bytes = |types: Vec<TensorType>| types.iter().map(|t| t.bytes(dtype) as u64).sum();
        Cost { flops: self.flops(), bytes_read: bytes(self.inputs()), bytes_written: bytes(self.outputs()) }
    }

    /// Floating-point operations; a multiply-add counts as two.
    fn flops(&self) -> u64;

    /// The rules for the gradients of the inputs `i` with `needed[i]`. Fails for a pass without a gradient.
    fn gradient(&self, needed: &[bool]) -> Result<Vec<Gradient>> {
        let _ = needed;
        Err(Error::unsupported(format!("gradient of {}", self.name()), "it only runs forward"))
    }

    /// Bytes of scratch memory for [`launches`](Self::launches).
    fn scratch_bytes(&self, target: Target) -> usize {
        let _ = target;
        0
    }

    /// The kernel launches that compute the op. Fails if [`Io::check`] does, or no kernel can compute the op.
    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>>;
}

/// An op on the host.
pub trait HostOp<T: Real> {
    /// Plain loops that define the op. `writes` and `scratch` are ignored, unless the op says otherwise.
    fn reference(&self, io: &mut HostIo<'_, T>);

    /// The implementation of the CPU device; by default the reference.
    fn host(&self, io: &mut HostIo<'_, T>) {
        assert!(io.writes.iter().all(|&w| w == Write::Overwrite), "an op that accumulates has its own implementation");
        self.reference(io);
    }

    /// Elements of scratch memory for [`host`](Self::host).
    fn host_scratch(&self) -> usize {
        0
    }
}

/// One pass of an op whose operands are always the same: `Fwd` or `Bwd` of the op's module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The forward pass.
    Fwd,
    /// The backward pass.
    Bwd,
}

/// The operands of an op that are used only while its gate, its last input, is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// The inputs that a closed gate leaves unread.
    pub inputs: Vec<usize>,
    /// The outputs that mean nothing after a closed gate.
    pub outputs: Vec<usize>,
}

/// How an output is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// y = f(x).
    Overwrite,
    /// y += f(x).
    Accumulate,
}

/// Where an input of a gradient node comes from, relative to the differentiated op.
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
    /// A node: its output `j` is the gradient of input `targets[j]`, or unused.
    Node {
        /// The op to run.
        op: Op,
        /// Its inputs.
        sources: Vec<Source>,
        /// The input whose gradient each output is.
        targets: Vec<Option<usize>>,
    },
    /// The gradient of `input` is the gradient of `output`, unchanged.
    Same {
        /// The output.
        output: usize,
        /// The input.
        input: usize,
    },
}

impl Gradient {
    /// The node `op`; `call` has the source of each input and the target of each output.
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
    /// Elements from one pixel to the next: C in a dense tensor, more in a slice of channels. Only for NHWC tensors.
    pub pixel_stride: usize,
    /// How it is written, if it is an output.
    pub write: Write,
}

/// The bound inputs and outputs of an op.
#[derive(Clone, Copy, Debug)]
pub struct Io<'a> {
    /// The inputs, in order.
    pub inputs: &'a [Arg],
    /// The outputs, in order.
    pub outputs: &'a [Arg],
    /// [`Operator::scratch_bytes`] bytes; `None` if that is 0.
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

    /// Fails unless the number of bound tensors is the number of operands of `op`.
    pub(crate) fn check_counts(&self, op: &dyn Operator) -> Result<()> {
        let Operands { reads, writes } = op.operands();
        for (side, expected, found) in [("input", reads.len(), self.inputs), ("output", writes.len(), self.outputs)] {
            let problem = || format!("{} {side}s bound, expected {expected}", found.len());
            Error::check(found.len() == expected, op.name(), problem)?;
        }
        Ok(())
    }

    /// Fails if the scratch memory has less than `expected` bytes, or is not aligned to its f32 numbers.
    pub(crate) fn check_scratch(&self, op: &str, expected: usize) -> Result<()> {
        let (found, address) = self.scratch.map_or((0, 0), |view| (view.bytes(), view.address()));
        Error::check(found >= expected, op, || format!("{found} bytes of scratch memory, expected {expected}"))?;
        let aligned = address.is_multiple_of(4);
        Error::check(aligned, op, || format!("scratch memory at address {address:#x}, which is not a multiple of 4"))
    }

    /// Checks what launch code relies on. Fails if a tensor of `op` or its scratch memory has no view, if a view is too
    /// small for its shape and pixel stride or not aligned to its elements, or if two views share memory and must not.
    pub fn check(&self, op: &dyn Operator, target: Target) -> Result<()> {
        self.check_counts(op)?;
        let Operands { reads, writes } = op.operands();
        let reads = reads.into_iter().map(|(name, read)| ("input", name, read.ty)).zip(self.inputs);
        let writes = writes.into_iter().map(|(name, written)| ("output", name, written.ty)).zip(self.outputs);
        for ((side, name, ty), arg) in reads.chain(writes) {
            let (what, element) = (format!("{side} `{name}` of {}", op.name()), ty.elem.bytes(target.dtype));
            let fits =
                arg.elements(&ty.shape).and_then(|n| n.checked_mul(element)).is_some_and(|n| n <= arg.view.bytes());
            Error::check(fits, &what, || {
                let (bytes, stride, dtype) = (arg.view.bytes(), arg.pixel_stride, target.dtype);
                format!("a view of {bytes} bytes with a pixel stride of {stride} for {dtype} of shape {}", ty.shape)
            })?;
            let aligned = arg.address().is_multiple_of(element as u64);
            Error::check(aligned, what, || format!("address {:#x} is not a multiple of {element}", arg.address()))?;
        }
        self.check_scratch(op.name(), op.scratch_bytes(target))?;
        self.check_aliases(op, target)
    }
}

impl Arg {
    pub(crate) fn address(&self) -> u64 {
        self.view.address()
    }

    /// True if the op adds to it.
    pub(crate) fn adds(&self) -> bool {
        self.write == Write::Accumulate
    }

    /// Elements from the first to the last one of a tensor of `shape`; `None` if the stride is less than a pixel or the
    /// number overflows.
    fn elements(&self, shape: &Shape) -> Option<usize> {
        match shape.nhwc() {
            Some([n, h, w, c]) if shape.dims().len() == 4 && self.pixel_stride != c => {
                let last = (n * h * w).saturating_sub(1).checked_mul(self.pixel_stride)?.checked_add(c);
                last.filter(|_| self.pixel_stride > c)
            }
            _ => Some(shape.len()),
        }
    }
}

/// The inputs and outputs of an op on the host: dense, NHWC or KRSC.
#[derive(Debug)]
pub struct HostIo<'a, T> {
    /// The inputs, in order.
    pub inputs: Vec<HostRef<'a, T>>,
    /// The outputs, in order.
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
    /// True if the op adds to it.
    pub(crate) fn adds(&self) -> bool {
        self.write == Write::Accumulate
    }

    /// The numbers; panics if it holds other elements.
    pub fn real(&mut self) -> &mut [T] {
        self.to.real()
    }

    /// The bytes; panics if it holds other elements.
    pub fn byte(&mut self) -> &mut [u8] {
        self.to.byte()
    }
}

impl<'a, T: Real> HostIo<'a, T> {
    /// The operands of `call`, outputs overwritten, no scratch memory.
    pub fn of(call: impl Call<HostRef<'a, T>, HostMut<'a, T>>) -> Self {
        let (inputs, outputs) = call.into_lists();
        let writes = vec![Write::Overwrite; outputs.len()];
        Self { inputs, outputs, writes, scratch: &mut [] }
    }

    /// The operands of `form` by name.
    pub fn bind<C: Call<(), ()>>(&mut self, form: C) -> C::Of<HostRef<'a, T>, HostOut<'a, '_, T>> {
        let outputs = self.outputs.iter_mut().zip(&self.writes).map(|(to, &write)| HostOut { to, write });
        form.with(self.inputs.iter().copied(), outputs)
    }

    /// As [`bind`](Self::bind), for operands that all hold numbers; panics if one does not.
    pub fn numbers<C: Call<(), ()>>(&mut self, form: C) -> C::Of<&'a [T], &mut [T]> {
        form.with(self.inputs.iter().map(HostRef::real), self.outputs.iter_mut().map(HostMut::real))
    }
}

/// Declares the ops that a graph can hold: for each its variant and its module, which has a `Node`.
macro_rules! ops {
    ($($variant:ident: $module:ident,)+) => {
        /// Every op that a graph can hold.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Op {
            $($variant($module::Node),)+
        }

        impl Op {
            /// The modules of all ops.
            #[doc(hidden)]
            pub const MODULES: &'static [&'static str] = &[$(stringify!($module)),+];

            /// The module of the op.
            #[doc(hidden)]
            pub fn module(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => stringify!($module),)+
                }
            }

            /// The op as the graph sees it.
            pub fn operator(&self) -> &dyn Operator {
                match self {
                    $(Self::$variant(node) => node,)+
                }
            }

            /// The op on the host.
            pub fn host<T: Real>(&self) -> &dyn HostOp<T> {
                match self {
                    $(Self::$variant(node) => node,)+
                }
            }
        }
    };
}

ops! {
    BatchNorm: batch_norm,
    Concat: concat,
    Conv2d: conv2d,
    CrossEntropy: cross_entropy,
    Linear: linear,
    Norm: norm,
    Pool: pool,
    Relu: relu,
    Shortcut: shortcut,
    Sum: sum,
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
