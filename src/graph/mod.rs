//! Graphs of ops: build, differentiate, compile, run.
//!
//! A [`Builder`] makes a [`Graph`] of forward ops; [`Graph::differentiate`] appends the backward ops. A [`Program`] is
//! the fused graph on a device, with every value at a fixed offset in one arena. The [`Interpreter`] runs the graph as
//! built, op by op in plain loops, to check programs.
//!
//! **Layouts.** Shapes inside a graph are NHWC, and KRSC for weights. The caller's tensors (inputs, outputs, state
//! dicts, gradients) are in torch's NCHW, OIHW and `[out, in]`.
//!
//! Inference:
//!
//! ```
//! use residuum::device::Device;
//! use residuum::graph::{Mode, Program};
//! use residuum::models::{self, BuildOptions};
//! use residuum::tensor::{DType, HostTensor};
//!
//! let model = models::find("resnet8_cifar")?;
//! let graph = model.build(Mode::Infer, 2, [3, 16, 16], 10, BuildOptions::default())?;
//! let mut program = Program::compile(&graph, &Device::cpu(), DType::F32, None)?;
//! program.load(&model.initialise(&graph, 0))?;
//! program.set_input("input", &HostTensor::f32([2, 3, 16, 16], vec![0.5; 2 * 3 * 16 * 16]))?;
//! program.run()?;
//! assert_eq!(program.output("logits")?.shape.dims(), [2, 10]);
//! # Ok::<(), residuum::Error>(())
//! ```
//!
//! The kernel launches and the memory of a training step in bf16 on Hopper, without a GPU:
//!
//! ```
//! use residuum::device::{Arch, Device};
//! use residuum::graph::{Mode, Program};
//! use residuum::models::{self, BuildOptions};
//! use residuum::tensor::DType;
//!
//! let model = models::find("resnet8_cifar")?;
//! let options = BuildOptions { loss: true, ..Default::default() };
//! let mut graph = model.build(Mode::Train, 128, [3, 32, 32], 10, options)?;
//! graph.differentiate()?;
//! let program = Program::compile(&graph, &Device::blueprint(Arch::Sm90), DType::BF16, None)?;
//! for step in program.steps().iter().take(3) {
//!     println!("{} by {} on {:?}: {} bytes", step.op, step.kernel, step.grid, step.cost.bytes());
//! }
//! assert!(program.plan().saved_activation_bytes < program.plan().arena_bytes);
//! # Ok::<(), residuum::Error>(())
//! ```

mod autodiff;
mod branch;
mod build;
mod executor;
mod fuse;
mod host;
mod inputs;
mod interpreter;
mod kernels;
mod loss_scale;
mod memory;
mod pack;
mod program;
mod state;

pub use branch::{Branch, Runs};
pub use build::{Builder, ConvOptions, LossOptions};
pub use executor::Step;
pub use interpreter::Interpreter;
pub use memory::Plan;
pub use program::Program;
pub use state::StateReport;

use crate::ops::conv2d::{self, Conv2d};
use crate::ops::{linear, sum, Call, Op, Write};
use crate::tensor::{Shape, TensorType};

/// The purpose of a graph, which decides how batch norms normalise; see the example of [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// By batch statistics, which update the running statistics.
    Train,
    /// By running statistics.
    Infer,
}

/// The handle of a value of a graph, returned by [`Builder`], which has an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(u32);

impl ValueId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value comes from. Numbers are indices into the graph's parameters, buffers and blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The caller sets it before a run.
    Input,
    Parameter(usize),
    /// Ops update it in place.
    Buffer(usize),
    /// The dynamic loss scale.
    LossScale,
    /// A block's gate or its inverse: drawn at the start of a run, or set by the caller before it.
    Gate(usize),
    /// An op's output.
    Node,
}

#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub ty: TensorType,
    pub origin: Origin,
}

/// An op with the values that it reads and writes.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub op: Op,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    /// How each output is written; only fusion makes nodes that accumulate.
    pub writes: Vec<Write>,
    /// If this gate holds 0, a run skips the node.
    pub gate: Option<ValueId>,
}

/// An output of a node and how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub value: ValueId,
    pub write: Write,
}

impl From<ValueId> for Stored {
    fn from(value: ValueId) -> Self {
        Self { value, write: Write::Overwrite }
    }
}

