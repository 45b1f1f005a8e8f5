//! A planned program on a device that runs kernels.

use std::ops::Range;
use std::sync::Arc;

use super::fuse::Fused;
use super::inputs::Inputs;
use super::memory::{Flat, Plan};
use super::program::Executor;
use super::ValueId;
use crate::device::cpu::Slot;
use crate::device::{Backend, Launch, Memory, Recording, Target, View};
use crate::ops::{loss_scale, sgd, Arg, Io, Write};
use crate::tensor::{DType, Elem, HostData, HostTensor};
use crate::{Error, Result};

/// The launches of a program, all bound to one arena on the device.
#[derive(Debug)]
pub(super) struct KernelProgram {
    backend: Arc<dyn Backend>,
    arena: Arc<dyn Memory>,
    dtype: DType,
    prepare: Recording,
    /// One recording, or one for each turn of the inputs.
    steps: Vec<Recording>,
    inputs: Inputs,
}

/// Bytes of scratch memory that each node needs.
pub(super) fn scratch_bytes(fused: &Fused, target: Target) -> Vec<usize> {
    fused.graph.nodes.iter().map(|n| n.op.operator().scratch_bytes(target)).collect()
}

impl KernelProgram {
    pub fn new(
        backend: &Arc<dyn Backend>,
        fused: &Fused,
        plan: &Plan,
        dtype: DType,
        optimizer: Option<sgd::Sgd>,
    ) -> Result<Self> {
        let target = Target { arch: backend.arch(), dtype };
        let arena = backend.allocate(plan.arena_bytes)?;
        let binder = |turn| Binder { fused, plan, dtype, arena: &arena, turn };
        let bind = |turn, nodes: Range<usize>| -> Result<Vec<Launch>> {
            let lists: Result<Vec<_>> = nodes.map(|i| binder(turn).bind(i, target)).collect();
            Ok(lists?.into_iter().flatten().collect())
        };
        let record = |launches| Recording::new(backend.clone(), launches);
        let prepare = record(bind(0, 0..fused.prepare)?)?;
        let mut steps = Vec::new();
        for turn in 0..if plan.inputs.is_empty() { 1 } else { 2 } {
            let mut launches = bind(turn, fused.prepare..fused.graph.nodes.len())?;
            if let Some(optimizer) = &optimizer {
                launches.extend(binder(turn).optimizer(optimizer, target)?);
            }
            steps.push(record(launches)?);
        }
        // Everything that lives on between runs starts as zeros.
        arena.write(0, &vec![0; plan.state_bytes])?;
        let inputs = Inputs::new(&plan.inputs, &arena)?;
        Ok(Self { backend: backend.clone(), arena, dtype, prepare, steps, inputs })
    }

    fn bytes(&self, slot: &Slot) -> usize {
        slot.len * slot.elem.bytes(self.dtype)
    }

    /// `data` as it lies in `slot`.
    fn encode(&self, slot: &Slot, data: &HostData) -> Result<Vec<u8>> {
        let bytes = encode(slot.elem, self.dtype, data);
        if bytes.len() != self.bytes(slot) {
            return Err(Error::invalid("write", format!("{} bytes to a value of {} elements", bytes.len(), slot.len)));
        }
        Ok(bytes)
    }
}

/// Binds ops to places in the arena.
struct Binder<'a> {
    fused: &'a Fused,
    plan: &'a Plan,
    dtype: DType,
    arena: &'a Arc<dyn Memory>,
    /// Which of the two places of inputs is read.
    turn: usize,
}

