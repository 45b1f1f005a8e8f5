//! Graphs: build, differentiate, fuse, plan memory, run.
//!
//! A [`Builder`] makes a [`Graph`] of forward ops; [`Graph::differentiate`] appends the backward ones. A [`Program`] is
//! the graph fused, with every value at a fixed place in one arena, on any device. The [`Interpreter`] runs the same
//! graph as it was built, op by op in plain loops: it judges the programs.

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
mod saved;
mod state;
mod storage;

pub use branch::{Branch, Runs};
pub use build::{Builder, ConvOptions, LossOptions};
pub use executor::Step;
pub use interpreter::Interpreter;
pub use memory::Plan;
pub use program::Program;
pub use state::StateReport;

use crate::ops::{conv2d, linear, sum, Call, Op, Write};
use crate::tensor::{Shape, TensorType};

/// What a graph is built for: it decides which pass of a batch norm is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Batch statistics, running statistics updated.
    Train,
    /// Running statistics.
    Infer,
}

/// A value of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(u32);

impl ValueId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Set by the caller before a run.
    Input,
    /// A parameter of that index.
    Parameter(usize),
    /// A buffer of that index, which ops update in place.
    Buffer(usize),
    /// The moving loss scale.
    LossScale,
    /// The gate of that index, or its opposite: drawn at the start of a run, or set by the caller before it.
    Gate(usize),
    /// An op's output.
    Node,
}

/// A value: its type and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub ty: TensorType,
    pub origin: Origin,
}

/// One op with the values that it reads and writes.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub op: Op,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    /// How each output is written; only fusion makes it anything but overwrite.
    pub writes: Vec<Write>,
    /// Where this holds 0, a run skips the node: it reads and writes nothing.
    pub gate: Option<ValueId>,
}

/// An output of a node: the value, and how it is written.
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
    /// The node of `op`, whose operands are `call`, in the branch of `gate`.
    pub fn new(op: Op, call: impl Call<ValueId, Stored>, gate: Option<ValueId>) -> Self {
        let (inputs, stored) = call.into_lists();
        let (outputs, writes) = stored.into_iter().map(|s| (s.value, s.write)).unzip();
        Self { op, inputs, outputs, writes, gate }
    }

    /// The operands by name; `form` is that of the node's op.
    pub fn bind<C: Call<(), ()>>(&self, form: C) -> C::Of<ValueId, Stored> {
        let stored = self.outputs.iter().zip(&self.writes).map(|(&value, &write)| Stored { value, write });
        form.with(self.inputs.iter().copied(), stored)
    }
}

/// What kind of parameter it is: for initialisation and for the scope of weight decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParameterKind {
    /// A convolution's `w`, in torch OIHW.
    ConvWeight,
    /// A linear layer's `w`, in torch `[out, in]`.
    LinearWeight,
    /// A bias per output channel or feature.
    Bias,
    /// A batch norm's gamma.
    BatchNormWeight,
    /// A batch norm's beta.
    BatchNormBias,
}

/// A trained tensor.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its name, as torch's state dict has it.
    pub name: String,
    /// Its shape in torch's layout.
    pub shape: Shape,
    /// What it is.
    pub kind: ParameterKind,
    pub(crate) value: ValueId,
    pub(crate) grad: Option<ValueId>,
}

/// A tensor that ops update but the optimizer does not: running statistics.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// Its name, as torch's state dict has it.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    pub(crate) value: ValueId,
}

/// A residual block whose branch may be dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// The chance that the branch is kept.
    pub survival: f64,
    /// 1 where it is kept, 0 where it is dropped; absent at inference, where none is.
    pub gate: Option<ValueId>,
    /// The opposite of the gate, where fusion has made something that runs only without the branch.
    pub closed: Option<ValueId>,
}

/// A network as a list of ops in the order in which they run.
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
    /// What gradients are multiplied by in every run.
    pub(crate) grad_scale: f64,
    /// What they are multiplied by besides, in a program that moves it.
    pub(crate) loss_scale: Option<ValueId>,
    pub(crate) recompute: bool,
}

impl Graph {
    /// What the graph was built for.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Lets programs on devices that run kernels compute the outputs of 1x1 convolutions again in the backward pass instead
    /// of keeping them: less memory, more work, the same numbers. On the CPU it changes nothing.
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

