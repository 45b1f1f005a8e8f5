//! Programs: graphs compiled for a device.

use std::collections::HashSet;

use super::executor::{Executor, Step};
use super::fuse::{fuse, Fused, Place, Runner};
use super::host::HostProgram;
use super::interpreter::check_gate_count;
use super::kernels::KernelProgram;
use super::memory::{plan, GateSlots, Plan, Storage};
use super::state::{check_shape, counter, find, pad_channels, to_library, to_torch, torch_shape};
use super::{Graph, Mode, Parameter, StateReport, ValueId};
use crate::control::gate;
use crate::control::loss_scale::{LossScale, State};
use crate::control::sgd::Sgd;
use crate::device::cpu::Slot;
use crate::device::{Device, Target};
use crate::ops::Op;
use crate::tensor::{memory, DType, Elem, HostData, HostTensor, Real, StateDict};
use crate::{Error, Result};

/// A graph that is fused, has all its memory planned and is bound to a device. A run allocates no device memory.
///
/// All tensors of the interface are in torch's layouts: images NCHW, weights OIHW and `[out, in]`. The [module](super)
/// has an example, the [crate documentation](crate) one of training.
#[derive(Debug)]
pub struct Program {
    graph: Graph,
    /// The place of each value that is a slice, such as a padded input.
    views: Vec<Option<Place>>,
    pub(super) plan: Plan,
    pub(super) executor: Box<dyn Executor>,
    dtype: DType,
    optimizer: Option<Sgd>,
    /// The number of training runs: torch's `num_batches_tracked`.
    batches: i64,
    learning_rate: f64,
    first_step: bool,
    missing: Missing,
}

/// Calls that are still needed before device memory is meaningful.
#[derive(Debug)]
struct Missing {
    /// True before weights are loaded.
    weights: bool,
    /// Inputs that an op reads and that were never set.
    inputs: Vec<ValueId>,
    /// True before the first run.
    run: bool,
    /// True before a learning rate is set, for a program with an optimizer.
    learning_rate: bool,
}

impl Missing {
    /// Nothing is missing on a blueprint, whose memory itself fails on reads.
    fn new(graph: &Graph, views: &[Option<Place>], device: &Device, optimizer: bool) -> Self {
        if device.kind() == "blueprint" {
            return Self { weights: false, inputs: Vec::new(), run: false, learning_rate: false };
        }
        let root = |v: ValueId| views[v.index()].map_or(v, |view| view.root);
        let read: HashSet<ValueId> = graph.nodes.iter().flat_map(|n| &n.inputs).map(|&v| root(v)).collect();
        let inputs = graph.inputs.iter().map(|&(_, v)| v).filter(|&v| read.contains(&root(v))).collect();
        let weights = !(graph.parameters.is_empty() && graph.buffers.is_empty());
        Self { weights, inputs, run: true, learning_rate: optimizer }
    }

    fn weights(&self, what: &str) -> Result<()> {
        Error::check(!self.weights, what, || "the program has no weights: call load first".into())
    }

    fn results(&self, what: impl Into<String>) -> Result<()> {
        Error::check(!self.run, what, || "the program has not run: call run first".into())
    }
}

