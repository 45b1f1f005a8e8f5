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
use crate::ops::{HostIo, HostMut, Op, Write};
use crate::tensor::{DType, Elem, HostData, Real};
use crate::{Error, Result};

/// An op and the places of its operands.
#[derive(Debug)]
struct HostStep {
    op: Op,
    reads: Vec<Slot>,
    writes: Vec<Slot>,
    modes: Vec<Write>,
    scratch: Slot,
    gate: Option<Slot>,
}

impl HostStep {
    fn run<T: Real>(&self, arena: &mut Arena, dtype: DType) {
        if self.gate.is_some_and(|gate| arena.read::<T>(&gate).real()[0] == T::ZERO) {
            return;
        }
        let writes: Vec<Slot> = self.writes.iter().copied().chain([self.scratch]).collect();
        let (inputs, mut outputs) = arena.slices::<T>(&self.reads, &writes);
        let Some(mut scratch) = outputs.pop() else { unreachable!("scratch is always there") };
        let mut io = HostIo { inputs, outputs, writes: self.modes.clone(), scratch: scratch.real() };
        self.op.host::<T>().host(&mut io);
        if matches!(dtype, DType::F32 | DType::F64) {
            return;
        }
        for (slot, output) in self.writes.iter().zip(&mut io.outputs) {
            if slot.elem == Elem::Real {
                output.real().iter_mut().for_each(|v| *v = dtype.round(*v));
            }
        }
    }
}

/// A program on the CPU. It computes in `T` and rounds stored values to `dtype`.
#[derive(Debug)]
pub(super) struct HostProgram<T> {
    arena: Arena,
    dtype: DType,
    steps: Vec<HostStep>,
    prepare: usize,
    flat: Flat,
    gates: GateSlots,
    optimizer: Option<sgd::Sgd>,
    grad_scale: f64,
    loss: Option<Slot>,
    marker: std::marker::PhantomData<T>,
}

impl<T: Real> HostProgram<T> {
    pub fn new(fused: &Fused, plan: &Plan, dtype: DType, optimizer: Option<sgd::Sgd>) -> Result<Self> {
        let place = |&v: &super::ValueId| plan.slot(v);
        let empty = Slot { offset: 0, len: 0, elem: Elem::Real };
        let steps = fused.graph.nodes.iter().zip(&plan.scratch).map(|(node, scratch)| HostStep {
            op: node.op.clone(),
            reads: node.inputs.iter().map(place).collect(),
            writes: node.outputs.iter().map(place).collect(),
            modes: node.writes.clone(),
            gate: node.gate.as_ref().map(place),
            scratch: scratch.map_or(empty, |s| Slot { len: s.len / size_of::<T>(), elem: Elem::Real, ..s }),
        });
        let (arena, steps, marker) = (Arena::new(plan.arena_bytes)?, steps.collect(), std::marker::PhantomData);
        let (flat, gates, prepare) = (plan.flat.clone(), plan.gates.clone(), fused.prepare);
        let (grad_scale, loss) = (fused.graph.grad_scale, fused.graph.loss.as_ref().map(place));
        Ok(Self { arena, dtype, steps, prepare, flat, gates, optimizer, grad_scale, loss, marker })
    }

    /// Runs the steps on a thread of rayon's pool, where an op starts its tasks without waking another thread first.
    fn run_steps(&mut self, which: std::ops::Range<usize>) {
        threads::ensure();
        rayon::scope(|_| self.steps[which].iter().for_each(|step| step.run::<T>(&mut self.arena, self.dtype)));
    }

    /// Draws the gates unless the caller has set them, and clears the gradients of dropped branches.
    fn draw(&mut self) {
        let GateSlots { values, thresholds, control, pairs, .. } = &self.gates;
        if values.len == 0 {
            return;
        }
        let (reads, mut writes) = self.arena.slices::<T>(&[*thresholds], &[*values, *control]);
        let ([thresholds], [gates, control]) = (&reads[..], &mut writes[..]) else { unreachable!("as asked for") };
        let gates = gates.real();
        if let HostMut::Index([1, step, low, high]) = control {
            let seed = u64::from(*low as u32) | u64::from(*high as u32) << 32;
            let open = gate::draw(bytemuck::cast_slice(thresholds.index()), seed, *step as u32);
            gates.iter_mut().zip(open).for_each(|(gate, open)| *gate = if open { T::ONE } else { T::ZERO });
            *step = step.wrapping_add(1);
        }
        let closed: Vec<bool> = gates.iter().map(|&gate| gate == T::ZERO).collect();
        let HostMut::Real(grad) = self.arena.write::<T>(&self.flat.grad) else { unreachable!("gradients are numbers") };
        for (_, [start, end]) in closed.iter().zip(pairs).filter(|(&closed, _)| closed) {
            grad[start * gate::UNIT..end * gate::UNIT].fill(T::ZERO);
        }
    }

    /// Updates the dynamic loss scale, if there is one, and returns the optimizer's next step; `None` to skip it.
    fn decide(&mut self) -> Option<StepState> {
        let control = self.arena.read::<T>(&self.flat.control);
        let [lr, first] = [0, 1].map(|i| control.real()[i].to_f64());
        let step = StepState { lr, grad_scale: self.grad_scale, first: first != 0.0 };
        let finite = self.loss.is_none_or(|loss| self.arena.read::<T>(&loss).real()[0].to_f64().is_finite());
        if self.flat.loss_scale.len == 0 {
            return finite.then_some(step);
        }
        let (reads, mut writes) = self.arena.slices::<T>(&[self.flat.grad], &[self.flat.loss_scale]);
        let ([grad], [memory]) = (&reads[..], &mut writes[..]) else { unreachable!("as asked for") };
        let memory = memory.real();
        let state = State::from_memory(memory).decide(finite && loss_scale::is_finite(grad.real()));
        memory.iter_mut().zip(state.to_memory()).for_each(|(place, v)| *place = T::from_f64(v));
        (!state.skip).then_some(StepState { grad_scale: step.grad_scale * state.used, first: state.first, ..step })
    }

    fn optimize(&mut self) {
        let Some(optimizer) = self.optimizer else { return };
        let Flat { param, grad, velocity, copy, .. } = self.flat;
        let Some(state) = self.decide() else { return };
        let (reads, mut writes) = self.arena.slices::<T>(&[grad], &[param, velocity, copy]);
        let ([grad], [param, velocity, copy]) = (&reads[..], &mut writes[..]) else { unreachable!("as asked for") };
        let param = param.real();
        sgd::step(&optimizer, state, param.len(), param, grad.real(), velocity.real());
        for (rounded, &master) in copy.real().iter_mut().zip(param.iter()) {
            *rounded = self.dtype.round(master);
        }
    }
}

impl<T: Real> Executor for HostProgram<T> {
    fn write(&mut self, slot: &Slot, data: &HostData) -> Result<()> {
        let fits = data.len() == slot.len;
        Error::check(fits, "write", || format!("{} elements to a value of {}", data.len(), slot.len))?;
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
        host_data(self.arena.read::<T>(slot))
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

/// Writes the elements of `data` to `to`, converted by `element`.
fn copy<U>(data: &HostData, to: &mut [U], element: impl Fn(f64) -> U) {
    let mut places = to.iter_mut();
    data.each(|v| {
        if let Some(place) = places.next() {
            *place = element(v);
        }
    });
}
