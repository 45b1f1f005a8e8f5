//! Runs one op on every device that has kernels and compares it with the reference in f64.
//!
//! A [`Case`] is an op, its inputs and how its outputs are judged. [`check`] runs it in every storage type, overwriting
//! and accumulating, dense and as a slice of wider tensors, on every machine: on the simulator under every schedule,
//! where all runs must give the same bits, and on a GPU where there is one.

use std::sync::Arc;

use residuum::device::{Backend, Launch, Memory, Recording, Target, View};
use residuum::ops::{Arg, HostIo, HostMut, HostRef, Io, Op, Operator, Write};
use residuum::tensor::{DType, Elem, TensorType};

pub use crate::random::Random;
pub use crate::sweep::{machines, Machine, Sweep};

/// The storage types that kernels are compiled for.
pub const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// One tensor on the host. Numbers are rounded to their storage type before anything reads them.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Activations, weights, statistics.
    Real(Vec<f64>),
    /// Labels.
    Index(Vec<i32>),
    /// Window positions.
    Byte(Vec<u8>),
}

impl Data {
    /// The numbers; panics where it holds none.
    pub fn real(&self) -> &[f64] {
        match self {
            Self::Real(v) => v,
            _ => panic!("a tensor of numbers is expected here"),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Real(v) => v.len(),
            Self::Index(v) => v.len(),
            Self::Byte(v) => v.len(),
        }
    }
}

/// How an output is judged.
#[derive(Clone, Debug)]
pub enum Compare {
    /// Equal to the reference rounded to the storage type.
    Exact,
    /// Before it is stored, at most this far from the reference, element by element. Rounding to the storage type is
    /// added by the harness. See `bounds.rs`.
    Within(Vec<f64>),
}

/// What a bound may depend on.
pub struct Judged<'a> {
    /// The storage type.
    pub dtype: DType,
    /// The inputs, as the kernels see them.
    pub inputs: &'a [Data],
    /// The outputs of the reference.
    pub outputs: &'a [Data],
}