impl Program {
    /// Fuses `graph`, plans its memory and binds it to `device`; activations and weights are stored in `dtype`. With an
    /// optimizer every run ends with an optimizer step, which divides the gradients by the graph's loss scale.
    ///
    /// In f16 a program with an optimizer has a dynamic loss scale besides the graph's fixed one, see
    /// [`loss_scale`](crate::control::loss_scale). On the CPU f16 and bf16 are computed in f32 and rounded after each
    /// op. Fails if the device does not support `dtype` or lacks memory, if two inputs or two outputs have one name,
    /// and if an optimizer is given for a graph that has not been differentiated.
    pub fn compile(graph: &Graph, device: &Device, dtype: DType, optimizer: Option<Sgd>) -> Result<Self> {
        graph.check_names()?;
        let ready = optimizer.is_none() || graph.parameters.iter().all(|p| p.grad.is_some());
        Error::check(ready, "optimizer", || "the graph has not been differentiated".into())?;
        let runner = if matches!(device, Device::Cpu) { Runner::Host } else { Runner::Kernels };
        let scaled = (optimizer.is_some() && dtype == DType::F16).then(|| graph.with_loss_scale());
        let fused = fuse(scaled.as_ref().unwrap_or(graph), runner);
        fused.graph.check_gates()?;
        let (plan, executor) = bind(&fused, device, dtype, optimizer)?;
        let Fused { graph, views, .. } = fused;
        let missing = Missing::new(&graph, &views, device, optimizer.is_some());
        let (batches, learning_rate, first_step) = (0, 0.0, true);
        let mut program =
            Self { graph, views, plan, executor, dtype, optimizer, batches, learning_rate, first_step, missing };
        program.write_control()?;
        program.prepare_gates()?;
        if program.plan.flat.loss_scale.len > 0 {
            program.write_loss_scale(State::new(LossScale::default(), true))?;
        }
        Ok(program)
    }

    /// Sets all parameters and buffers, in torch's layout (OIHW, `[out, in]`); keeps the velocities. Fails as
    /// [`Graph::check_state`] does.
    pub fn load(&mut self, state: &StateDict) -> Result<StateReport> {
        let report = self.graph.check_state(state)?;
        // A load that fails midway leaves a mixture of old and new weights, which must not be run.
        self.missing.weights = true;
        for (i, p) in self.graph.parameters.iter().enumerate() {
            let data = to_library(&state[&p.name], self.graph.ty(p.value))?;
            self.executor.write(&self.part(&self.plan.flat.param, i), &data)?;
            self.executor.write(&self.slot(p.value)?, &data)?;
        }
        for buffer in &self.graph.buffers {
            self.executor.write(&self.slot(buffer.value)?, &state[&buffer.name].data)?;
        }
        self.batches = counter(state);
        self.executor.prepare()?;
        self.missing.weights = false;
        Ok(report)
    }

    /// The f32 masters, buffers and step counters by name, in torch's layout. Fails before the first
    /// [`load`](Self::load).
    pub fn state(&self) -> Result<StateDict> {
        self.missing.weights("state")?;
        let mut state = self.read_flat(&self.plan.flat.param)?;
        for buffer in &self.graph.buffers {
            let data = self.executor.read(&self.slot(buffer.value)?)?;
            state.insert(buffer.name.clone(), HostTensor { shape: buffer.shape.clone(), data });
        }
        state.extend(self.graph.counters().map(|name| (name, HostTensor::i64([], vec![self.batches]))));
        Ok(state)
    }

    /// The velocities by parameter name, in torch's layout. Empty without optimizer or momentum, or before a step.
    pub fn velocity(&self) -> Result<StateDict> {
        if !self.optimizer.is_some_and(|sgd| sgd.has_velocity()) || self.is_fresh()? {
            return Ok(StateDict::new());
        }
        self.read_flat(&self.plan.flat.velocity)
    }

    /// Sets the optimizer's velocities, as returned by [`velocity`](Self::velocity); an empty dict resets them. Fails
    /// without an optimizer, and if a velocity is missing, surplus or of another shape.
    pub fn load_velocity(&mut self, velocity: &StateDict) -> Result<()> {
        Error::check(self.optimizer.is_some(), "velocity", || "the program has no optimizer".into())?;
        // If this fails midway, the optimizer starts anew.
        self.write_first(true)?;
        if velocity.is_empty() {
            return Ok(());
        }
        let parameters = &self.graph.parameters;
        let names: HashSet<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
        if let Some(name) = velocity.keys().find(|&name| !names.contains(name.as_str())) {
            return Err(Error::invalid(format!("velocity `{name}`"), "not a parameter of this network"));
        }
        for (i, p) in parameters.iter().enumerate() {
            let what = format!("velocity `{}`", p.name);
            let tensor = velocity.get(&p.name).ok_or_else(|| Error::invalid(&what, "missing"))?;
            check_shape(what, p.shape.clone(), &tensor.shape)?;
            let data = to_library(tensor, self.graph.ty(p.value))?;
            self.executor.write(&self.part(&self.plan.flat.velocity, i), &data)?;
        }
        self.write_first(false)
    }

