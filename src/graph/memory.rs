//! The memory plan: a fixed place in one arena for every value of a fused graph.
//!
//! The arena starts with what lives on between runs (parameters, gradients, velocities, buffers); behind it, values
//! whose lifetimes do not meet share their bytes. A slice of another value's channels lies inside that one. In a
//! training program that kernels run every input has two places.

use super::fuse::Fused;
use super::pack::{pack, Lifetime};
use super::saved::saved_activation_bytes;
use super::storage::Storage;
use super::{Graph, Origin, ValueId};
use crate::control::{gate, loss_scale};
use crate::device::cpu::Slot;
use crate::tensor::{Elem, TensorType};
use crate::{Error, Result};

/// Every value and every flat tensor starts at a multiple of so many bytes.
pub(super) const ALIGN: usize = 256;

/// Every parameter starts at a multiple of so many elements of the flat tensors.
const PARAMETER_ALIGN: usize = 64;

/// What a program holds in memory.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of the arena: all memory that a program has on its device.
    pub arena_bytes: usize,
    /// Of these, the bytes that live on between runs: parameters, gradients, velocities, buffers.
    pub state_bytes: usize,
    /// Bytes of the activations, inputs among them, that are kept from before the loss for the backward pass; 0 where
    /// there is none.
    pub saved_activation_bytes: usize,
    pub(super) slots: Vec<Option<Slot>>,
    /// One slot of scratch memory for each node that needs any.
    pub(super) scratch: Vec<Option<Slot>>,
    pub(super) flat: Flat,
    pub(super) gates: GateSlots,
    /// The two places of each input, the first one also in `slots`, of the root where the input is a slice; empty where
    /// they have one each.
    pub(super) inputs: Vec<[Slot; 2]>,
}

/// What stochastic depth holds, for L blocks whose branches may be dropped; of zero length where there are none.
#[derive(Clone, Debug)]
pub(super) struct GateSlots {
    /// L gates: 1 is open, 0 closed.
    pub values: Slot,
    /// L inverses of them, where kernels run.
    pub closed: Slot,
    /// L words: the survival probabilities.
    pub thresholds: Slot,
    /// The words that the draw reads and updates.
    pub control: Slot,
    /// L pairs of words: where each branch's gradients begin and end in the flat tensor, in units of 4 elements.
    pub ranges: Slot,
    /// Those pairs.
    pub pairs: Vec<[usize; 2]>,
}

/// The flat tensors over all parameters. Slots of zero length are absent.
#[derive(Clone, Debug)]
pub(super) struct Flat {
    /// Elements, padding between parameters counted.
    pub len: usize,
    /// The first byte of each parameter in the tensors of masters, gradients and velocities.
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
    /// Bytes of an element of all these but the working copy and the flags.
    pub stat_bytes: usize,
}

/// A range of bytes that is in use while the nodes of its lifetime run.
struct Block {
    lifetime: Lifetime,
    target: Target,
}

#[derive(Clone, Copy)]
enum Target {
    Value(ValueId),
    Scratch(usize),
    /// The second place of that input.
    Input(usize),
}

/// Plans the arena. `scratch_bytes` holds what each node needs. Fails where no address space has room for it.
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
    let mut blocks = lifetimes(fused, storage, &slots, scratch_bytes);
    let mut second = if storage.kernels && optimizer { second_inputs(fused, &mut blocks) } else { Vec::new() };
    let lifetimes: Vec<Lifetime> = blocks.iter().map(|b| b.lifetime).collect();
    let mut arena_bytes = state_bytes;
    for (block, offset) in blocks.iter().zip(pack(&lifetimes)) {
        let offset = state_bytes + offset;
        arena_bytes = arena_bytes.max(offset + block.lifetime.bytes);
        match block.target {
            Target::Value(v) => {
                let ty = graph.ty(v);
                slots[v.index()] = Some(Slot { offset, len: ty.shape.len(), elem: ty.elem });
            }
            Target::Input(i) => second[i].offset = offset,
            Target::Scratch(i) => scratch[i] = Some(Slot { offset, len: scratch_bytes[i], elem: Elem::Byte }),
        }
    }
    let first = graph.inputs.iter().filter_map(|&(_, v)| slots[fused.root(v).index()]);
    let inputs = first.zip(second).map(|(first, second)| [first, second]).collect();
    place_views(fused, storage, &mut slots);
    let saved_activation_bytes = saved_activation_bytes(fused, storage);
    let arena_bytes = arena_bytes.max(ALIGN);
    Ok(Plan { arena_bytes, state_bytes, saved_activation_bytes, slots, scratch, flat, gates, inputs })
}

