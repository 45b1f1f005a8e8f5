//! A planned program on a device with kernels.

use std::sync::Arc;

use super::executor::{Executor, Step};
use super::fuse::Fused;
use super::inputs::Inputs;
use super::memory::{Flat, GateSlots, Plan};
use super::{Runs, ValueId};
use crate::control::{gate, loss_scale, sgd};
use crate::device::cpu::Slot;
use crate::device::{Backend, Launch, Memory, Recording, Target, View};
use crate::ops::{Arg, Io, Write};
use crate::tensor::{memory, DType, Elem, HostData};
use crate::{Error, Result};

/// The recorded launches of a program and the arena to which they are bound.
#[derive(Debug)]
pub(super) struct KernelProgram {
    backend: Arc<dyn Backend>,
    arena: Arc<dyn Memory>,
    dtype: DType,
    prepare: Recording,
    /// One recording, or one for each turn of the inputs.
    steps: Vec<Recording>,
    /// The launches of each recording.
    launched: Vec<Step>,
    inputs: Inputs,
}

impl KernelProgram {
    pub fn new(
        backend: &Arc<dyn Backend>,
        fused: &Fused,
        plan: &Plan,
        target: Target,
        optimizer: Option<sgd::Sgd>,
    ) -> Result<Self> {
        let arena = backend.allocate(plan.arena_bytes)?;
        let binder = |turn| Binder { fused, plan, target, arena: &arena, turn };
        let record = |launches| Recording::new(backend.clone(), launches);
        let prepare: Result<Vec<_>> = (0..fused.prepare).map(|i| binder(0).bind(i)).collect();
        let prepare = record(prepare?.into_iter().flatten().collect())?;
        let (mut steps, mut launched) = (Vec::new(), Vec::new());
        for turn in 0..if plan.inputs.is_empty() { 1 } else { 2 } {
            let launches;
            (launched, launches) = binder(turn).step(optimizer.as_ref())?.into_iter().unzip();
            steps.push(record(launches)?);
        }
        // All persistent state starts as zeros.
        arena.zero(0, plan.state_bytes)?;
        let inputs = Inputs::new(&plan.inputs, &arena)?;
        Ok(Self { backend: backend.clone(), arena, dtype: target.dtype, prepare, steps, launched, inputs })
    }

    fn bytes(&self, slot: &Slot) -> usize {
        slot.len * slot.elem.bytes(self.dtype)
    }

    /// The bytes of `data` in `slot`. Fails if the sizes differ.
    fn encode(&self, slot: &Slot, data: &HostData) -> Result<Vec<u8>> {
        let bytes = encode(slot.elem, self.dtype, data)?;
        let fits = bytes.len() == self.bytes(slot);
        Error::check(fits, "write", || format!("{} bytes to a value of {} elements", bytes.len(), slot.len))?;
        Ok(bytes)
    }
}

/// Binds ops to their places in the arena.
struct Binder<'a> {
    fused: &'a Fused,
    plan: &'a Plan,
    target: Target,
    arena: &'a Arc<dyn Memory>,
    /// Which of the two places of each input is read.
    turn: usize,
}