    /// Sets an input of the next runs from a tensor in torch's layout (NCHW). A training program on a device with
    /// kernels copies it while the current run is active. Fails if there is no such input or the shape differs.
    pub fn set_input(&mut self, name: &str, tensor: &HostTensor) -> Result<()> {
        let (value, data) = self.graph.check_input(name, tensor)?;
        self.feed(value, data)
    }

    /// Sets the input `labels`, one for each image. Fails if one is negative or not a class of the network.
    pub fn set_labels(&mut self, labels: &[i32]) -> Result<()> {
        let value = self.graph.check_labels(labels)?;
        let classes = self.classes();
        if let Some(i) = labels.iter().position(|&l| l < 0 || l as usize >= classes) {
            return Err(Error::invalid("labels", format!("{} of image {i}, expected 0..{classes}", labels[i])));
        }
        self.feed(value, HostData::I64(memory::collect("labels", labels.iter().map(|&l| i64::from(l)))?))
    }

    /// Sets an input, padded to the channels of its root.
    fn feed(&mut self, value: ValueId, mut data: HostData) -> Result<()> {
        let root = self.views[value.index()].map_or(value, |view| view.root);
        if root != value {
            let [from, to] = [value, root].map(|v| self.graph.ty(v).shape.dims().last().copied().unwrap_or(1));
            data = pad_channels(&data, from, to)?;
        }
        self.executor.feed(&self.slot(root)?, &data)?;
        self.missing.inputs.retain(|&v| v != value);
        Ok(())
    }

    /// Sets the learning rate of the next runs, which read it on the device. Fails if it is negative or not finite.
    pub fn set_learning_rate(&mut self, lr: f64) -> Result<()> {
        Error::check(lr >= 0.0 && lr.is_finite(), "learning rate", || {
            format!("{lr}, expected a number of at least 0")
        })?;
        self.missing.learning_rate = false;
        self.learning_rate = lr;
        self.write_control()
    }

    /// Makes every run draw the gates of stochastic depth from `seed`, the step and the block, as [`gate::draw`] does.
    /// The next run is step `step`; the device increments it. Does nothing without droppable blocks.
    pub fn draw_gates(&mut self, seed: u64, step: u32) -> Result<()> {
        self.write_words(self.plan.gates.control, &[1, step, seed as u32, (seed >> 32) as u32])
    }

    /// Sets the gates of all later runs: true, the default, keeps a block's branch. Fails on another number of gates.
    pub fn set_gates(&mut self, open: &[bool]) -> Result<()> {
        let GateSlots { values, closed, .. } = self.plan.gates;
        check_gate_count(open.len(), values.len)?;
        self.write_words(self.plan.gates.control, &[0; gate::CONTROL_WORDS])?;
        let gates = |of: bool| HostData::F64(open.iter().map(|&open| f64::from(u8::from(open == of))).collect());
        if closed.len > 0 {
            self.executor.write(&closed, &gates(false))?;
        }
        self.executor.write(&values, &gates(true))
    }

    /// The gates of the last run: true if the branch was kept. Empty at inference and without droppable blocks.
    pub fn gates(&self) -> Result<Vec<bool>> {
        let values = self.executor.read(&self.plan.gates.values)?;
        let values = HostTensor { shape: [self.plan.gates.values.len].into(), data: values };
        Ok(values.to_real::<f64>().into_iter().map(|gate| gate != 0.0).collect())
    }