impl Node {
    /// The node of `op` with the operands of `call`, in the branch of `gate`.
    pub fn new(op: Op, call: impl Call<ValueId, Stored>, gate: Option<ValueId>) -> Self {
        let (inputs, stored) = call.into_lists();
        let (outputs, writes) = stored.into_iter().map(|s| (s.value, s.write)).unzip();
        Self { op, inputs, outputs, writes, gate }
    }

    /// The node of a pass of `conv`, in the branch of `gate`.
    pub fn conv2d(conv: Conv2d, pass: conv2d::Pass<ValueId, Stored>, gate: Option<ValueId>) -> Self {
        Self::new(Op::Conv2d(conv2d::Node { conv, pass: pass.form() }), pass, gate)
    }

    /// The convolution and its operands if the node is a forward pass.
    pub fn as_conv_fwd(&self) -> Option<(Conv2d, conv2d::Fwd<ValueId, Stored>)> {
        match self.op {
            Op::Conv2d(conv2d::Node { conv, pass: conv2d::Pass::Fwd(form) }) => Some((conv, self.bind(form))),
            _ => None,
        }
    }

    /// The operands by name; `form` is the form of the node's op.
    pub fn bind<C: Call<(), ()>>(&self, form: C) -> C::Of<ValueId, Stored> {
        let stored = self.outputs.iter().zip(&self.writes).map(|(&value, &write)| Stored { value, write });
        form.with(self.inputs.iter().copied(), stored)
    }

    /// How `value` is written; `None` if the node does not store it.
    pub fn write(&self, value: ValueId) -> Option<Write> {
        self.outputs.iter().position(|&v| v == value).map(|at| self.writes[at])
    }

    /// The outputs that are written by `write`, with their positions.
    fn written(&self, write: Write) -> impl Iterator<Item = (usize, ValueId)> + '_ {
        let outputs = self.outputs.iter().zip(&self.writes).enumerate();
        outputs.filter(move |&(_, (_, &w))| w == write).map(|(j, (&v, _))| (j, v))
    }
}

/// The kind of a [`Parameter`], which decides its initialisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParameterKind {
    /// A convolution's weight, OIHW in torch.
    ConvWeight,
    /// A linear layer's weight, `[out, in]` in torch.
    LinearWeight,
    /// A bias per output channel or feature.
    Bias,
    /// A batch norm's gamma.
    BatchNormWeight,
    /// A batch norm's beta.
    BatchNormBias,
}

/// A trained tensor of a graph; see the example of [`Graph`].
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The name in torch's state dict.
    pub name: String,
    /// The shape in torch's layout: OIHW, `[out, in]` or `[channels]`.
    pub shape: Shape,
    /// The kind.
    pub kind: ParameterKind,
    pub(crate) value: ValueId,
    pub(crate) grad: Option<ValueId>,
}

/// The running mean or variance of a batch norm; see the example of [`Graph`].
#[derive(Clone, Debug)]
pub struct Buffer {
    /// The name in torch's state dict.
    pub name: String,
    /// The shape: `[channels]`.
    pub shape: Shape,
    pub(crate) value: ValueId,
}

/// A residual block whose branch may be dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// The survival probability of the branch.
    pub survival: f64,
    /// 1 keeps the branch, 0 drops it; absent at inference.
    pub gate: Option<ValueId>,
    /// The inverse gate, if fusion made nodes that run only without the branch.
    pub closed: Option<ValueId>,
}

/// A network as a list of ops in execution order.
///
/// ```
/// use residuum::graph::Mode;
/// use residuum::models::{self, BuildOptions};
///
/// let model = models::find("resnet20_cifar")?;
/// let options = BuildOptions { loss: true, ..Default::default() };
/// let mut graph = model.build(Mode::Train, 128, [3, 32, 32], 10, options)?;
/// graph.differentiate()?;
/// assert_eq!(graph.input("input").expect("images").shape.dims(), [128, 32, 32, 3], "NHWC");
/// assert_eq!(graph.parameters()[0].shape.dims(), [16, 3, 3, 3], "OIHW, as in torch");
/// assert_eq!((graph.parameter_count(), graph.buffers().len()), (269_722, 2 * 19));
/// assert_eq!(graph.macs() / 128, 40_551_040);
/// # Ok::<(), residuum::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Graph {
    pub(crate) mode: Mode,
    pub(crate) values: Vec<Value>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) inputs: Vec<(String, ValueId)>,
    pub(crate) outputs: Vec<(String, ValueId)>,
    pub(crate) loss: Option<ValueId>,
    /// The fixed loss scale.
    pub(crate) grad_scale: f64,
    /// The dynamic loss scale, in a program that has one.
    pub(crate) loss_scale: Option<ValueId>,
    pub(crate) recompute: bool,
}

