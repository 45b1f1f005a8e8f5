//! The memory plan: a fixed place in one arena for every value of a fused graph.
//!
//! The arena starts with what lives on between runs (parameters, gradients, velocities, buffers); behind it, values
//! whose lifetimes do not meet share their bytes. In a training program that kernels run every input has two places.

use super::fuse::Fused;
use super::{Graph, Origin, ValueId};
use crate::device::cpu::Slot;
use crate::ops::loss_scale;
use crate::tensor::{DType, Elem, TensorType};

/// Every value and every flat tensor starts at a multiple of so many bytes.
pub(super) const ALIGN: usize = 256;

/// Every parameter starts at a multiple of so many elements of the flat tensors.
const PARAMETER_ALIGN: usize = 64;

/// How a device stores elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage {
    pub dtype: DType,
    /// Bytes of [`Elem::Real`] and of [`Elem::Stat`].
    pub real: usize,
    pub stat: usize,
    /// Whether kernels run on it, beside which inputs can be written.
    pub kernels: bool,
}

impl Storage {
    /// As the kernels store: Real in `dtype`, Stat in f32.
    pub fn kernels(dtype: DType) -> Self {
        Self { dtype, real: dtype.bytes(), stat: 4, kernels: true }
    }

    /// As the host stores: numbers of `bytes` bytes throughout, Real rounded to `dtype`.
    pub fn host(dtype: DType, bytes: usize) -> Self {
        Self { dtype, real: bytes, stat: bytes, kernels: false }
    }

    fn bytes(&self, elem: Elem) -> usize {
        match elem {
            Elem::Real => self.real,
            Elem::Stat => self.stat,
            Elem::Index | Elem::Byte => elem.bytes(self.dtype),
        }
    }

    /// Whether weights have a working copy beside the masters.
    pub fn has_shadow(&self) -> bool {
        matches!(self.dtype, DType::F16 | DType::BF16)
    }
}

/// What a program holds in memory.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of the arena: all memory that a program has on its device.
    pub arena_bytes: usize,
    /// Of these, the bytes that live on between runs: parameters, gradients, velocities, buffers.
    pub state_bytes: usize,
    pub(super) slots: Vec<Option<Slot>>,
    /// One slot of scratch memory for each node that needs any.
    pub(super) scratch: Vec<Option<Slot>>,
    pub(super) flat: Flat,
    /// The two places of each input, the first one also in `slots`; empty where they have one each.
    pub(super) inputs: Vec<[Slot; 2]>,
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
    pub shadow: Slot,
    /// `[learning rate, 1 at the first step else 0]`.
    pub control: Slot,
    /// The state of [`loss_scale`], and the flags of its launches.
    pub loss_scale: Slot,
    pub flags: Slot,
    /// Bytes of an element of all these but the shadow and the flags.
    pub stat_bytes: usize,
}

/// A range of bytes that is in use while nodes `first..=last` run.
struct Block {
    bytes: usize,
    first: usize,
    last: usize,
    target: Target,
}

#[derive(Clone, Copy)]
enum Target {
    Value(ValueId),
    Scratch(usize),
    /// The second place of that input.
    Input(usize),
}

/// Plans the arena. `scratch_bytes` holds what each node needs.
pub(super) fn plan(fused: &Fused, storage: Storage, scratch_bytes: &[usize], optimizer: bool) -> Plan {
    let graph = &fused.graph;
    let mut end = 0;
    let flat = place_flat(graph, storage, optimizer, &mut end);
    let mut slots = vec![None; graph.values.len()];
    place_state(graph, storage, &flat, &mut slots, &mut end);
    let state_bytes = end;
    let mut scratch = vec![None; graph.nodes.len()];
    let mut blocks = lifetimes(fused, storage, &slots, scratch_bytes);
    let mut second = if storage.kernels && optimizer { second_inputs(graph, &mut blocks) } else { Vec::new() };
    let offsets = pack(&blocks);
    let mut arena_bytes = state_bytes;
    for (block, offset) in blocks.iter().zip(offsets) {
        let offset = state_bytes + offset;
        arena_bytes = arena_bytes.max(offset + block.bytes);
        match block.target {
            Target::Value(v) => {
                let ty = graph.ty(v);
                slots[v.index()] = Some(Slot { offset, len: ty.shape.len(), elem: ty.elem });
            }
            Target::Input(i) => second[i].offset = offset,
            Target::Scratch(i) => scratch[i] = Some(Slot { offset, len: scratch_bytes[i], elem: Elem::Byte }),
        }
    }
    let first = graph.inputs.iter().filter_map(|&(_, v)| slots[v.index()]);
    let inputs = first.zip(second).map(|(first, second)| [first, second]).collect();
    Plan { arena_bytes: arena_bytes.max(ALIGN), state_bytes, slots, scratch, flat, inputs }
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
    let (velocity, shadow) = (flat(optimizer, Elem::Stat), flat(storage.has_shadow(), Elem::Real));
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
    Flat { len, starts, param, grad, velocity, shadow, control, loss_scale, flags, stat_bytes }
}

