//! Runs the launches of a case between guarded tensors.

use std::sync::Arc;

use residuum::device::{Backend, Memory, Recording, Target, View};
use residuum::ops::{Arg, Io, Operator, Write};
use residuum::tensor::{DType, Elem, TensorType};

use super::data::{encode, Data};
use super::Prepared;
use crate::sweep::Machine;

/// The layout of the tensors in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Nothing between pixels.
    Dense,
    /// NHWC tensors are slices, with other channels on both sides; if C allows, each pixel starts at 16 bytes.
    Aligned,
    /// Slices at odd addresses.
    Odd,
    /// NHWC tensors of fewer than four channels have four elements per pixel.
    Padded,
}

impl Layout {
    /// The elements of `bytes` bytes before and after the `c` channels of a pixel; `None` if it is not a slice.
    fn around(self, c: usize, bytes: usize) -> Option<(usize, usize)> {
        match self {
            Self::Dense => None,
            Self::Aligned => Some((16 / bytes, 16 / bytes)),
            Self::Odd => Some((3, 2)),
            Self::Padded => (c < 4).then(|| (0, 4 - c)),
        }
    }
}

/// One tensor on the device.
struct Bound {
    memory: Arc<dyn Memory>,
    arg: Arg,
    image: Vec<u8>,
    place: Place,
}

/// The place of a tensor's elements, in bytes.
#[derive(Clone, Copy)]
struct Place {
    pixels: usize,
    row: usize,
    pitch: usize,
    lead: usize,
}

impl Place {
    fn new(ty: &TensorType, bytes: usize, layout: Layout) -> Self {
        match *ty.shape.dims() {
            [n, h, w, c] if layout.around(c, bytes).is_some() => {
                let (lead, tail) = layout.around(c, bytes).unwrap_or_default();
                Self { pixels: n * h * w, row: c * bytes, pitch: (lead + c + tail) * bytes, lead: lead * bytes }
            }
            _ => Self { pixels: 1, row: ty.shape.len() * bytes, pitch: ty.shape.len() * bytes, lead: 0 },
        }
    }

    fn span(&self) -> usize {
        (self.pixels - 1) * self.pitch + self.row
    }

    fn rows(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        (0..self.pixels).map(|i| self.lead + i * self.pitch..self.lead + i * self.pitch + self.row)
    }
}

/// Poison: a NaN in every storage type.
const POISON: u8 = 0xFF;

fn bind(
    backend: &dyn Backend,
    ty: &TensorType,
    dtype: DType,
    content: Option<&Data>,
    write: Write,
    layout: Layout,
) -> residuum::Result<Bound> {
    let element = ty.elem.bytes(dtype);
    let place = Place::new(ty, element, layout);
    // A slice's memory ends with the wider tensor's last pixel, a dense tensor's with its last element.
    let bytes = if place.pixels == 1 && place.lead == 0 { place.row } else { place.pixels * place.pitch };
    let mut image = vec![POISON; bytes];
    if let Some(data) = content {
        let encoded = encode(data, ty.elem, dtype);
        for (row, src) in place.rows().zip(encoded.chunks_exact(place.row)) {
            image[row].copy_from_slice(src);
        }
    }
    let memory = backend.allocate(bytes)?;
    memory.write(0, &image)?;
    let view = View::new(memory.clone(), place.lead, place.span())?;
    let pixel_stride = match *ty.shape.dims() {
        [.., c] if ty.shape.dims().len() == 4 && layout.around(c, element).is_some() => place.pitch / element,
        _ => ty.shape.nhwc().map_or(ty.shape.len(), |[.., c]| c),
    };
    Ok(Bound { memory, arg: Arg { view, pixel_stride, write }, image, place })
}

/// Runs the launches of a case and returns the bytes of the outputs; panics if anything else was written.
pub(super) fn run(p: &Prepared<'_>, machine: &Machine, layout: Layout) -> residuum::Result<Vec<Vec<u8>>> {
    let backend = &*machine.backend;
    let op = p.op.operator();
    let target = Target { arch: backend.arch(), dtype: p.dtype };
    let inputs = op.inputs();
    let outputs = op.outputs();
    let inputs: Vec<Bound> = inputs
        .iter()
        .enumerate()
        .map(|(i, ty)| {
            let layout = if p.weights.contains(&i) { Layout::Dense } else { layout };
            bind(backend, ty, p.dtype, Some(&p.inputs[i]), Write::Overwrite, layout)
        })
        .collect::<residuum::Result<_>>()?;
    let outputs: Vec<Bound> = outputs
        .iter()
        .enumerate()
        .map(|(i, ty)| {
            // Weight gradients are statistics: always dense.
            let layout = if ty.elem == Elem::Stat { Layout::Dense } else { layout };
            bind(backend, ty, p.dtype, p.before[i].as_ref(), p.writes[i], layout)
        })
        .collect::<residuum::Result<_>>()?;
    let scratch_bytes = p.launcher.map_or_else(|| op.scratch_bytes(target), |l| (l.scratch_bytes)(target));
    let scratch = scratch(scratch_bytes, backend)?;
    let args = |b: &[Bound]| b.iter().map(|b| b.arg.clone()).collect::<Vec<_>>();
    let io = Io { inputs: &args(&inputs), outputs: &args(&outputs), scratch: scratch.as_ref() };
    let launches = p.launcher.map_or_else(|| op.launches(target, &io), |l| (l.launches)(target, &io))?;
    if machine.replayed {
        Recording::new(machine.backend.clone(), launches)?.replay()?;
    } else {
        launches.iter().try_for_each(|launch| backend.launch(launch))?;
    }
    backend.synchronize()?;
    for (i, input) in inputs.iter().enumerate() {
        let mut now = vec![0; input.image.len()];
        input.memory.read(0, &mut now)?;
        assert!(now == input.image, "input {i} of {} was written to", op.name());
    }
    outputs.iter().enumerate().map(|(i, output)| collect(output, i, op)).collect()
}

fn scratch(bytes: usize, backend: &dyn Backend) -> residuum::Result<Option<View>> {
    if bytes == 0 {
        return Ok(None);
    }
    let memory = backend.allocate(bytes)?;
    memory.write(0, &vec![POISON; bytes])?;
    Ok(Some(View::whole(memory)))
}

/// The bytes of an output; panics if the channels around a slice have changed.
fn collect(output: &Bound, i: usize, op: &dyn Operator) -> residuum::Result<Vec<u8>> {
    let mut now = vec![0; output.image.len()];
    output.memory.read(0, &mut now)?;
    let mut bytes = Vec::with_capacity(output.place.pixels * output.place.row);
    let mut end = 0;
    for row in output.place.rows() {
        assert!(
            now[end..row.start].iter().all(|&b| b == POISON),
            "output {i} of {}: other channels written",
            op.name()
        );
        end = row.end;
        bytes.extend_from_slice(&now[row]);
    }
    assert!(now[end..].iter().all(|&b| b == POISON), "output {i} of {}: other channels written", op.name());
    Ok(bytes)
}
