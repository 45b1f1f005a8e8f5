//! A planned program on a device that runs kernels.

use std::sync::Arc;

use super::fuse::Fused;
use super::memory::{Flat, GateSlots, Plan};
use super::program::{Executor, Step};
use super::ValueId;
use crate::device::cpu::Slot;
use crate::device::{Backend, Launch, Memory, Recording, Target, View};
use crate::ops::{gate, sgd, Arg, Io, Write};
use crate::tensor::{DType, Elem, HostData, HostTensor};
use crate::{Error, Result};

/// The launches of a program, all bound to one arena on the device.
#[derive(Debug)]
pub(super) struct KernelProgram {
    backend: Arc<dyn Backend>,
    arena: Arc<dyn Memory>,
    dtype: DType,
    prepare: Recording,
    step: Recording,
    /// What `step` launches.
    steps: Vec<Step>,
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
        let binder = Binder { fused, plan, dtype, arena: &arena };
        let mut prepare = Vec::new();
        let mut launches = binder.gates()?;
        let mut steps: Vec<Step> = launches.iter().map(|launch| Step::new("gate", String::new(), launch)).collect();
        for (i, node) in fused.graph.nodes.iter().enumerate() {
            let bound = binder.bind(i, target)?;
            if i < fused.prepare {
                prepare.extend(bound);
                continue;
            }
            let op = node.op.operator();
            steps.extend(bound.iter().map(|launch| Step::new(op.name(), op.summary(), launch)));
            launches.extend(bound);
        }
        if let Some(optimizer) = optimizer {
            let launch = binder.optimizer(&optimizer, target)?;
            steps.push(Step::new("sgd_step", plan.flat.len.to_string(), &launch));
            launches.push(launch);
        }
        let record = |launches| Recording::new(backend.clone(), launches);
        let (prepare, step) = (record(prepare)?, record(launches)?);
        let program = Self { backend: backend.clone(), arena: arena.clone(), dtype, prepare, step, steps };
        program.clear(plan)?;
        Ok(program)
    }

    /// Sets everything that lives on between runs to zeros.
    fn clear(&self, plan: &Plan) -> Result<()> {
        self.arena.write(0, &vec![0; plan.state_bytes])
    }

    fn element_bytes(&self, slot: &Slot) -> usize {
        slot.elem.bytes(self.dtype)
    }
}

/// Binds ops to places in the arena.
struct Binder<'a> {
    fused: &'a Fused,
    plan: &'a Plan,
    dtype: DType,
    arena: &'a Arc<dyn Memory>,
}

impl Binder<'_> {
    fn bind(&self, i: usize, target: Target) -> Result<Vec<Launch>> {
        let node = &self.fused.graph.nodes[i];
        let inputs: Result<Vec<Arg>> = node.inputs.iter().map(|&v| self.arg(v, Write::Overwrite)).collect();
        let outputs: Result<Vec<Arg>> = node.outputs.iter().zip(&node.writes).map(|(&v, &w)| self.arg(v, w)).collect();
        let scratch = self.plan.scratch[i].map(|s| self.view(&s)).transpose()?;
        let io = Io { inputs: &inputs?, outputs: &outputs?, scratch: scratch.as_ref() };
        let launches = node.op.operator().launches(target, &io)?;
        let Some(gate) = node.gate else { return Ok(launches) };
        let gate = self.arg(gate, Write::Overwrite)?.view;
        Ok(launches.into_iter().map(|launch| launch.gated(gate.clone())).collect())
    }

    /// What begins a run of a graph with blocks whose branches may be dropped.
    fn gates(&self) -> Result<Vec<Launch>> {
        let GateSlots { values, thresholds, control, ranges, pairs } = &self.plan.gates;
        if values.len == 0 {
            return Ok(Vec::new());
        }
        let [control, thresholds, gates, ranges] = [control, thresholds, values, ranges].map(|slot| self.view(slot));
        let (ranges, grad) = (ranges?, self.view(&self.plan.flat.grad)?);
        Ok(gate::launches(&gate::Buffers {
            control: &control?,
            thresholds: &thresholds?,
            gates: &gates?,
            grad: (!pairs.is_empty()).then_some((&grad, &ranges)),
            blocks: values.len,
            longest: pairs.iter().map(|[start, end]| (end - start) * gate::UNIT).max().unwrap_or(0),
        }))
    }

    fn arg(&self, value: ValueId, write: Write) -> Result<Arg> {
        let Some(slot) = self.plan.slots[value.index()] else {
            unreachable!("every value that an op touches has a place")
        };
        let shape = &self.fused.graph.ty(value).shape;
        let channels = |v: ValueId| self.fused.graph.ty(v).shape.dims().last().copied().unwrap_or(1);
        let (len, pixel_stride) = match self.fused.views[value.index()] {
            Some(view) => {
                let stride = channels(view.root);
                ((shape.len() / channels(value) - 1) * stride + channels(value), stride)
            }
            None => (slot.len, channels(value)),
        };
        Ok(Arg { view: self.view(&Slot { len, ..slot })?, pixel_stride, write })
    }

    fn view(&self, slot: &Slot) -> Result<View> {
        View::new(self.arena.clone(), slot.offset, slot.len * slot.elem.bytes(self.dtype))
    }

    fn optimizer(&self, sgd: &sgd::Sgd, target: Target) -> Result<Launch> {
        let Flat { len, param, grad, velocity, shadow, control, .. } = &self.plan.flat;
        let shadow = (shadow.len > 0).then(|| self.view(shadow)).transpose()?;
        let buffers = sgd::Buffers {
            param: &self.view(param)?,
            grad: &self.view(grad)?,
            velocity: &self.view(velocity)?,
            shadow: shadow.as_ref(),
            control: &self.view(control)?,
            len: *len,
            decay_end: *len,
        };
        Ok(sgd::launch(sgd, target, &buffers))
    }
}

impl Executor for KernelProgram {
    fn write(&mut self, slot: &Slot, data: &HostData) -> Result<()> {
        let bytes = encode(slot.elem, self.dtype, data);
        if bytes.len() != slot.len * self.element_bytes(slot) {
            return Err(Error::invalid("write", format!("{} bytes to a value of {} elements", bytes.len(), slot.len)));
        }
        self.arena.write(slot.offset, &bytes)
    }

    fn read(&self, slot: &Slot) -> Result<HostData> {
        let mut bytes = vec![0; slot.len * self.element_bytes(slot)];
        self.arena.read(slot.offset, &mut bytes)?;
        Ok(decode(slot.elem, self.dtype, &bytes))
    }

    fn prepare(&mut self) -> Result<()> {
        self.prepare.replay()
    }

    fn run(&mut self) -> Result<()> {
        self.step.replay()
    }

    fn steps(&self) -> &[Step] {
        &self.steps
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