/// From the rounded inputs and the reference's outputs to a [`Compare`] for each output.
pub type Judge = Box<dyn Fn(&Judged<'_>) -> Vec<Compare>>;

/// An op with its data.
pub struct Case {
    /// Printed on failure.
    pub name: String,
    /// The op.
    pub op: Op,
    /// As [`Operator::inputs`] orders them.
    pub inputs: Vec<Data>,
    /// What the outputs of [`Operator::updates`] hold at the start, in that order.
    pub updates: Vec<Data>,
    /// How the outputs are judged.
    pub judge: Judge,
    /// How the NHWC tensors lie in memory, one run for each.
    pub layouts: &'static [Layout],
    /// Whether what an output holds that is added to is more than a term of it: then the reference takes it in.
    pub takes_in: bool,
    /// Another way to run the op than the one that it chooses.
    pub launcher: Option<Launcher>,
}

/// A way to run an op.
pub struct Launcher {
    /// In place of [`Operator::scratch_bytes`].
    pub scratch_bytes: Box<dyn Fn(Target) -> usize>,
    /// In place of [`Operator::launches`].
    pub launches: Box<Launches>,
}

type Launches = dyn Fn(Target, &Io<'_>) -> residuum::Result<Vec<Launch>>;

impl Case {
    /// A case whose outputs must be exact.
    pub fn exact(name: impl Into<String>, op: Op, inputs: Vec<Data>) -> Self {
        let outputs = op.operator().outputs().len();
        let judge: Judge = Box::new(move |_| vec![Compare::Exact; outputs]);
        Self::new(name.into(), op, inputs, judge)
    }

    /// A case whose outputs are judged by `judge`.
    pub fn bounded(
        name: impl Into<String>,
        op: Op,
        inputs: Vec<Data>,
        judge: impl Fn(&Judged<'_>) -> Vec<Compare> + 'static,
    ) -> Self {
        Self::new(name.into(), op, inputs, Box::new(judge))
    }

    fn new(name: String, op: Op, inputs: Vec<Data>, judge: Judge) -> Self {
        let updates = Vec::new();
        Self { name, op, inputs, updates, judge, layouts: &[Layout::Dense], takes_in: false, launcher: None }
    }

    /// The old content of the outputs that the op updates.
    pub fn updating(mut self, updates: Vec<Data>) -> Self {
        self.updates = updates;
        self
    }

    /// The outputs that are added to depend on what is there in a way that only the reference knows.
    pub fn taking_in(mut self) -> Self {
        self.takes_in = true;
        self
    }

    /// Runs as `launcher` says.
    pub fn launched_by(mut self, launcher: Launcher) -> Self {
        self.launcher = Some(launcher);
        self
    }

    /// Also runs on slices of wider tensors.
    pub fn sliced(mut self) -> Self {
        self.layouts = &[Layout::Dense, Layout::Aligned, Layout::Odd];
        self
    }

    /// Runs where pixels of fewer than four channels are four elements apart, and nowhere else.
    pub fn padded(mut self) -> Self {
        self.layouts = &[Layout::Padded];
        self
    }
}

/// Runs `case` everywhere in every storage type; panics with the case's name at the first difference.
pub fn check(case: &Case, sweep: Sweep) {
    for dtype in DTYPES {
        check_dtype(case, dtype, sweep);
    }
}

/// Runs `case` everywhere in one storage type.
pub fn check_dtype(case: &Case, dtype: DType, sweep: Sweep) {
    let op = case.op.operator();
    for write in [Write::Overwrite, Write::Accumulate] {
        if write == Write::Accumulate && op.accumulates().is_empty() {
            continue;
        }
        let prepared = Prepared::new(case, dtype, write);
        let mut bits: Vec<(&str, String, Vec<Vec<u8>>)> = Vec::new();
        for machine in machines(sweep) {
            for &layout in case.layouts {
                let label = format!("{} {dtype} {write:?} {layout:?} on {}", case.name, machine.label);
                let got = run(&prepared, machine, layout).unwrap_or_else(|e| panic!("{label}: {e}"));
                prepared.judge(case, &got).unwrap_or_else(|e| panic!("{label}: {e}"));
                match bits.iter().find(|(group, ..)| *group == machine.group) {
                    Some((_, other, expected)) => assert!(got == *expected, "{label}: other bits than {other}"),
                    None => bits.push((machine.group, label, got)),
                }
            }
        }
    }
}

/// The negative control: with `inputs` in place of the case's, the kernels' result must be refused in every one of
/// `dtypes`. A bound that lets it pass is too wide to find such a fault.
pub fn check_refused(case: &Case, inputs: &[Data], dtypes: &[DType]) {
    for &dtype in dtypes {
        let mut other = Prepared::new(case, dtype, Write::Overwrite);
        let right = other.inputs.clone();
        other.inputs = round_all(inputs, &case.op.operator().inputs(), dtype);
        let Some(machine) = machines(Sweep::TensorCores).next() else { return };
        let label = format!("{} {dtype} on {}", case.name, machine.label);
        let got = run(&other, machine, Layout::Dense).unwrap_or_else(|e| panic!("{label}: {e}"));
        other.inputs = right;
        assert!(other.judge(case, &got).is_err(), "{label}: a wrong result passed");
    }
}

/// The outputs of `case` on one machine where its inputs are `inputs` and the outputs that it updates hold `updates`,
/// overwriting.
pub fn outputs(
    case: &Case,
    dtype: DType,
    machine: &Machine,
    layout: Layout,
    (inputs, updates): (&[Data], &[Data]),
) -> Vec<Data> {
    let op = case.op.operator();
    let types = op.outputs();
    let mut before: Vec<Option<Data>> = vec![None; types.len()];
    op.updates().iter().zip(updates).for_each(|(&i, old)| before[i] = Some(old.clone()));
    let writes = vec![Write::Overwrite; types.len()];
    let prepared = Prepared::with(case, dtype, inputs.to_vec(), before, writes);
    let label = format!("{} {dtype} {layout:?} on {}", case.name, machine.label);
    let bytes = run(&prepared, machine, layout).unwrap_or_else(|e| panic!("{label}: {e}"));
    bytes.iter().zip(&types).map(|(bytes, ty)| decode(bytes, ty.elem, dtype)).collect()
}

/// The outputs of the reference in f64, from `inputs` as they are.
pub fn reference(op: &Op, inputs: &[Data], updates: &[Data]) -> Vec<Data> {
    let mut before = vec![None; op.operator().outputs().len()];
    for (&i, old) in op.operator().updates().iter().zip(updates) {
        before[i] = Some(old.clone());
    }
    let writes = vec![Write::Overwrite; before.len()];
    reference_onto(op, inputs, &before, writes)
}

/// The outputs of the reference where they hold `before`, written as `writes` says.
pub fn reference_onto(op: &Op, inputs: &[Data], before: &[Option<Data>], writes: Vec<Write>) -> Vec<Data> {
    let types = op.operator().outputs();
    let old = |(ty, old): (&TensorType, &Option<Data>)| old.clone().unwrap_or_else(|| blank(ty, f64::NAN));
    let mut outputs: Vec<Data> = types.iter().zip(before).map(old).collect();
    let host = op.host::<f64>();
    let mut io = HostIo {
        inputs: inputs.iter().map(host_ref).collect(),
        outputs: outputs.iter_mut().map(host_mut).collect(),
        writes,
        scratch: &mut [],
    };
    host.reference(&mut io);
    outputs
}

/// The places among the inputs of the operands called `name`.
pub fn places(op: &dyn Operator, name: &str) -> Vec<usize> {
    let reads = op.operands().reads;
    (0..reads.len()).filter(|&i| reads[i].0 == name).collect()
}

fn blank(ty: &TensorType, fill: f64) -> Data {
    match ty.elem {
        Elem::Real | Elem::Stat => Data::Real(vec![fill; ty.shape.len()]),
        Elem::Index => Data::Index(vec![i32::MIN; ty.shape.len()]),
        Elem::Byte => Data::Byte(vec![0xFF; ty.shape.len()]),
    }
}

fn host_ref(data: &Data) -> HostRef<'_, f64> {
    match data {
        Data::Real(v) => HostRef::Real(v),
        Data::Index(v) => HostRef::Index(v),
        Data::Byte(v) => HostRef::Byte(v),
    }
}

fn host_mut(data: &mut Data) -> HostMut<'_, f64> {
    match data {
        Data::Real(v) => HostMut::Real(v),
        Data::Index(v) => HostMut::Index(v),
        Data::Byte(v) => HostMut::Byte(v),
    }
}

/// How the tensors lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Nothing between pixels.
    Dense,
    /// NHWC tensors have other channels before and after theirs; where C allows, every pixel starts at 16 bytes.
    Aligned,
    /// As before, at odd addresses.
    Odd,
    /// NHWC tensors of fewer than four channels have four elements a pixel.
    Padded,
}

