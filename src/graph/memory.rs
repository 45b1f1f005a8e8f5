//! The memory plan: a fixed place in one arena for every value of a fused graph.
//!
//! The arena starts with the state that persists between runs (parameters, gradients, velocities, buffers). In the rest
//! values with disjoint lifetimes share bytes. A slice lies inside its root. On devices with kernels every input of a
//! program with an optimizer has two places.

use std::collections::BTreeSet;

use super::fuse::Fused;
use super::pack::{pack, Lifetime};
use super::{Graph, Origin, ValueId};
use crate::control::{gate, loss_scale};
use crate::device::cpu::Slot;
use crate::tensor::{DType, Elem, TensorType};
use crate::{Error, Result};

/// The alignment of values and flat tensors, in bytes.
const ALIGN: usize = 256;

/// The alignment of parameters in the flat tensors, in elements.
const PARAMETER_ALIGN: usize = 64;

/// The memory of a program. The [module](super) has an example.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of the arena, which is all device memory of the program.
    pub arena_bytes: usize,
    /// Bytes of the arena that persist between runs: parameters, gradients, velocities, buffers.
    pub state_bytes: usize,
    /// Bytes of inputs and activations that the forward pass keeps for the backward pass; 0 if there is none.
    pub saved_activation_bytes: usize,
    pub(super) slots: Vec<Option<Slot>>,
    /// The scratch memory of each node that needs any.
    pub(super) scratch: Vec<Option<Slot>>,
    pub(super) flat: Flat,
    pub(super) gates: GateSlots,
    /// The two places of each input, or of its root; the first is also in `slots`. Empty if inputs have one place.
    pub(super) inputs: Vec<[Slot; 2]>,
}

impl Plan {
    /// The place of a value that an op reads or writes.
    pub(super) fn slot(&self, v: ValueId) -> Slot {
        self.slots[v.index()].unwrap_or_else(|| unreachable!("every operand has a place"))
    }
}

/// The memory of stochastic depth, for L droppable blocks. Slots of zero length are absent.
#[derive(Clone, Debug)]
pub(super) struct GateSlots {
    /// L gates: 1 is open, 0 closed.
    pub values: Slot,
    /// The L inverse gates, on devices with kernels.
    pub closed: Slot,
    /// L words: the survival probabilities.
    pub thresholds: Slot,
    /// The words that the draw reads and updates.
    pub control: Slot,
    /// `pairs` in device memory, as words.
    pub ranges: Slot,
    /// Where each branch's gradients begin and end in the flat tensor, in units of [`gate::UNIT`] elements.
    pub pairs: Vec<[usize; 2]>,
}

/// The flat tensors over all parameters. Slots of zero length are absent.
#[derive(Clone, Debug)]
pub(super) struct Flat {
    /// Elements, including the padding between parameters.
    pub len: usize,
    /// The first byte of each parameter in the flat tensors of masters, gradients and velocities.
    pub starts: Vec<usize>,
    pub param: Slot,
    pub grad: Slot,
    pub velocity: Slot,
    pub copy: Slot,
    /// `[learning rate, 1 at the first step else 0]`.
    pub control: Slot,
    /// The state of [`loss_scale`], and the flags of its launches.
    pub loss_scale: Slot,
    pub flags: Slot,
    /// Bytes per element, except in the working copy and the flags.
    pub stat_bytes: usize,
}

/// How a device stores elements: with kernels Real in `dtype` and Stat in f32, on the host both in f32 or both in f64.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage {
    pub dtype: DType,
    /// Bytes of [`Elem::Real`] and of [`Elem::Stat`].
    pub real: usize,
    pub stat: usize,
    /// True if the device runs kernels.
    pub kernels: bool,
}

impl Storage {
    pub fn bytes(&self, elem: Elem) -> usize {
        match elem {
            Elem::Real => self.real,
            Elem::Stat => self.stat,
            Elem::Index | Elem::Byte => elem.bytes(self.dtype),
        }
    }

    /// Bytes of all elements of `ty`.
    pub fn value_bytes(&self, ty: &TensorType) -> usize {
        ty.shape.len() * self.bytes(ty.elem)
    }

