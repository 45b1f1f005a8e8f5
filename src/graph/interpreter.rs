//! The reference executor: runs the graph as built, op by op, in plain loops.

use super::state::{counter, find, to_library, to_torch, torch_shape};
use super::{Graph, Mode, Node, Origin, Parameter, StateReport, ValueId};
use crate::ops::{HostIo, HostMut, HostRef, Write};
use crate::tensor::{memory, DType, Elem, HostData, HostTensor, Real, Shape, StateDict, TensorType};
use crate::{Error, Result};

/// The elements of a value.
#[derive(Clone, Debug)]
enum Content<T> {
    Real(Vec<T>),
    Index(Vec<i32>),
    Byte(Vec<u8>),
}

/// Runs a graph in `T` without fusion or memory plan and rounds stored values to a storage type: an independent check
/// of a [`Program`](super::Program). It holds all values at once, and panics or aborts the process if memory runs out.
///
/// ```
/// use residuum::device::Device;
/// use residuum::graph::{Interpreter, Mode, Program};
/// use residuum::models::{self, BuildOptions};
/// use residuum::tensor::{DType, HostTensor};
///
/// let model = models::find("resnet8_cifar")?;
/// let graph = model.build(Mode::Infer, 1, [1, 8, 8], 10, BuildOptions::default())?;
/// let state = model.initialise(&graph, 0);
/// let image = HostTensor::f32([1, 1, 8, 8], (0..64).map(|i| i as f32 / 64.0).collect());
///
/// let mut reference = Interpreter::<f64>::new(&graph, DType::F64);
/// reference.load(&state)?;
/// reference.set_input("input", &image)?;
/// reference.run();
///
/// let mut program = Program::compile(&graph, &Device::cpu(), DType::F64, None)?;
/// program.load(&state)?;
/// program.set_input("input", &image)?;
/// program.run()?;
/// let (expected, found) = (reference.output("logits")?, program.output("logits")?);
/// for (a, b) in expected.to_real::<f64>().iter().zip(found.to_real::<f64>()) {
///     assert!((a - b).abs() < 1e-12);
/// }
/// # Ok::<(), residuum::Error>(())
/// ```
#[derive(Debug)]
pub struct Interpreter<'g, T: Real> {
    graph: &'g Graph,
    storage: DType,
    contents: Vec<Content<T>>,
    steps: i64,
}

impl<'g, T: Real> Interpreter<'g, T> {
    /// Prepares to run `graph`. Stored values of kind [`Elem::Real`] are rounded to `storage`.
    pub fn new(graph: &'g Graph, storage: DType) -> Self {
        let mut contents: Vec<_> = graph.values.iter().map(|v| empty(&v.ty)).collect();
        graph.gates().into_iter().for_each(|gate| contents[gate.index()] = Content::Real(vec![T::ONE]));
        Self { graph, storage, contents, steps: 0 }
    }

    /// Sets the gates of stochastic depth: true, the default, keeps a block's branch. Fails on another number of gates.
    pub fn set_gates(&mut self, open: &[bool]) -> Result<()> {
        let gates = self.graph.gates();
        check_gate_count(open.len(), gates.len())?;
        for (gate, &open) in gates.into_iter().zip(open) {
            self.contents[gate.index()] = Content::Real(vec![if open { T::ONE } else { T::ZERO }]);
        }
        Ok(())
    }

    /// Sets all parameters and buffers, in torch's layout (OIHW, `[out, in]`). Fails as [`Graph::check_state`] does.
    pub fn load(&mut self, state: &StateDict) -> Result<StateReport> {
        let report = self.graph.check_state(state)?;
        for (name, _, value) in self.graph.tensors() {
            self.fill(value, &to_library(&state[name], self.graph.ty(value))?);
        }
        self.steps = counter(state);
        Ok(report)
    }

    /// Sets an input from a tensor in torch's layout (NCHW). Fails if there is no such input or the shape differs.
    pub fn set_input(&mut self, name: &str, tensor: &HostTensor) -> Result<()> {
        let (value, data) = self.graph.check_input(name, tensor)?;
        self.fill(value, &data);
        Ok(())
    }