    /// Runs forward, backward if the graph was differentiated, and the optimizer if there is one. A step whose loss is
    /// not finite changes running statistics, but neither parameters nor velocities.
    ///
    /// Fails before the first [`load`](Self::load) of a graph with tensors to load, if an input was never set, and with
    /// an optimizer if no learning rate was set.
    pub fn run(&mut self) -> Result<()> {
        self.missing.weights("run")?;
        if let Some((name, _)) = self.graph.inputs.iter().find(|(_, v)| self.missing.inputs.contains(v)) {
            let setter = if name == "labels" { "set_labels" } else { "set_input" };
            return Err(Error::invalid("run", format!("input `{name}` was never set: call {setter} first")));
        }
        Error::check(!self.missing.learning_rate, "run", || "no learning rate: call set_learning_rate first".into())?;
        self.executor.run()?;
        self.missing.run = false;
        self.batches += i64::from(self.graph.mode == Mode::Train);
        if self.optimizer.is_some() && self.first_step && self.is_loss_finite()? {
            self.first_step = false;
            self.write_control()?;
        }
        Ok(())
    }

    /// True if the last run's loss was finite; otherwise its step was skipped.
    fn is_loss_finite(&self) -> Result<bool> {
        let Some(loss) = self.graph.loss else { return Ok(true) };
        let loss = HostTensor { shape: [1].into(), data: self.executor.read(&self.slot(loss)?)? };
        Ok(loss.first_non_finite().is_none())
    }

    /// Waits for all runs; reports the first failure.
    pub fn synchronize(&self) -> Result<()> {
        self.executor.synchronize()
    }

    /// An output of the last run in NCHW: f64 in an f64 program, else f32. Fails without a run or such an output.
    pub fn output(&self, name: &str) -> Result<HostTensor> {
        let value = find(&self.graph.outputs, "output", name)?;
        self.missing.results(format!("output `{name}`"))?;
        let ty = self.graph.ty(value);
        to_torch(self.executor.read(&self.slot(value)?)?, ty, &torch_shape(ty))
    }

    /// The gradients of the last run by parameter name, in torch's layout (OIHW, `[out, in]`), divided by the loss
    /// scale. Empty if the graph has not been differentiated. Fails before the first run.
    pub fn gradients(&self) -> Result<StateDict> {
        self.missing.results("gradients")?;
        let used = self.loss_scale_state()?.map_or(1.0, |state| state.used);
        let scale = self.graph.grad_scale * used;
        let mut gradients = StateDict::new();
        for p in &self.graph.parameters {
            let Some(grad) = p.grad else { continue };
            let mut data = self.executor.read(&self.slot(grad)?)?;
            match &mut data {
                HostData::F32(v) => v.iter_mut().for_each(|g| *g = (f64::from(*g) / scale) as f32),
                HostData::F64(v) => v.iter_mut().for_each(|g| *g /= scale),
                HostData::I64(_) => {}
            }
            gradients.insert(p.name.clone(), to_torch(data, self.graph.ty(grad), &p.shape)?);
        }
        Ok(gradients)
    }