    /// True if weights have a working copy besides the masters.
    pub fn has_working_copy(&self) -> bool {
        matches!(self.dtype, DType::F16 | DType::BF16)
    }
}

/// A range of bytes that is in use while the nodes of its lifetime run.
struct Span {
    lifetime: Lifetime,
    owner: Owner,
}

#[derive(Clone, Copy)]
enum Owner {
    Value(ValueId),
    Scratch(usize),
    /// The second place of an input.
    Input(usize),
}

/// Plans the arena. `scratch_bytes` has an entry for each node. Fails if the arena exceeds the address space.
pub(super) fn plan(fused: &Fused, storage: Storage, scratch_bytes: &[usize], optimizer: bool) -> Result<Plan> {
    let graph = &fused.graph;
    check_size(graph, storage, scratch_bytes)?;
    let mut end = 0;
    let flat = place_flat(graph, storage, optimizer, &mut end);
    let mut slots = vec![None; graph.values.len()];
    place_state(graph, storage, &flat, &mut slots, &mut end);
    let gates = place_gates(graph, storage, &flat, &mut slots, &mut end);
    let state_bytes = end;
    let mut scratch = vec![None; graph.nodes.len()];
    let mut spans = lifetimes(fused, storage, &slots, scratch_bytes);
    let mut second = if storage.kernels && optimizer { second_inputs(fused, &mut spans) } else { Vec::new() };
    let lifetimes: Vec<Lifetime> = spans.iter().map(|s| s.lifetime).collect();
    let mut arena_bytes = state_bytes;
    for (span, offset) in spans.iter().zip(pack(&lifetimes)) {
        let offset = state_bytes + offset;
        arena_bytes = arena_bytes.max(offset + span.lifetime.bytes);
        match span.owner {
            Owner::Value(v) => slots[v.index()] = Some(slot(offset, graph.ty(v))),
            Owner::Input(i) => second[i].offset = offset,
            Owner::Scratch(i) => scratch[i] = Some(Slot { offset, len: scratch_bytes[i], elem: Elem::Byte }),
        }
    }
    let first = graph.inputs.iter().filter_map(|&(_, v)| slots[fused.root(v).index()]);
    let inputs = first.zip(second).map(|(first, second)| [first, second]).collect();
    place_views(fused, storage, &mut slots);
    let saved_activation_bytes = saved_activation_bytes(fused, storage);
    let arena_bytes = arena_bytes.max(ALIGN);
    Ok(Plan { arena_bytes, state_bytes, saved_activation_bytes, slots, scratch, flat, gates, inputs })
}

/// Bytes of the inputs and activations, written up to the loss, that an op after the loss reads.
fn saved_activation_bytes(fused: &Fused, storage: Storage) -> usize {
    let graph = &fused.graph;
    let Some(loss) = graph.loss_node() else { return 0 };
    let (forward, backward) = graph.nodes.split_at(loss + 1);
    let written: BTreeSet<ValueId> = forward.iter().flat_map(|n| &n.outputs).map(|&v| fused.root(v)).collect();
    let is_activation = |v: ValueId| match graph.values[v.index()].origin {
        Origin::Input => true,
        Origin::Node => written.contains(&v),
        Origin::Parameter(_) | Origin::Buffer(_) | Origin::Gate(_) | Origin::LossScale => false,
    };
    let read: BTreeSet<ValueId> = backward.iter().flat_map(|n| &n.inputs).map(|&v| fused.root(v)).collect();
    read.into_iter().filter(|&v| is_activation(v)).map(|v| storage.value_bytes(graph.ty(v))).sum()
}