impl Graph {
    /// The purpose of the graph.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Enables recomputation on devices with kernels: the backward pass computes outputs of 1x1 convolutions again
    /// instead of keeping them. Less memory, more work, identical results. No effect on the CPU.
    pub fn recompute(&mut self) {
        self.recompute = true;
    }

    /// The parameters, in the order in which they were built.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The buffers, in the order in which they were built: running mean and variance of each batch norm.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// The elements of all parameters together.
    pub fn parameter_count(&self) -> usize {
        self.parameters.iter().map(|p| p.shape.len()).sum()
    }

    /// Multiply-adds of all convolutions and linear layers of the forward pass, for the whole batch.
    pub fn macs(&self) -> u64 {
        self.nodes
            .iter()
            .map(|n| match n.op {
                Op::Conv2d(conv2d::Node { pass: conv2d::Pass::Fwd(_), .. })
                | Op::Linear(linear::Node { pass: linear::Pass::Fwd { .. }, .. }) => n.op.operator().flops() / 2,
                _ => 0,
            })
            .sum()
    }

    /// The type of the input `name`. The shape of images is NHWC.
    pub fn input(&self, name: &str) -> Option<&TensorType> {
        self.inputs.iter().find(|(n, _)| n == name).map(|&(_, v)| self.ty(v))
    }

    /// The node that computes the loss: the last of the forward pass.
    fn loss_node(&self) -> Option<usize> {
        let loss = self.loss?;
        self.nodes.iter().position(|n| n.outputs.contains(&loss))
    }

    pub(crate) fn ty(&self, value: ValueId) -> &TensorType {
        &self.values[value.index()].ty
    }

    pub(crate) fn add_value(&mut self, ty: TensorType, origin: Origin) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { ty, origin });
        id
    }

    /// Appends `op` in the branch of `gate`. Each output is a new value, or the buffer that it updates.
    pub(crate) fn add<C: Call<ValueId, Option<ValueId>> + Clone>(
        &mut self,
        op: Op,
        call: C,
        gate: Option<ValueId>,
    ) -> C::Of<ValueId, ValueId> {
        let (inputs, buffers) = call.clone().into_lists();
        let outputs = self.add_node(op, inputs.clone(), buffers, gate);
        call.with(inputs, outputs)
    }

    /// As [`add`](Self::add), with the operands in order; outputs beyond the end of `buffers` are new values.
    fn add_node(
        &mut self,
        op: Op,
        inputs: Vec<ValueId>,
        buffers: Vec<Option<ValueId>>,
        gate: Option<ValueId>,
    ) -> Vec<ValueId> {
        let operator = op.operator();
        let wanted: Vec<_> = operator.inputs().iter().map(|t| t.shape.len()).collect();
        let given: Vec<_> = inputs.iter().map(|&v| self.ty(v).shape.len()).collect();
        assert_eq!(given, wanted, "elements of the inputs of {}", operator.name());
        let buffers = buffers.into_iter().chain(std::iter::repeat(None));
        let outputs = operator.outputs().into_iter().zip(buffers);
        let outputs: Vec<_> =
            outputs.map(|(ty, buffer)| buffer.unwrap_or_else(|| self.add_value(ty, Origin::Node))).collect();
        let writes = vec![Write::Overwrite; outputs.len()];
        self.nodes.push(Node { op, inputs, outputs: outputs.clone(), writes, gate });
        outputs
    }

    /// Removes the nodes that are marked in `gone`.
    fn remove(&mut self, gone: Vec<bool>) {
        let mut gone = gone.into_iter();
        self.nodes.retain(|_| gone.next() != Some(true));
    }

    /// Appends `a + b` in `branch`; if `gate` is there and holds 0, the sum is a.
    fn add_sum(&mut self, [a, b]: [ValueId; 2], gate: Option<ValueId>, branch: Option<ValueId>) -> ValueId {
        let call = sum::Fwd { a: a.into(), b: b.into(), gate, y: None, signs: None };
        let op = Op::Sum(sum::Node { form: call.form(), ..sum::Node::of(self.ty(a).shape.clone()) });
        self.add(op, call, branch).y
    }
}