    /// The memory plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The names of the ops in execution order; ops that run once per load come first.
    pub fn ops(&self) -> Vec<&'static str> {
        self.graph.nodes.iter().map(|n| n.op.operator().name()).collect()
    }

    /// The kernel launches of a run, in order; none on the CPU.
    pub fn steps(&self) -> &[Step] {
        self.executor.steps()
    }

    /// The storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    fn write_control(&mut self) -> Result<()> {
        let control = HostData::F64(vec![self.learning_rate, f64::from(u8::from(self.first_step))]);
        self.executor.write(&self.plan.flat.control, &control)
    }

    /// True if the optimizer has taken no step. With a dynamic loss scale, which may skip steps, the device keeps this.
    fn is_fresh(&self) -> Result<bool> {
        Ok(self.loss_scale_state()?.map_or(self.first_step, |state| state.fresh))
    }

    fn write_first(&mut self, first: bool) -> Result<()> {
        self.first_step = first;
        self.write_control()?;
        self.write_fresh(first)
    }

    /// Opens all gates and writes the constants: survival probabilities and the ranges of the branches' gradients.
    fn prepare_gates(&mut self) -> Result<()> {
        let (gates, blocks) = (self.plan.gates.clone(), self.plan.gates.values.len);
        self.set_gates(&vec![true; blocks])?;
        if blocks > 0 {
            self.write_words(gates.thresholds, &gate::thresholds(&self.graph.survival())?)?;
        }
        let word = |&end: &usize| u32::try_from(end).map_err(|_| Error::unsupported("gates", "too many parameters"));
        let ranges = gates.pairs.as_flattened().iter().map(word).collect::<Result<Vec<u32>>>()?;
        self.write_words(gates.ranges, &ranges)
    }

    fn write_words(&mut self, slot: Slot, words: &[u32]) -> Result<()> {
        // The device's words are i32 with the bits of these.
        let words = words.iter().take(slot.len).map(|&word| i64::from(word as i32)).collect();
        self.executor.write(&slot, &HostData::I64(words))
    }

    fn classes(&self) -> usize {
        let classes = self.graph.nodes.iter().find_map(|node| match &node.op {
            Op::CrossEntropy(node) => Some(node.loss.spec().classes),
            _ => None,
        });
        classes.unwrap_or(0)
    }

    fn slot(&self, value: ValueId) -> Result<Slot> {
        let slot = self.plan.slots[value.index()];
        slot.ok_or_else(|| Error::invalid(format!("value {value:?}"), "no op of the program computes it"))
    }

    /// The place of parameter `i` in the flat tensor `flat` of masters, gradients or velocities.
    fn part(&self, flat: &Slot, i: usize) -> Slot {
        let len = self.graph.parameters[i].shape.len();
        Slot { offset: flat.offset + self.plan.flat.starts[i], len, elem: Elem::Stat }
    }

    /// The parts of `flat` by parameter name, in torch's layout.
    fn read_flat(&self, flat: &Slot) -> Result<StateDict> {
        let read = |(i, p): (usize, &Parameter)| {
            let data = self.executor.read(&self.part(flat, i))?;
            Ok((p.name.clone(), to_torch(data, self.graph.ty(p.value), &p.shape)?))
        };
        self.graph.parameters.iter().enumerate().map(read).collect()
    }
}

fn bind(fused: &Fused, device: &Device, dtype: DType, optimizer: Option<Sgd>) -> Result<(Plan, Box<dyn Executor>)> {
    match (device, dtype) {
        (Device::Cpu, DType::F64) => bind_host::<f64>(fused, dtype, optimizer),
        (Device::Cpu, _) => bind_host::<f32>(fused, dtype, optimizer),
        (Device::Kernels(b), DType::F64) => {
            Err(Error::unsupported(format!("f64 on {}", b.kind()), "it runs on the cpu device"))
        }
        (Device::Kernels(backend), _) => {
            let target = Target { arch: backend.arch(), dtype };
            let nodes = fused.graph.nodes.iter();
            let scratch: Vec<usize> = nodes.map(|n| n.op.operator().scratch_bytes(target)).collect();
            let storage = Storage { dtype, real: dtype.bytes(), stat: 4, kernels: true };
            let plan = plan(fused, storage, &scratch, optimizer.is_some())?;
            let executor = KernelProgram::new(backend, fused, &plan, target, optimizer)?;
            Ok((plan, Box::new(executor)))
        }
    }
}

fn bind_host<T: Real>(fused: &Fused, dtype: DType, optimizer: Option<Sgd>) -> Result<(Plan, Box<dyn Executor>)> {
    let scratch = fused.graph.nodes.iter().map(|n| n.op.host::<T>().host_scratch().saturating_mul(size_of::<T>()));
    let storage = Storage { dtype, real: size_of::<T>(), stat: size_of::<T>(), kernels: false };
    let plan = plan(fused, storage, &scratch.collect::<Vec<_>>(), optimizer.is_some())?;
    let executor = HostProgram::<T>::new(fused, &plan, dtype, optimizer)?;
    Ok((plan, Box::new(executor)))
}