    /// Sets the input `labels`. Fails unless there is one for each image.
    pub fn set_labels(&mut self, labels: &[i32]) -> Result<()> {
        let value = self.graph.check_labels(labels)?;
        self.contents[value.index()] = Content::Index(labels.to_vec());
        Ok(())
    }

    /// Runs every op once, except in dropped branches. Values that were never loaded or set are NaN.
    pub fn run(&mut self) {
        self.run_by(Way::Reference);
    }

    /// As [`run`](Self::run), with the fast paths of the CPU.
    pub(crate) fn run_fast(&mut self) {
        self.run_by(Way::Host);
    }

    fn run_by(&mut self, way: Way) {
        for node in &self.graph.nodes {
            if self.is_skipped(node) {
                self.forget(node);
                continue;
            }
            let mut take = |v: &ValueId| std::mem::replace(&mut self.contents[v.index()], Content::Byte(Vec::new()));
            let mut written: Vec<Content<T>> = node.outputs.iter().map(&mut take).collect();
            let op = node.op.host::<T>();
            let mut scratch = vec![T::ZERO; if way == Way::Host { op.host_scratch() } else { 0 }];
            let mut io = HostIo {
                inputs: node.inputs.iter().map(|v| self.contents[v.index()].as_ref()).collect(),
                outputs: written.iter_mut().map(Content::as_mut).collect(),
                writes: vec![Write::Overwrite; node.outputs.len()],
                scratch: &mut scratch,
            };
            match way {
                Way::Reference => op.reference(&mut io),
                Way::Host => op.host(&mut io),
            }
            for (&value, content) in node.outputs.iter().zip(written) {
                self.contents[value.index()] = content;
                self.round(value);
            }
        }
        self.steps += i64::from(self.graph.mode == Mode::Train);
    }

    /// The first layer in execution order whose output in the last run is not finite; `None` if all are finite. An op
    /// without parameters is named after the layer before it.
    pub fn first_non_finite(&self) -> Option<String> {
        let mut last = None;
        for node in self.graph.nodes.iter().filter(|node| !self.is_skipped(node)) {
            let own = node.inputs.iter().find_map(|v| match self.graph.values[v.index()].origin {
                Origin::Parameter(i) => self.graph.parameters[i].name.rsplit_once('.').map(|(layer, _)| layer),
                _ => None,
            });
            last = own.or(last);
            let is_bad = |content: &Content<T>| match content {
                Content::Real(v) => v.iter().any(|a| !a.to_f64().is_finite()),
                Content::Index(_) | Content::Byte(_) => false,
            };
            if node.outputs.iter().any(|v| is_bad(&self.contents[v.index()])) {
                let op = node.op.operator().name();
                return Some(match (own, last) {
                    (Some(layer), _) => layer.into(),
                    (None, Some(before)) => format!("{op} after {before}"),
                    (None, None) => op.into(),
                });
            }
        }
        None
    }

    /// An output of the last run in torch's layout (NCHW). Fails if there is no such output.
    pub fn output(&self, name: &str) -> Result<HostTensor> {
        let value = find(&self.graph.outputs, "output", name)?;
        let ty = self.graph.ty(value);
        to_torch(self.data(value), ty, &torch_shape(ty))
    }

    /// The gradients of the loss by parameter name, in torch's layout (OIHW, `[out, in]`), divided by the loss scale.
    /// Zero in dropped branches; empty if the graph has not been differentiated.
    pub fn gradients(&self) -> StateDict {
        let scale = T::from_f64(self.graph.grad_scale);
        let writers = self.graph.writer_gates();
        let gradient = |p: &Parameter| {
            let grad = p.grad?;
            let dropped = writers[grad.index()].is_some_and(|gate| self.is_closed(gate));
            let unscaled = |&g: &T| if dropped { T::ZERO } else { g / scale };
            let data: Vec<T> = self.contents[grad.index()].as_ref().real().iter().map(unscaled).collect();
            Some((p.name.clone(), held(to_torch(held(host_data(HostRef::Real(&data))), self.graph.ty(grad), &p.shape))))
        };
        self.graph.parameters.iter().filter_map(gradient).collect()
    }

