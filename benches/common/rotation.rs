//! An op on a GPU, rotating over enough copies of its tensors that none is still cached when it is used again.

use std::sync::Arc;
use std::time::Duration;

use residuum::device::{Backend, Cost, Launch, Memory, Recording, Target, View};
use residuum::ops::{Arg, Io, Op, Operator, Write};
use residuum::tensor::{DType, Elem, TensorType};
use residuum::Result;

/// The size of all copies together, in caches.
const CACHES: usize = 2;
/// The most copies, for ops on a few kilobytes, which measure the launch rate.
const MOST_COPIES: usize = 512;
/// The period of a tensor's content, in bytes.
const PERIOD: usize = 8 << 20;

/// The content of the copies, made once: a tensor may have a gigabyte.
pub struct Content {
    real: Vec<u8>,
    stat: Vec<u8>,
    zeros: Vec<u8>,
    dtype: DType,
}

impl Content {
    /// Numbers between -1 and 1 in `dtype` (with zeros a GPU would clock higher), positive ones for statistics.
    pub fn new(dtype: DType) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let stat = (0..PERIOD / 4).flat_map(|_| (1.0 + 0.5 * next()).to_le_bytes()).collect();
        let real = match dtype {
            DType::F16 => (0..PERIOD / 2).flat_map(|_| residuum::half::f16::from_f32(next()).to_le_bytes()).collect(),
            DType::BF16 => (0..PERIOD / 2).flat_map(|_| residuum::half::bf16::from_f32(next()).to_le_bytes()).collect(),
            DType::F32 | DType::F64 => (0..PERIOD / 4).flat_map(|_| next().to_le_bytes()).collect(),
        };
        Self { real, stat, zeros: vec![0; PERIOD], dtype }
    }

    /// The storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Fills `memory`. Labels and, with `positions`, a pooling's positions are 0, which every op accepts; sign bits are
    /// random.
    fn fill(&self, memory: &dyn Memory, elem: Elem, positions: bool) -> Result<()> {
        let numbers = match elem {
            Elem::Stat => &self.stat,
            Elem::Byte if positions => &self.zeros,
            Elem::Index => &self.zeros,
            Elem::Real | Elem::Byte => &self.real,
        };
        (0..memory.bytes()).step_by(PERIOD).try_for_each(|offset| {
            let len = PERIOD.min(memory.bytes() - offset);
            memory.write(offset, &numbers[..len])
        })
    }
}

/// An op, recorded once per copy of its tensors.
pub struct Rotation {
    recording: Recording,
    copies: usize,
    cost: Cost,
    backend: Arc<dyn Backend>,
}

impl Rotation {
    /// Records `op` on enough copies for a cache of `cache_bytes`, and runs it once.
    pub fn new(backend: &Arc<dyn Backend>, op: &Op, content: &Content, cache_bytes: usize) -> Result<Self> {
        let op = op.operator();
        let target = Target { arch: backend.arch(), dtype: content.dtype };
        let types = [op.inputs(), op.outputs()].concat();
        let bytes: usize = types.iter().map(|ty| ty.bytes(content.dtype)).sum();
        let copies = (CACHES * cache_bytes).div_ceil(bytes.max(1)).clamp(1, MOST_COPIES);
        let mut launches = Vec::new();
        for _ in 0..copies {
            launches.extend(bind(backend, op, target, content)?);
        }
        let per_copy = launches.len() / copies;
        let cost = launches[..per_copy].iter().map(Launch::cost).sum();
        let recording = Recording::new(backend.clone(), launches)?;
        recording.replay()?;
        backend.synchronize()?;
        Ok(Self { recording, copies, cost, backend: backend.clone() })
    }

    /// Operations and bytes of the op's launches on one copy.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// The time of `count` ops by the device's clock, scaled from whole rounds over the copies.
    pub fn time(&self, count: u64) -> Result<Duration> {
        let rounds = count.div_ceil(self.copies as u64);
        let taken = self.backend.time(&mut || (0..rounds).try_for_each(|_| self.recording.replay()))?;
        Ok(taken.mul_f64(count as f64 / (rounds * self.copies as u64) as f64))
    }
}

/// The launches of `op` on newly allocated memory.
fn bind(backend: &Arc<dyn Backend>, op: &dyn Operator, target: Target, content: &Content) -> Result<Vec<Launch>> {
    let arg = |ty: &TensorType| -> Result<Arg> {
        let channels = ty.shape.dims().last().copied().unwrap_or(1);
        // Programs pad the pixels of images to four elements.
        let pixel_stride = if ty.shape.dims().len() == 4 && ty.elem == Elem::Real { channels.max(4) } else { channels };
        let memory = backend.allocate(ty.bytes(target.dtype) / channels * pixel_stride)?;
        content.fill(&*memory, ty.elem, op.name().contains("pool"))?;
        Ok(Arg { view: View::whole(memory), pixel_stride, write: Write::Overwrite })
    };
    let inputs = op.inputs().iter().map(arg).collect::<Result<Vec<_>>>()?;
    let outputs = op.outputs().iter().map(arg).collect::<Result<Vec<_>>>()?;
    let scratch = match op.scratch_bytes(target) {
        0 => None,
        bytes => Some(View::whole(backend.allocate(bytes)?)),
    };
    op.launches(target, &Io { inputs: &inputs, outputs: &outputs, scratch: scratch.as_ref() })
}