impl Binder<'_> {
    /// The launches of a run: the gates, all nodes except those that run once per load, and the optimizer.
    fn step(&self, optimizer: Option<&sgd::Sgd>) -> Result<Vec<(Step, Launch)>> {
        let mut step = Vec::new();
        let mut add = |op, shape: &str, runs, launches: Vec<Launch>| {
            step.extend(launches.into_iter().map(|launch| {
                let (kernel, grid, cost) = (launch.kernel().name, launch.grid(), launch.cost());
                (Step { kernel, op, shape: shape.into(), grid, cost, runs }, launch)
            }));
        };
        add("gate", "", Runs::Always, self.gates()?);
        for (i, node) in self.fused.graph.nodes.iter().enumerate().skip(self.fused.prepare) {
            let op = node.op.operator();
            add(op.name(), &op.summary(), self.fused.graph.runs(node.gate), self.bind(i)?);
        }
        if let Some(optimizer) = optimizer {
            let shape = self.plan.flat.len.to_string();
            add("loss_scale", &shape, Runs::Always, self.decision()?);
            add("sgd_step", &shape, Runs::Always, vec![self.optimizer(optimizer)?]);
        }
        Ok(step)
    }

    fn bind(&self, i: usize) -> Result<Vec<Launch>> {
        let node = &self.fused.graph.nodes[i];
        let inputs: Result<Vec<Arg>> = node.inputs.iter().map(|&v| self.arg(v, Write::Overwrite)).collect();
        let outputs: Result<Vec<Arg>> = node.outputs.iter().zip(&node.writes).map(|(&v, &w)| self.arg(v, w)).collect();
        let scratch = self.plan.scratch[i].map(|s| self.view(&s)).transpose()?;
        let io = Io { inputs: &inputs?, outputs: &outputs?, scratch: scratch.as_ref() };
        let launches = node.op.operator().launches(self.target, &io)?;
        let Some(gate) = node.gate else { return Ok(launches) };
        let gate = self.arg(gate, Write::Overwrite)?.view;
        Ok(launches.into_iter().map(|launch| launch.gated(gate.clone())).collect())
    }

    /// The launches that begin a run with stochastic depth.
    fn gates(&self) -> Result<Vec<Launch>> {
        let GateSlots { values, closed, thresholds, control, ranges, pairs } = &self.plan.gates;
        if values.len == 0 {
            return Ok(Vec::new());
        }
        let [control, thresholds, gates, ranges] = [control, thresholds, values, ranges].map(|slot| self.view(slot));
        let (ranges, grad) = (ranges?, self.view(&self.plan.flat.grad)?);
        Ok(gate::launches(&gate::Buffers {
            control: &control?,
            thresholds: &thresholds?,
            gates: &gates?,
            closed: &self.view(closed)?,
            grad: (!pairs.is_empty()).then_some((&grad, &ranges)),
            blocks: values.len,
            longest: pairs.iter().map(|[start, end]| (end - start) * gate::UNIT).max().unwrap_or(0),
        }))
    }

    fn arg(&self, value: ValueId, write: Write) -> Result<Arg> {
        let (slot, root) = (self.plan.slot(value), self.fused.root(value));
        let shape = &self.fused.graph.ty(value).shape;
        let channels = |v: ValueId| self.fused.graph.ty(v).shape.dims().last().copied().unwrap_or(1);
        let pixel_stride = channels(root);
        let len =
            if root == value { slot.len } else { (shape.len() / channels(value) - 1) * pixel_stride + channels(value) };
        Ok(Arg { view: self.view(&Slot { offset: self.offset(slot, root), len, ..slot })?, pixel_stride, write })
    }

    /// The offset in this turn of `slot`, a value that lies in `root`.
    fn offset(&self, slot: Slot, root: ValueId) -> usize {
        let Some(whole) = self.plan.slots[root.index()] else { return slot.offset };
        let places = self.plan.inputs.iter().find(|[first, _]| *first == whole);
        places.map_or(slot.offset, |places| places[self.turn].offset + (slot.offset - whole.offset))
    }

    fn view(&self, slot: &Slot) -> Result<View> {
        View::new(self.arena.clone(), slot.offset, slot.len * slot.elem.bytes(self.target.dtype))
    }

    /// The launches that update the dynamic loss scale, if there is one.
    fn decision(&self) -> Result<Vec<Launch>> {
        let Flat { len, grad, loss_scale, flags, .. } = &self.plan.flat;
        if loss_scale.len == 0 {
            return Ok(Vec::new());
        }
        let (grad, flags, state) = (&self.view(grad)?, &self.view(flags)?, &self.view(loss_scale)?);
        let loss = self.loss()?;
        Ok(loss_scale::launches(&loss_scale::Buffers { grad, flags, loss: loss.as_ref(), state, len: *len }).into())
    }

    fn loss(&self) -> Result<Option<View>> {
        let slot = self.fused.graph.loss.and_then(|loss| self.plan.slots[loss.index()]);
        slot.map(|slot| self.view(&slot)).transpose()
    }

    fn optimizer(&self, sgd: &sgd::Sgd) -> Result<Launch> {
        let Flat { len, param, grad, velocity, copy, control, loss_scale, .. } = &self.plan.flat;
        let present = |slot: &Slot| (slot.len > 0).then(|| self.view(slot)).transpose();
        let (copy, loss_scale, loss) = (present(copy)?, present(loss_scale)?, self.loss()?);
        let buffers = sgd::Buffers {
            param: &self.view(param)?,
            grad: &self.view(grad)?,
            velocity: &self.view(velocity)?,
            copy: copy.as_ref(),
            control: &self.view(control)?,
            loss_scale: loss_scale.as_ref(),
            loss: loss.as_ref(),
            grad_scale: self.fused.graph.grad_scale,
            len: *len,
            decay_end: *len,
        };
        Ok(sgd::launch(sgd, self.target, &buffers))
    }
}