    /// Parameters and buffers by name, in torch's layout (OIHW, `[out, in]`).
    pub fn state(&self) -> StateDict {
        let tensor = |(name, shape, v): (&str, &Shape, ValueId)| {
            (name.to_string(), held(to_torch(self.data(v), self.graph.ty(v), shape)))
        };
        let counters = self.graph.counters().map(|name| (name, HostTensor::i64([], vec![self.steps])));
        self.graph.tensors().map(tensor).chain(counters).collect()
    }

    fn is_closed(&self, gate: ValueId) -> bool {
        self.contents[gate.index()].as_ref().real()[0] == T::ZERO
    }

    fn is_skipped(&self, node: &Node) -> bool {
        node.gate.is_some_and(|gate| self.is_closed(gate))
    }

    /// Poisons a skipped node's outputs so that a stray read shows. Buffers that it updates in place are kept.
    fn forget(&mut self, node: &Node) {
        let updates = node.op.operator().updates();
        for (_, v) in node.outputs.iter().enumerate().filter(|(i, _)| !updates.contains(i)) {
            self.contents[v.index()] = empty(self.graph.ty(*v));
        }
    }

    fn fill(&mut self, value: ValueId, data: &HostData) {
        let tensor = HostTensor { shape: self.graph.ty(value).shape.clone(), data: data.clone() };
        self.contents[value.index()] = Content::Real(tensor.to_real());
        self.round(value);
    }

    fn round(&mut self, value: ValueId) {
        if let (Content::Real(v), Elem::Real) = (&mut self.contents[value.index()], self.graph.ty(value).elem) {
            v.iter_mut().for_each(|a| *a = self.storage.round(*a));
        }
    }

    fn data(&self, value: ValueId) -> HostData {
        held(host_data(self.contents[value.index()].as_ref()))
    }
}

/// How to run an op: by its reference or its fast path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Reference,
    Host,
}

impl<T: Real> Content<T> {
    fn as_ref(&self) -> HostRef<'_, T> {
        match self {
            Self::Real(v) => HostRef::Real(v),
            Self::Index(v) => HostRef::Index(v),
            Self::Byte(v) => HostRef::Byte(v),
        }
    }

    fn as_mut(&mut self) -> HostMut<'_, T> {
        match self {
            Self::Real(v) => HostMut::Real(v),
            Self::Index(v) => HostMut::Index(v),
            Self::Byte(v) => HostMut::Byte(v),
        }
    }
}

/// A poisoned tensor, so that a read before a write shows.
fn empty<T: Real>(ty: &TensorType) -> Content<T> {
    let len = ty.shape.len();
    match ty.elem {
        Elem::Real | Elem::Stat => Content::Real(vec![T::from_f64(f64::NAN); len]),
        Elem::Index => Content::Index(vec![i32::MIN; len]),
        Elem::Byte => Content::Byte(vec![u8::MAX; len]),
    }
}

/// Fails unless there is a gate for each block.
pub(super) fn check_gate_count(given: usize, blocks: usize) -> Result<()> {
    Error::check(given == blocks, "gates", || format!("{given} for {blocks} blocks whose branches may be dropped"))
}

/// A copy of `tensor`; numbers are in f32 or f64 as `T`.
pub(super) fn host_data<T: Real>(tensor: HostRef<'_, T>) -> Result<HostData> {
    let what = "a copy of a tensor";
    Ok(match tensor {
        HostRef::Real(v) if size_of::<T>() == 8 => HostData::F64(memory::collect(what, v.iter().map(|a| a.to_f64()))?),
        HostRef::Real(v) => HostData::F32(memory::collect(what, v.iter().map(|a| a.to_f64() as f32))?),
        HostRef::Index(v) => HostData::I64(memory::collect("labels", v.iter().map(|&a| a.into()))?),
        HostRef::Byte(v) => HostData::I64(memory::collect("window positions", v.iter().map(|&a| a.into()))?),
    })
}

/// Unwraps an allocation: unlike programs, the interpreter panics if memory runs out.
fn held<T>(made: Result<T>) -> T {
    made.unwrap_or_else(|error| panic!("{error}"))
}