/// Fails if all values and scratch memory together, parameters counted once per flat tensor and inputs once per place,
/// exceed the address space: later sums cannot overflow.
fn check_size(graph: &Graph, storage: Storage, scratch_bytes: &[usize]) -> Result<()> {
    let aligned = |bytes: u128| bytes.next_multiple_of(ALIGN as u128);
    let value = |v: &super::Value| {
        let len = v.ty.shape.dims().iter().fold(1u128, |len, &d| len.saturating_mul(d as u128));
        let bytes = len.saturating_mul(storage.bytes(v.ty.elem) as u128).min(u128::from(u64::MAX));
        // At most 14 bytes per parameter of 2 (master, gradient and velocity in f32, the copy), so 8 times its own
        // bytes; inputs have two places.
        aligned(bytes) * if v.origin == Origin::Node { 1 } else { 8 }
    };
    let values: u128 = graph.values.iter().map(value).sum();
    let total = values + scratch_bytes.iter().map(|&b| aligned(b as u128)).sum::<u128>();
    if total > isize::MAX as u128 {
        let bytes = usize::try_from(total).unwrap_or(usize::MAX);
        return Err(Error::out_of_memory("a program", bytes));
    }
    Ok(())
}

/// Appends `len` elements to the arena.
fn take(end: &mut usize, storage: Storage, len: usize, elem: Elem) -> Slot {
    let slot = Slot { offset: *end, len, elem };
    *end += (len * storage.bytes(elem)).next_multiple_of(ALIGN);
    slot
}

fn place_flat(graph: &Graph, storage: Storage, optimizer: bool, end: &mut usize) -> Flat {
    let (mut len, mut starts) = (0, Vec::with_capacity(graph.parameters.len()));
    for parameter in &graph.parameters {
        starts.push(len * storage.stat);
        len += parameter.shape.len().next_multiple_of(PARAMETER_ALIGN);
    }
    let differentiated = graph.parameters.iter().any(|p| p.grad.is_some());
    let mut flat = |on: bool, elem| take(end, storage, if on { len } else { 0 }, elem);
    let (param, grad) = (flat(true, Elem::Stat), flat(differentiated, Elem::Stat));
    let (velocity, copy) = (flat(optimizer, Elem::Stat), flat(storage.has_working_copy(), Elem::Real));
    let control = take(end, storage, 2, Elem::Stat);
    let scaled = graph.loss_scale.is_some();
    let loss_scale = take(end, storage, if scaled { loss_scale::STATE } else { 0 }, Elem::Stat);
    let flags = if scaled && storage.kernels { loss_scale::flags(len) } else { 0 };
    let flags = take(end, storage, flags, Elem::Index);
    Flat { len, starts, param, grad, velocity, copy, control, loss_scale, flags, stat_bytes: storage.stat }
}

/// Places parameters, their gradients and buffers.
fn place_state(graph: &Graph, storage: Storage, flat: &Flat, slots: &mut [Option<Slot>], end: &mut usize) {
    for (parameter, start) in graph.parameters.iter().zip(&flat.starts) {
        let (ty, at) = (graph.ty(parameter.value), start / storage.stat);
        let whole = if ty.elem == Elem::Real && storage.has_working_copy() { flat.copy } else { flat.param };
        slots[parameter.value.index()] = Some(part(whole, at, ty, storage));
        if let Some(grad) = parameter.grad {
            slots[grad.index()] = Some(part(flat.grad, at, graph.ty(grad), storage));
        }
    }
    if let Some(scale) = graph.loss_scale {
        slots[scale.index()] = Some(part(flat.loss_scale, loss_scale::SCALE, graph.ty(scale), storage));
    }
    for buffer in &graph.buffers {
        let ty = graph.ty(buffer.value);
        slots[buffer.value.index()] = Some(take(end, storage, ty.shape.len(), ty.elem));
    }
}