/// Fails where the bytes of all values and all scratch memory together, parameters counted once for each flat tensor
/// and inputs for each place, could not be added up: behind this no sum overflows.
fn check_size(graph: &Graph, storage: Storage, scratch_bytes: &[usize]) -> Result<()> {
    let aligned = |bytes: u128| bytes.next_multiple_of(ALIGN as u128);
    let value = |v: &super::Value| {
        let len = v.ty.shape.dims().iter().fold(1u128, |len, &d| len.saturating_mul(d as u128));
        let bytes = len.saturating_mul(storage.bytes(v.ty.elem) as u128).min(u128::from(u64::MAX));
        // In the flat tensors f32 beside 16 bits, gradients, velocities and padding; an input has two places.
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

/// Takes `len` elements at the end of the arena.
fn take(end: &mut usize, storage: Storage, len: usize, elem: Elem) -> Slot {
    let slot = Slot { offset: *end, len, elem };
    *end += (len * storage.bytes(elem)).next_multiple_of(ALIGN);
    slot
}

fn place_flat(graph: &Graph, storage: Storage, optimizer: bool, end: &mut usize) -> Flat {
    let len = graph.parameters.iter().map(|p| p.shape.len().next_multiple_of(PARAMETER_ALIGN)).sum();
    let differentiated = graph.parameters.iter().any(|p| p.grad.is_some());
    let mut flat = |on: bool, elem| take(end, storage, if on { len } else { 0 }, elem);
    let (param, grad) = (flat(true, Elem::Stat), flat(differentiated, Elem::Stat));
    let (velocity, copy) = (flat(optimizer, Elem::Stat), flat(storage.has_working_copy(), Elem::Real));
    let control = take(end, storage, 2, Elem::Stat);
    let scaled = graph.loss_scale.is_some();
    let loss_scale = take(end, storage, if scaled { loss_scale::STATE } else { 0 }, Elem::Stat);
    let flags = if scaled && storage.kernels { loss_scale::flags(len) } else { 0 };
    let flags = take(end, storage, flags, Elem::Index);
    let starts = graph.parameters.iter().scan(0, |at, p| {
        let start = *at * storage.stat;
        *at += p.shape.len().next_multiple_of(PARAMETER_ALIGN);
        Some(start)
    });
    let (starts, stat_bytes) = (starts.collect(), storage.stat);
    Flat { len, starts, param, grad, velocity, copy, control, loss_scale, flags, stat_bytes }
}

/// Places parameters, their gradients and buffers.
fn place_state(graph: &Graph, storage: Storage, flat: &Flat, slots: &mut [Option<Slot>], end: &mut usize) {
    let mut at = 0;
    for parameter in &graph.parameters {
        let ty = graph.ty(parameter.value);
        let whole = if ty.elem == Elem::Real && storage.has_working_copy() { flat.copy } else { flat.param };
        slots[parameter.value.index()] = Some(part(whole, at, ty, storage));
        if let Some(grad) = parameter.grad {
            slots[grad.index()] = Some(part(flat.grad, at, graph.ty(grad), storage));
        }
        at += parameter.shape.len().next_multiple_of(PARAMETER_ALIGN);
    }
    if let Some(scale) = graph.loss_scale {
        slots[scale.index()] = Some(part(flat.loss_scale, loss_scale::SCALE, graph.ty(scale), storage));
    }
    for buffer in &graph.buffers {
        let ty = graph.ty(buffer.value);
        slots[buffer.value.index()] = Some(take(end, storage, ty.shape.len(), ty.elem));
    }
}

/// Places the gates side by side, and what they are drawn from.
fn place_gates(graph: &Graph, storage: Storage, flat: &Flat, slots: &mut [Option<Slot>], end: &mut usize) -> GateSlots {
    let gates = graph.gates();
    let blocks = gates.len();
    let mut words = |per_block: usize, more: usize, elem| take(end, storage, blocks * per_block + more, elem);
    let values = words(1, 0, Elem::Stat);
    let closed = words(usize::from(storage.kernels), 0, Elem::Stat);
    let thresholds = words(1, 0, Elem::Index);
    let control = words(0, if blocks > 0 { gate::CONTROL_WORDS } else { 0 }, Elem::Index);
    let differentiated = flat.grad.len > 0;
    let ranges = words(if differentiated { 2 } else { 0 }, 0, Elem::Index);
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

/// The part of a flat tensor that holds `ty` from element `at` on.
fn part(whole: Slot, at: usize, ty: &TensorType, storage: Storage) -> Slot {
    Slot { offset: whole.offset + at * storage.bytes(whole.elem), len: ty.shape.len(), elem: ty.elem }
}

/// Places the slices of other values' channels, each at its first element.
fn place_views(fused: &Fused, storage: Storage, slots: &mut [Option<Slot>]) {
    for (i, view) in fused.views.iter().enumerate() {
        let Some((view, root)) = view.and_then(|view| Some((view, slots[view.root.index()]?))) else { continue };
        let ty = &fused.graph.values[i].ty;
        let offset = root.offset + view.channel * storage.bytes(ty.elem);
        slots[i] = Some(Slot { offset, len: ty.shape.len(), elem: ty.elem });
    }
}

/// The bytes and lifetime of every value without a slot and of all scratch memory.
fn lifetimes(fused: &Fused, storage: Storage, slots: &[Option<Slot>], scratch_bytes: &[usize]) -> Vec<Block> {
    let graph = &fused.graph;
    let end = graph.nodes.len();
    let mut span: Vec<Option<(usize, usize)>> = vec![None; graph.values.len()];
    let mut touch = |v: ValueId, i: usize| {
        let v = fused.root(v);
        let s = span[v.index()].get_or_insert((i, i));
        *s = (s.0.min(i), s.1.max(i));
    };
    for (i, node) in graph.nodes.iter().enumerate() {
        for &v in node.inputs.iter().chain(&node.outputs) {
            touch(v, i);
            let persists = i < fused.prepare || graph.values[v.index()].origin == Origin::Input;
            if persists {
                touch(v, 0);
                touch(v, end);
            }
        }
    }
    graph.outputs.iter().for_each(|&(_, v)| touch(v, end));
    graph.inputs.iter().for_each(|&(_, v)| (0..=end).step_by(end.max(1)).for_each(|i| touch(v, i)));
    let values = span.iter().enumerate().filter(|&(i, _)| slots[i].is_none()).filter_map(|(i, s)| {
        let (first, last) = (*s)?;
        let ty = &graph.values[i].ty;
        let bytes = (ty.shape.len() * storage.bytes(ty.elem)).next_multiple_of(ALIGN);
        Some(Block { lifetime: Lifetime { bytes, first, last }, target: Target::Value(ValueId(i as u32)) })
    });
    let scratch = scratch_bytes.iter().enumerate().filter(|&(_, &b)| b > 0).map(|(i, &b)| Block {
        lifetime: Lifetime { bytes: b.next_multiple_of(ALIGN), first: i, last: i },
        target: Target::Scratch(i),
    });
    values.chain(scratch).collect()
}

/// A second block for each input, in use as long as the first; returns their slots, yet without offsets.
fn second_inputs(fused: &Fused, blocks: &mut Vec<Block>) -> Vec<Slot> {
    let of = |v: ValueId| move |b: &&Block| matches!(b.target, Target::Value(w) if w == v);
    let mut slots = Vec::with_capacity(fused.graph.inputs.len());
    for (i, &(_, v)) in fused.graph.inputs.iter().enumerate() {
        let root = fused.root(v);
        let Some(&Block { lifetime, .. }) = blocks.iter().find(of(root)) else {
            unreachable!("every input has a block");
        };
        blocks.push(Block { lifetime, target: Target::Input(i) });
        let ty = fused.graph.ty(root);
        slots.push(Slot { offset: 0, len: ty.shape.len(), elem: ty.elem });
    }
    slots
}