/// Places parameters, their gradients and buffers.
fn place_state(graph: &Graph, storage: Storage, flat: &Flat, slots: &mut [Option<Slot>], end: &mut usize) {
    let mut at = 0;
    for parameter in &graph.parameters {
        let ty = graph.ty(parameter.value);
        let whole = if ty.elem == Elem::Real && storage.has_shadow() { flat.shadow } else { flat.param };
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

/// The part of a flat tensor that holds `ty` from element `at` on.
fn part(whole: Slot, at: usize, ty: &TensorType, storage: Storage) -> Slot {
    Slot { offset: whole.offset + at * storage.bytes(whole.elem), len: ty.shape.len(), elem: ty.elem }
}

/// The bytes and lifetime of every value without a slot and of all scratch memory.
fn lifetimes(fused: &Fused, storage: Storage, slots: &[Option<Slot>], scratch_bytes: &[usize]) -> Vec<Block> {
    let graph = &fused.graph;
    let end = graph.nodes.len();
    let mut span: Vec<Option<(usize, usize)>> = vec![None; graph.values.len()];
    let mut touch = |v: ValueId, i: usize| {
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
        Some(Block { bytes, first, last, target: Target::Value(ValueId(i as u32)) })
    });
    let scratch = scratch_bytes.iter().enumerate().filter(|&(_, &b)| b > 0).map(|(i, &b)| Block {
        bytes: b.next_multiple_of(ALIGN),
        first: i,
        last: i,
        target: Target::Scratch(i),
    });
    values.chain(scratch).collect()
}

/// A second block for each input, in use as long as the first; returns their slots, yet without offsets.
fn second_inputs(graph: &Graph, blocks: &mut Vec<Block>) -> Vec<Slot> {
    let of = |v: ValueId| move |b: &&Block| matches!(b.target, Target::Value(w) if w == v);
    let mut slots = Vec::with_capacity(graph.inputs.len());
    for (i, &(_, v)) in graph.inputs.iter().enumerate() {
        let Some(&Block { bytes, first, last, .. }) = blocks.iter().find(of(v)) else {
            unreachable!("every input has a block");
        };
        blocks.push(Block { bytes, first, last, target: Target::Input(i) });
        let ty = graph.ty(v);
        slots.push(Slot { offset: 0, len: ty.shape.len(), elem: ty.elem });
    }
    slots
}

/// An offset for each block such that blocks in use at the same time do not overlap: largest first, each at the lowest
/// place that is free during its whole lifetime.
fn pack(blocks: &[Block]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), blocks[i].first, i));
    let mut offsets = vec![0; blocks.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(blocks.len());
    for i in order {
        let mut offset = 0;
        for &j in &placed {
            let meets = blocks[j].first <= blocks[i].last && blocks[i].first <= blocks[j].last;
            if !meets {
                continue;
            }
            if offsets[j] >= offset + blocks[i].bytes {
                break;
            }
            offset = offset.max(offsets[j] + blocks[j].bytes);
        }
        offsets[i] = offset;
        let at = placed.partition_point(|&j| offsets[j] <= offset);
        placed.insert(at, i);
    }
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_meet_do_not_overlap() {
        let spans = [(300, 0, 2), (100, 1, 1), (200, 2, 5), (300, 3, 4), (50, 0, 5), (100, 6, 6)];
        let blocks: Vec<Block> = spans
            .iter()
            .map(|&(bytes, first, last)| Block { bytes, first, last, target: Target::Scratch(0) })
            .collect();
        let offsets = pack(&blocks);
        for (i, a) in blocks.iter().enumerate() {
            for (j, b) in blocks.iter().enumerate().take(i) {
                let meet = a.first <= b.last && b.first <= a.last;
                let overlap = offsets[i] < offsets[j] + b.bytes && offsets[j] < offsets[i] + a.bytes;
                assert!(!(meet && overlap), "blocks {i} and {j} at {offsets:?}");
            }
        }
        assert_eq!(offsets.iter().zip(&blocks).map(|(o, b)| o + b.bytes).max(), Some(550), "as tight as can be");
    }
}