impl Layout {
    /// How many elements of `bytes` bytes are before and after the `c` channels of a pixel; `None` where none are.
    fn around(self, c: usize, bytes: usize) -> Option<(usize, usize)> {
        match self {
            Self::Dense => None,
            Self::Aligned => Some((16 / bytes, 16 / bytes)),
            Self::Odd => Some((3, 2)),
            Self::Padded => (c < 4).then(|| (0, 4 - c)),
        }
    }
}

/// A case in one storage type: rounded inputs, what the outputs hold before, what they should hold after.
struct Prepared<'a> {
    op: &'a Op,
    takes_in: bool,
    launcher: Option<&'a Launcher>,
    weights: Vec<usize>,
    dtype: DType,
    inputs: Vec<Data>,
    before: Vec<Option<Data>>,
    after: Vec<Data>,
    writes: Vec<Write>,
}

impl<'a> Prepared<'a> {
    fn new(case: &'a Case, dtype: DType, write: Write) -> Self {
        let op = case.op.operator();
        let types = op.outputs();
        let inputs = round_all(&case.inputs, &op.inputs(), dtype);
        let update_types: Vec<_> = op.updates().iter().map(|&i| types[i].clone()).collect();
        let updates = round_all(&case.updates, &update_types, dtype);
        let mut before: Vec<Option<Data>> = vec![None; types.len()];
        let mut writes = vec![Write::Overwrite; types.len()];
        for (&i, old) in op.updates().iter().zip(updates) {
            before[i] = Some(old);
        }
        if write == Write::Accumulate {
            for i in op.accumulates() {
                let mut random = Random::new(&format!("{} before {i}", case.name));
                before[i] = Some(Data::Real(random.integers(types[i].shape.len(), -4, 4)));
                writes[i] = Write::Accumulate;
            }
        }
        let onto = if case.takes_in { writes.clone() } else { vec![Write::Overwrite; types.len()] };
        let after = reference_onto(&case.op, &inputs, &before, onto);
        Self { after, ..Self::with(case, dtype, inputs, before, writes) }
    }

    fn with(case: &'a Case, dtype: DType, inputs: Vec<Data>, before: Vec<Option<Data>>, writes: Vec<Write>) -> Self {
        let (launcher, weights, after) = (case.launcher.as_ref(), places(case.op.operator(), "w"), Vec::new());
        Self { op: &case.op, takes_in: case.takes_in, launcher, weights, dtype, inputs, before, after, writes }
    }

    /// What output `i` held when it is a term of the sum there.
    fn added(&self, i: usize) -> Option<&[f64]> {
        (!self.takes_in && self.writes[i] == Write::Accumulate)
            .then(|| self.before[i].as_ref().expect("preloaded").real())
    }

    fn judge(&self, case: &Case, got: &[Vec<u8>]) -> Result<(), String> {
        let judged = Judged { dtype: self.dtype, inputs: &self.inputs, outputs: &self.after };
        let rules = (case.judge)(&judged);
        let types = self.op.operator().outputs();
        assert_eq!(rules.len(), types.len(), "{}: rules for the outputs", case.name);
        for (i, rule) in rules.iter().enumerate() {
            let found = decode(&got[i], types[i].elem, self.dtype);
            let stored = stored_as(types[i].elem, self.dtype);
            compare(&found, &self.after[i], self.added(i), rule, stored).map_err(|e| format!("output {i} {e}"))?;
        }
        Ok(())
    }
}