impl Binder<'_> {
    fn bind(&self, i: usize, target: Target) -> Result<Vec<Launch>> {
        let node = &self.fused.graph.nodes[i];
        let inputs: Result<Vec<Arg>> = node.inputs.iter().map(|&v| self.arg(v, Write::Overwrite)).collect();
        let outputs: Result<Vec<Arg>> = node.outputs.iter().zip(&node.writes).map(|(&v, &w)| self.arg(v, w)).collect();
        let scratch = self.plan.scratch[i].map(|s| self.view(&s)).transpose()?;
        let io = Io { inputs: &inputs?, outputs: &outputs?, scratch: scratch.as_ref() };
        node.op.operator().launches(target, &io)
    }

    fn arg(&self, value: ValueId, write: Write) -> Result<Arg> {
        let Some(slot) = self.plan.slots[value.index()] else {
            unreachable!("every value that an op touches has a place")
        };
        let slot = self.plan.inputs.iter().find(|[first, _]| *first == slot).map_or(slot, |places| places[self.turn]);
        let pixel_stride = self.fused.graph.ty(value).shape.dims().last().copied().unwrap_or(1);
        Ok(Arg { view: self.view(&slot)?, pixel_stride, write })
    }

    fn view(&self, slot: &Slot) -> Result<View> {
        View::new(self.arena.clone(), slot.offset, slot.len * slot.elem.bytes(self.dtype))
    }

    /// The optimizer's step, after what decides about the loss scale.
    fn optimizer(&self, sgd: &sgd::Sgd, target: Target) -> Result<Vec<Launch>> {
        let Flat { len, param, grad, velocity, shadow, control, loss_scale, flags, .. } = &self.plan.flat;
        let present = |slot: &Slot| (slot.len > 0).then(|| self.view(slot)).transpose();
        let (shadow, state) = (present(shadow)?, present(loss_scale)?);
        let grad = &self.view(grad)?;
        let mut launches = Vec::new();
        if let Some(state) = &state {
            let flags = &self.view(flags)?;
            launches.extend(loss_scale::launches(&loss_scale::Buffers { grad, flags, state, len: *len }));
        }
        let buffers = sgd::Buffers {
            param: &self.view(param)?,
            grad,
            velocity: &self.view(velocity)?,
            shadow: shadow.as_ref(),
            control: &self.view(control)?,
            loss_scale: state.as_ref(),
            len: *len,
            decay_end: *len,
        };
        launches.push(sgd::launch(sgd, target, &buffers));
        Ok(launches)
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
        let mut bytes = vec![0; self.bytes(slot)];
        self.arena.read(place.offset, &mut bytes)?;
        Ok(decode(slot.elem, self.dtype, &bytes))
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

    fn synchronize(&self) -> Result<()> {
        self.backend.synchronize()
    }
}

/// `data` as the device stores it.
fn encode(elem: Elem, dtype: DType, data: &HostData) -> Vec<u8> {
    let tensor = HostTensor { shape: [0].into(), data: data.clone() };
    let halves = |bits: fn(f32) -> u16| -> Vec<u8> {
        tensor.to_real::<f32>().into_iter().flat_map(|v| bits(v).to_le_bytes()).collect()
    };
    match (elem, dtype) {
        (Elem::Real, DType::F16) => halves(|v| half::f16::from_f32(v).to_bits()),
        (Elem::Real, DType::BF16) => halves(|v| half::bf16::from_f32(v).to_bits()),
        (Elem::Real | Elem::Stat, _) => tensor.to_real::<f32>().into_iter().flat_map(f32::to_le_bytes).collect(),
        (Elem::Index, _) => tensor.to_real::<f64>().into_iter().flat_map(|v| (v as i32).to_le_bytes()).collect(),
        (Elem::Byte, _) => tensor.to_real::<f64>().into_iter().map(|v| v as u8).collect(),
    }
}

/// What the device stores as `bytes`.
fn decode(elem: Elem, dtype: DType, bytes: &[u8]) -> HostData {
    let halves = |value: fn(u16) -> f32| -> HostData {
        HostData::F32(bytes.chunks_exact(2).map(|b| value(u16::from_le_bytes([b[0], b[1]]))).collect())
    };
    let words = bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    match (elem, dtype) {
        (Elem::Real, DType::F16) => halves(|b| half::f16::from_bits(b).to_f32()),
        (Elem::Real, DType::BF16) => halves(|b| half::bf16::from_bits(b).to_f32()),
        (Elem::Real | Elem::Stat, _) => HostData::F32(words.map(f32::from_le_bytes).collect()),
        (Elem::Index, _) => HostData::I64(words.map(|b| i64::from(i32::from_le_bytes(b))).collect()),
        (Elem::Byte, _) => HostData::I64(bytes.iter().map(|&b| i64::from(b)).collect()),
    }
}
