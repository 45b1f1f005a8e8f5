//! A planned program on the CPU.

use super::executor::Executor;
use super::fuse::Fused;
use super::interpreter::host_data;
use super::memory::{Flat, GateSlots, Plan};
use crate::control::gate;
use crate::control::loss_scale::{self, State};
use crate::control::sgd::{self, StepState};
use crate::device::cpu::{Arena, Slot};
use crate::device::threads;
use crate::ops::{HostIo, HostMut, HostRef, Op, Write};
use crate::tensor::{memory, DType, Elem, HostData, Real};
use crate::{Error, Result};

/// One op with its places in the arena.
#[derive(Debug)]
struct Step {
    op: Op,
    reads: Vec<Slot>,
    writes: Vec<Slot>,
    modes: Vec<Write>,
    scratch: Slot,
    gate: Option<Slot>,
}

/// The steps of a program on the CPU, in `T`, with what is stored rounded to `dtype`.
#[derive(Debug)]
pub(super) struct HostProgram<T> {
    arena: Arena,
    dtype: DType,
    steps: Vec<Step>,
    prepare: usize,
    flat: Flat,
    gates: GateSlots,
    optimizer: Option<sgd::Sgd>,
    grad_scale: f64,
    loss: Option<Slot>,
    marker: std::marker::PhantomData<T>,
}

/// Bytes of scratch memory that each node needs.
pub(super) fn scratch_bytes<T: Real>(fused: &Fused) -> Vec<usize> {
    fused.graph.nodes.iter().map(|n| n.op.host::<T>().host_scratch().saturating_mul(size_of::<T>())).collect()
}

impl<T: Real> HostProgram<T> {
    pub fn new(fused: &Fused, plan: &Plan, dtype: DType, optimizer: Option<sgd::Sgd>) -> Result<Self> {
        let place = |v: &super::ValueId| match plan.slots[v.index()] {
            Some(slot) => slot,
            None => unreachable!("every value that an op touches has a place"),
        };
        let steps = fused.graph.nodes.iter().zip(&plan.scratch).map(|(node, scratch)| Step {
            op: node.op.clone(),
            reads: node.inputs.iter().map(place).collect(),
            writes: node.outputs.iter().map(place).collect(),
            modes: node.writes.clone(),
            gate: node.gate.as_ref().map(place),
            scratch: scratch.map_or(Slot { offset: 0, len: 0, elem: Elem::Real }, |s| Slot {
                len: s.len / size_of::<T>(),
                elem: Elem::Real,
                ..s
            }),
        });
        Ok(Self {
            arena: Arena::new(plan.arena_bytes)?,
            dtype,
            steps: steps.collect(),
            prepare: fused.prepare,
            flat: plan.flat.clone(),
            gates: plan.gates.clone(),
            optimizer,
            grad_scale: fused.graph.grad_scale,
            loss: fused.graph.loss.as_ref().map(place),
            marker: std::marker::PhantomData,
        })
    }

    /// Runs the steps on a thread of rayon's pool: what an op starts there needs no other thread to wake first.
    fn run_steps(&mut self, which: std::ops::Range<usize>) {
        threads::ensure();
        rayon::scope(|_| self.run_steps_here(which));
    }

    fn run_steps_here(&mut self, which: std::ops::Range<usize>) {
        let rounds = !matches!(self.dtype, DType::F32 | DType::F64);
        for step in &self.steps[which] {
            if step.gate.is_some_and(|gate| self.arena.read::<T>(&gate).real()[0] == T::ZERO) {
                continue;
            }
            let mut writes = step.writes.clone();
            writes.push(step.scratch);
            let (inputs, mut outputs) = self.arena.slices::<T>(&step.reads, &writes);
            let Some(mut scratch) = outputs.pop() else { unreachable!("scratch is always there") };
            let mut io = HostIo { inputs, outputs, writes: step.modes.clone(), scratch: scratch.real() };
            step.op.host::<T>().host(&mut io);
            if rounds {
                for (slot, output) in step.writes.iter().zip(&mut io.outputs) {
                    if slot.elem == Elem::Real {
                        output.real().iter_mut().for_each(|v| *v = self.dtype.round(*v));
                    }
                }
            }
        }
    }