fn compare(found: &Data, expected: &Data, added: Option<&[f64]>, rule: &Compare, stored: DType) -> Result<(), String> {
    let (Data::Real(found), Data::Real(expected)) = (found, expected) else {
        return if found == expected { Ok(()) } else { Err(format!("is {found:?}, expected {expected:?}")) };
    };
    assert_eq!(found.len(), expected.len(), "elements of an output");
    for (i, (&a, &b)) in found.iter().zip(expected).enumerate() {
        let sum = b + added.map_or(0.0, |v| v[i]);
        let slack = match rule {
            Compare::Exact => 0.0,
            Compare::Within(bound) => bound[i] + half_ulp(stored, sum.abs() + bound[i]) + added_slack(added, sum),
        };
        let want = if slack == 0.0 { stored.round(sum) } else { sum };
        let same = (a.is_nan() && want.is_nan()) || a == want || (a - want).abs() <= slack;
        if !same {
            return Err(format!("element {i} is {a:e}, expected {want:e} within {slack:e}"));
        }
    }
    Ok(())
}

/// The rounding of the f32 addition to what was there.
fn added_slack(added: Option<&[f64]>, sum: f64) -> f64 {
    added.map_or(0.0, |_| half_ulp(DType::F32, sum))
}

/// At most what rounding `v` to `dtype` moves it.
fn half_ulp(dtype: DType, v: f64) -> f64 {
    let smallest = match dtype {
        DType::F16 => 2f64.powi(-25),
        DType::F32 | DType::BF16 => 2f64.powi(-134),
        DType::F64 => 0.0,
    };
    dtype.epsilon() / 2.0 * v.abs() + smallest
}

fn stored_as(elem: Elem, dtype: DType) -> DType {
    match elem {
        Elem::Real => dtype,
        _ => DType::F32,
    }
}

pub fn round_all(data: &[Data], types: &[TensorType], dtype: DType) -> Vec<Data> {
    assert_eq!(data.len(), types.len(), "tensors of a case");
    data.iter()
        .zip(types)
        .map(|(d, ty)| {
            assert_eq!(d.len(), ty.shape.len(), "elements of a tensor of shape {}", ty.shape);
            match d {
                Data::Real(v) => {
                    let stored = stored_as(ty.elem, dtype);
                    Data::Real(v.iter().map(|&a| stored.round(a)).collect())
                }
                other => other.clone(),
            }
        })
        .collect()
}

/// One tensor on the device: rows of `width` elements of which those from `lead` on belong to it.
struct Bound {
    memory: Arc<dyn Memory>,
    arg: Arg,
    image: Vec<u8>,
    place: Place,
}

/// Where the elements of a tensor lie, in bytes.
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
    // A slice ends with the last pixel of the wider tensor; a dense tensor with its last element.
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
fn run(p: &Prepared<'_>, machine: &Machine, layout: Layout) -> residuum::Result<Vec<Vec<u8>>> {
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
            // Gradients of weights are statistics.
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

pub fn encode(data: &Data, elem: Elem, dtype: DType) -> Vec<u8> {
    match data {
        Data::Real(v) => match stored_as(elem, dtype) {
            DType::F32 => v.iter().flat_map(|&a| (a as f32).to_le_bytes()).collect(),
            DType::F16 => v.iter().flat_map(|&a| residuum::half::f16::from_f64(a).to_le_bytes()).collect(),
            DType::BF16 => v.iter().flat_map(|&a| residuum::half::bf16::from_f64(a).to_le_bytes()).collect(),
            DType::F64 => v.iter().flat_map(|&a| a.to_le_bytes()).collect(),
        },
        Data::Index(v) => v.iter().flat_map(|&a| a.to_le_bytes()).collect(),
        Data::Byte(v) => v.clone(),
    }
}

pub fn decode(bytes: &[u8], elem: Elem, dtype: DType) -> Data {
    let two = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    let four = |b: &[u8]| [b[0], b[1], b[2], b[3]];
    match (elem, stored_as(elem, dtype)) {
        (Elem::Index, _) => Data::Index(bytes.chunks_exact(4).map(|b| i32::from_le_bytes(four(b))).collect()),
        (Elem::Byte, _) => Data::Byte(bytes.to_vec()),
        (_, DType::F32) => Data::Real(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(four(b)).into()).collect()),
        (_, DType::F16) => {
            Data::Real(bytes.chunks_exact(2).map(|b| residuum::half::f16::from_bits(two(b)).to_f64()).collect())
        }
        (_, DType::BF16) => {
            Data::Real(bytes.chunks_exact(2).map(|b| residuum::half::bf16::from_bits(two(b)).to_f64()).collect())
        }
        (_, DType::F64) => panic!("kernels have no f64"),
    }
}