impl Executor for KernelProgram {
    fn write(&mut self, slot: &Slot, data: &HostData) -> Result<()> {
        self.arena.write(slot.offset, &self.encode(slot, data)?)
    }

    fn feed(&mut self, slot: &Slot, data: &HostData) -> Result<()> {
        let Some(input) = self.inputs.find(slot) else { return self.write(slot, data) };
        let bytes = self.encode(slot, data)?;
        self.inputs.set(input, &bytes)
    }

    fn read(&self, slot: &Slot) -> Result<HostData> {
        let place = self.inputs.find(slot).map_or(*slot, |input| self.inputs.read_place(input));
        let mut bytes = memory::filled("a copy of a tensor", 0, self.bytes(slot))?;
        self.arena.read(place.offset, &mut bytes)?;
        decode(slot.elem, self.dtype, &bytes)
    }

    fn prepare(&mut self) -> Result<()> {
        self.prepare.replay()
    }

    fn run(&mut self) -> Result<()> {
        let dtype = self.dtype;
        let turn = self.inputs.take_turn(|slot| slot.len * slot.elem.bytes(dtype))?;
        self.steps[turn].replay()?;
        self.inputs.started()
    }

    fn steps(&self) -> &[Step] {
        &self.launched
    }

    fn synchronize(&self) -> Result<()> {
        self.backend.synchronize()
    }
}

/// Converts `data` to the device's bytes.
fn encode(elem: Elem, dtype: DType, data: &HostData) -> Result<Vec<u8>> {
    fn bytes<const N: usize>(data: &HostData, element: impl Fn(f64) -> [u8; N]) -> Result<Vec<u8>> {
        let mut bytes = memory::room("a tensor as the device stores it", data.len() * N)?;
        data.each(|v| bytes.extend_from_slice(&element(v)));
        Ok(bytes)
    }
    match (elem, dtype) {
        (Elem::Real, DType::F16) => bytes(data, |v| half::f16::from_f32(v as f32).to_le_bytes()),
        (Elem::Real, DType::BF16) => bytes(data, |v| half::bf16::from_f32(v as f32).to_le_bytes()),
        (Elem::Real | Elem::Stat, _) => bytes(data, |v| (v as f32).to_le_bytes()),
        (Elem::Index, _) => bytes(data, |v| (v as i32).to_le_bytes()),
        (Elem::Byte, _) => bytes(data, |v| [v as u8]),
    }
}

/// Converts the device's `bytes` to host data.
fn decode(elem: Elem, dtype: DType, bytes: &[u8]) -> Result<HostData> {
    fn elements<const N: usize, T>(bytes: &[u8], element: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        memory::collect("a copy of a tensor", bytes.as_chunks().0.iter().map(|&b| element(b)))
    }
    Ok(match (elem, dtype) {
        (Elem::Real, DType::F16) => HostData::F32(elements(bytes, |b| half::f16::from_le_bytes(b).to_f32())?),
        (Elem::Real, DType::BF16) => HostData::F32(elements(bytes, |b| half::bf16::from_le_bytes(b).to_f32())?),
        (Elem::Real | Elem::Stat, _) => HostData::F32(elements(bytes, f32::from_le_bytes)?),
        (Elem::Index, _) => HostData::I64(elements(bytes, |b| i64::from(i32::from_le_bytes(b)))?),
        (Elem::Byte, _) => HostData::I64(elements(bytes, |[b]| i64::from(b))?),
    })
}