/// Places the gates side by side, and the inputs of their draw.
fn place_gates(graph: &Graph, storage: Storage, flat: &Flat, slots: &mut [Option<Slot>], end: &mut usize) -> GateSlots {
    let gates = graph.gates();
    let blocks = gates.len();
    let mut place = |len, elem| take(end, storage, len, elem);
    let values = place(blocks, Elem::Stat);
    let closed = place(if storage.kernels { blocks } else { 0 }, Elem::Stat);
    let thresholds = place(blocks, Elem::Index);
    let control = place(if blocks > 0 { gate::CONTROL_WORDS } else { 0 }, Elem::Index);
    let differentiated = flat.grad.len > 0;
    let ranges = place(if differentiated { 2 * blocks } else { 0 }, Elem::Index);
    for (i, gate) in gates.into_iter().enumerate() {
        slots[gate.index()] = Some(part(values, i, graph.ty(gate), storage));
        if let Some(inverse) = graph.blocks[i].closed {
            slots[inverse.index()] = Some(part(closed, i, graph.ty(inverse), storage));
        }
    }
    let at = |i: usize| flat.starts.get(i).map_or(flat.len, |start| start / storage.stat) / gate::UNIT;
    let pair = |own: std::ops::Range<usize>| [at(own.start), at(own.end)];
    let pairs = if differentiated { graph.branch_parameters().into_iter().map(pair).collect() } else { Vec::new() };
    GateSlots { values, closed, thresholds, control, ranges, pairs }
}

/// The slot of a tensor of type `ty` that begins at byte `offset`.
fn slot(offset: usize, ty: &TensorType) -> Slot {
    Slot { offset, len: ty.shape.len(), elem: ty.elem }
}

/// The slot of a tensor of type `ty` that begins at element `at` of `whole`.
fn part(whole: Slot, at: usize, ty: &TensorType, storage: Storage) -> Slot {
    slot(whole.offset + at * storage.bytes(whole.elem), ty)
}

/// Places the slices, each at its first element in its root.
fn place_views(fused: &Fused, storage: Storage, slots: &mut [Option<Slot>]) {
    for (i, view) in fused.views.iter().enumerate() {
        let Some((view, root)) = view.and_then(|view| Some((view, slots[view.root.index()]?))) else { continue };
        slots[i] = Some(part(root, view.channel, &fused.graph.values[i].ty, storage));
    }
}

/// The bytes and lifetime of every value without a slot and of each node's scratch memory.
fn lifetimes(fused: &Fused, storage: Storage, slots: &[Option<Slot>], scratch_bytes: &[usize]) -> Vec<Span> {
    let graph = &fused.graph;
    let end = graph.nodes.len();
    let mut touched: Vec<Option<(usize, usize)>> = vec![None; graph.values.len()];
    let mut touch = |v: ValueId, from: usize, to: usize| {
        let range = touched[fused.root(v).index()].get_or_insert((from, to));
        *range = (range.0.min(from), range.1.max(to));
    };
    for (i, node) in graph.nodes.iter().enumerate() {
        let (from, to) = if i < fused.prepare { (0, end) } else { (i, i) };
        node.inputs.iter().chain(&node.outputs).for_each(|&v| touch(v, from, to));
    }
    graph.outputs.iter().for_each(|&(_, v)| touch(v, end, end));
    graph.inputs.iter().for_each(|&(_, v)| touch(v, 0, end));
    let values = touched.iter().enumerate().filter(|&(i, _)| slots[i].is_none()).filter_map(|(i, range)| {
        let (first, last) = (*range)?;
        let bytes = storage.value_bytes(&graph.values[i].ty).next_multiple_of(ALIGN);
        Some(Span { lifetime: Lifetime { bytes, first, last }, owner: Owner::Value(ValueId(i as u32)) })
    });
    let scratch = scratch_bytes.iter().enumerate().filter(|&(_, &b)| b > 0).map(|(i, &b)| Span {
        lifetime: Lifetime { bytes: b.next_multiple_of(ALIGN), first: i, last: i },
        owner: Owner::Scratch(i),
    });
    values.chain(scratch).collect()
}

/// Appends a second span for each input, with the lifetime of the first. Returns their slots, yet without offsets.
fn second_inputs(fused: &Fused, spans: &mut Vec<Span>) -> Vec<Slot> {
    let second = |(i, &(_, v)): (usize, &(String, ValueId))| {
        let root = fused.root(v);
        let is_first = |s: &&Span| matches!(s.owner, Owner::Value(w) if w == root);
        let Some(&Span { lifetime, .. }) = spans.iter().find(is_first) else {
            unreachable!("every input has a span");
        };
        spans.push(Span { lifetime, owner: Owner::Input(i) });
        slot(0, fused.graph.ty(root))
    };
    fused.graph.inputs.iter().enumerate().map(second).collect()
}