    /// Draws the gates where they are to be drawn, and clears the gradients of the branches that are dropped.
    fn draw(&mut self) {
        let GateSlots { values, thresholds, control, pairs, .. } = &self.gates;
        if values.len == 0 {
            return;
        }
        let (reads, mut writes) = self.arena.slices::<T>(&[*thresholds], &[*values, *control]);
        let [gates, control] = &mut writes[..] else { unreachable!("two tensors were asked for") };
        let gates = gates.real();
        if let HostMut::Index([1, step, low, high]) = control {
            let seed = u64::from(*low as u32) | u64::from(*high as u32) << 32;
            let open = gate::draw(bytemuck::cast_slice(reads[0].index()), seed, *step as u32);
            gates.iter_mut().zip(open).for_each(|(gate, open)| *gate = if open { T::ONE } else { T::ZERO });
            *step = step.wrapping_add(1);
        }
        let closed: Vec<bool> = gates.iter().map(|&gate| gate == T::ZERO).collect();
        let HostMut::Real(grad) = self.arena.write::<T>(&self.flat.grad) else { unreachable!("gradients are numbers") };
        for (_, [start, end]) in closed.iter().zip(pairs).filter(|(&closed, _)| closed) {
            grad[start * gate::UNIT..end * gate::UNIT].fill(T::ZERO);
        }
    }

    /// What the step is, after moving the loss scale where there is one; `None` where the step is skipped.
    fn decide(&mut self) -> Option<StepState> {
        let control = self.arena.read::<T>(&self.flat.control);
        let [lr, first] = [0, 1].map(|i| control.real()[i].to_f64());
        let step = StepState { lr, grad_scale: self.grad_scale, first: first != 0.0 };
        let finite = self.loss.is_none_or(|loss| self.arena.read::<T>(&loss).real()[0].to_f64().is_finite());
        if self.flat.loss_scale.len == 0 {
            return finite.then_some(step);
        }
        let (reads, mut writes) = self.arena.slices::<T>(&[self.flat.grad], &[self.flat.loss_scale]);
        let [memory] = &mut writes[..] else { unreachable!("one tensor was asked for") };
        let memory = memory.real();
        let state = State::from_memory(memory).decide(finite && loss_scale::is_finite(reads[0].real()));
        memory.iter_mut().zip(state.to_memory()).for_each(|(place, v)| *place = T::from_f64(v));
        (!state.skip).then_some(StepState { grad_scale: step.grad_scale * state.used, first: state.first, ..step })
    }

    fn optimize(&mut self) {
        let Some(optimizer) = self.optimizer else { return };
        let Flat { param, grad, velocity, copy, .. } = self.flat;
        let Some(state) = self.decide() else { return };
        let (reads, mut writes) = self.arena.slices::<T>(&[grad], &[param, velocity, copy]);
        let [param, velocity, copy] = &mut writes[..] else { unreachable!("three tensors were asked for") };
        let param = param.real();
        sgd::step(&optimizer, state, param.len(), param, reads[0].real(), velocity.real());
        for (rounded, &master) in copy.real().iter_mut().zip(param.iter()) {
            *rounded = self.dtype.round(master);
        }
    }
}

impl<T: Real> Executor for HostProgram<T> {
    fn write(&mut self, slot: &Slot, data: &HostData) -> Result<()> {
        if data.len() != slot.len {
            let problem = format!("{} elements to a value of {}", data.len(), slot.len);
            return Err(Error::invalid("write", problem));
        }
        let dtype = self.dtype;
        match self.arena.write::<T>(slot) {
            HostMut::Real(place) if slot.elem == Elem::Real => copy(data, place, |v| dtype.round(T::from_f64(v))),
            HostMut::Real(place) => copy(data, place, T::from_f64),
            HostMut::Index(place) => copy(data, place, |v| v as i32),
            HostMut::Byte(place) => copy(data, place, |v| v as u8),
        }
        Ok(())
    }

    fn read(&self, slot: &Slot) -> Result<HostData> {
        match self.arena.read::<T>(slot) {
            HostRef::Real(v) => host_data(v),
            HostRef::Index(v) => Ok(HostData::I64(memory::collect("labels", v.iter().map(|&v| i64::from(v)))?)),
            HostRef::Byte(v) => {
                Ok(HostData::I64(memory::collect("window positions", v.iter().map(|&v| i64::from(v)))?))
            }
        }
    }

    fn prepare(&mut self) -> Result<()> {
        self.run_steps(0..self.prepare);
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        self.draw();
        self.run_steps(self.prepare..self.steps.len());
        self.optimize();
        Ok(())
    }
}

/// Writes each element of `data` to its place.
fn copy<U>(data: &HostData, to: &mut [U], element: impl Fn(f64) -> U) {
    let mut places = to.iter_mut();
    data.each(|v| {
        if let Some(place) = places.next() {
            *place = element(v);
        }
    });
}
