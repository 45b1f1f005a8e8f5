//! Runs one op on every device that has kernels and compares it with the reference in f64.
//!
//! A [`Case`] is an op, its inputs and how its outputs are judged. [`check`] runs it in every storage type, overwriting
//! and accumulating, dense and as a slice of wider tensors, on every machine: on the simulator under every schedule,
//! where all runs must give the same bits, and on a GPU if there is one.

mod compare;
mod data;
mod device;

use residuum::device::{Launch, Target};
use residuum::ops::{conv2d, HostIo, Io, Op, Operator, Write};
use residuum::tensor::{DType, TensorType};

pub use self::compare::{Compare, Judged};
pub use self::data::{decode, encode, round_all, Data};
pub use self::device::Layout;
pub use crate::random::Random;
pub use crate::sweep::{machines, Machine, Sweep};

use self::compare::compare;
use self::data::{blank, host_mut, host_ref, stored_as};
use self::device::run;

/// The storage types that kernels are compiled for.
pub const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Gives a [`Compare`] for each output, from the rounded inputs and the reference's outputs.
pub type Judge = Box<dyn Fn(&Judged<'_>) -> Vec<Compare>>;

/// An op with its data.
pub struct Case {
    /// Printed on failure.
    pub name: String,
    /// The op.
    pub op: Op,
    /// In the order of [`Operator::inputs`].
    pub inputs: Vec<Data>,
    /// The old outputs, in the order of [`Operator::updates`].
    pub updates: Vec<Data>,
    /// How the outputs are judged.
    pub judge: Judge,
    /// The layouts of the NHWC tensors, one run for each.
    pub layouts: &'static [Layout],
    /// True if old outputs are not merely added; the reference then receives them.
    pub takes_in: bool,
    /// Replaces the op's own choice of launches.
    pub launcher: Option<Launcher>,
}

/// A way to run an op.
pub struct Launcher {
    /// Replaces [`Operator::scratch_bytes`].
    pub scratch_bytes: Box<dyn Fn(Target) -> usize>,
    /// Replaces [`Operator::launches`].
    pub launches: Box<Launches>,
}

impl Launcher {
    /// Runs a convolution by `plan`.
    pub fn planned(node: conv2d::Node, plan: conv2d::Plan) -> Self {
        Self {
            scratch_bytes: Box::new(move |target| node.scratch_bytes_with(target, plan)),
            launches: Box::new(move |target, io| node.launches_with(target, io, plan)),
        }
    }
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

    /// The old outputs that the op updates.
    pub fn updating(mut self, updates: Vec<Data>) -> Self {
        self.updates = updates;
        self
    }

    /// Gives old outputs to the reference, because they are not merely added.
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

    /// Runs only with pixels of fewer than four channels padded to four elements.
    pub fn padded(mut self) -> Self {
        self.layouts = &[Layout::Padded];
        self
    }
}

/// Runs `case` everywhere in every storage type; panics with the case's name at the first difference.
pub fn check(case: &Case, sweep: Sweep) {
    DTYPES.into_iter().for_each(|dtype| check_dtype(case, dtype, sweep));
}

/// Runs the case of each storage type everywhere.
pub fn check_each(case: impl Fn(DType) -> Case, sweep: Sweep) {
    DTYPES.into_iter().for_each(|dtype| check_dtype(&case(dtype), dtype, sweep));
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

/// The negative control: the kernels' result for `inputs` in place of the case's must be refused in each of `dtypes`. A
/// bound that accepts it is too wide to find such a fault.
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

/// The negative control in every type, with the numbers of input `at` changed by `change`.
pub fn check_refused_with(case: &Case, at: usize, change: impl FnOnce(&mut [f64])) {
    let mut wrong = case.inputs.clone();
    let Data::Real(numbers) = &mut wrong[at] else { panic!("input {at} has no numbers") };
    change(numbers);
    check_refused(case, &wrong, &DTYPES);
}

/// The outputs of `case` on one machine for `inputs` and old `updates`, overwriting.
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

/// The reference's outputs in f64, from unrounded `inputs`.
pub fn reference(op: &Op, inputs: &[Data], updates: &[Data]) -> Vec<Data> {
    let mut before = vec![None; op.operator().outputs().len()];
    for (&i, old) in op.operator().updates().iter().zip(updates) {
        before[i] = Some(old.clone());
    }
    let writes = vec![Write::Overwrite; before.len()];
    reference_onto(op, inputs, &before, writes)
}

/// The reference's outputs if they held `before` and are written by `writes`.
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

/// The places of the inputs called `name`.
fn places(op: &dyn Operator, name: &str) -> Vec<usize> {
    let reads = op.operands().reads;
    (0..reads.len()).filter(|&i| reads[i].0 == name).collect()
}

/// A case in one storage type: rounded inputs, old outputs, expected outputs.
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

    /// The old output `i`, if it is a term of the new one.
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