    /// The number of parameters' elements.
    pub fn parameter_count(&self) -> usize {
        self.parameters.iter().map(|p| p.shape.len()).sum()
    }

    /// Multiply-adds of the forward convolutions and linear layers, for the whole batch.
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

    /// The type of the named input.
    pub fn input(&self, name: &str) -> Option<&TensorType> {
        self.inputs.iter().find(|(n, _)| n == name).map(|&(_, v)| self.ty(v))
    }

    pub(crate) fn ty(&self, value: ValueId) -> &TensorType {
        &self.values[value.index()].ty
    }

    pub(crate) fn add_value(&mut self, ty: TensorType, origin: Origin) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { ty, origin });
        id
    }

    /// Appends `op`; its outputs are new values, but for those that update the buffers `updated`, in order.
    pub(crate) fn add_node(&mut self, op: Op, inputs: Vec<ValueId>, updated: &[ValueId]) -> Vec<ValueId> {
        let operator = op.operator();
        let wanted: Vec<_> = operator.inputs().iter().map(|t| t.shape.len()).collect();
        let given: Vec<_> = inputs.iter().map(|&v| self.ty(v).shape.len()).collect();
        assert_eq!(given, wanted, "elements of the inputs of {}", operator.name());
        let updates = operator.updates();
        let mut updated = updated.iter();
        let outputs: Vec<ValueId> = operator
            .outputs()
            .into_iter()
            .enumerate()
            .map(|(i, ty)| match updates.contains(&i).then(|| updated.next()) {
                Some(Some(&buffer)) => buffer,
                _ => self.add_value(ty, Origin::Node),
            })
            .collect();
        let writes = vec![Write::Overwrite; outputs.len()];
        self.nodes.push(Node { op, inputs, outputs: outputs.clone(), writes, gate: None });
        outputs
    }

    /// Appends `op` with the operands of `call` in the branch of `gate`: each output is a new value, or the buffer that it
    /// updates.
    pub(crate) fn add<C: Call<ValueId, Option<ValueId>>>(
        &mut self,
        op: Op,
        call: C,
        gate: Option<ValueId>,
    ) -> C::Of<ValueId, ValueId> {
        let operands = op.operator().operands();
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        let mut types = operands.writes.into_iter().map(|(_, written)| written.ty);
        let call = call.map(
            |_, v| {
                inputs.push(v);
                v
            },
            |name, buffer| {
                let Some(ty) = types.next() else { panic!("the op has no output `{name}`") };
                let v = buffer.unwrap_or_else(|| self.add_value(ty, Origin::Node));
                outputs.push(v);
                v
            },
        );
        let elements = |v: &ValueId| self.ty(*v).shape.len();
        let wanted: Vec<_> = operands.reads.iter().map(|(_, read)| read.ty.shape.len()).collect();
        assert_eq!(inputs.iter().map(elements).collect::<Vec<_>>(), wanted, "inputs of {}", op.operator().name());
        let writes = vec![Write::Overwrite; outputs.len()];
        self.nodes.push(Node { op, inputs, outputs, writes, gate });
        call
    }

    /// Appends `a + b` in the branch of `gate`, or a alone where `open` is closed.
    pub(crate) fn add_sum(&mut self, a: ValueId, b: ValueId, open: Option<ValueId>, gate: Option<ValueId>) -> ValueId {
        let call = sum::Fwd { a: a.into(), b: b.into(), gate: open, y: None, signs: None };
        let op = Op::Sum(sum::Node { form: call.form(), ..sum::Node::of(self.ty(a).shape.clone()) });
        self.add(op, call, gate).y
    }

    /// As [`add_node`](Self::add_node), a node of the branch that `gate` closes.
    pub(crate) fn add_gated(
        &mut self,
        op: Op,
        inputs: Vec<ValueId>,
        updated: &[ValueId],
        gate: Option<ValueId>,
    ) -> Vec<ValueId> {
        let outputs = self.add_node(op, inputs, updated);
        if let Some(node) = self.nodes.last_mut() {
            node.gate = gate;
        }
        outputs
    }
}
