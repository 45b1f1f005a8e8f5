//! The outputs that a NaN or an infinity in an input may change: every op, every kernel, every device.
//!
//! The rule is independent of how an op treats such numbers: a non-finite number may change the outputs that a finite
//! number in its place may change. A [`Row`] is an op with finite inputs. One element of one input after the other is
//! replaced by finite numbers, which shows the outputs that depend on it, and then by NaN and both infinities. Outputs
//! that do not depend on it must keep their bits. The others must agree with the reference: finite and near it, or not
//! finite. In the reference a NaN must reach every output that depends on it, unless the input only selects between
//! others, as the sign of a ReLU's output does for its gradient.

mod rows;

use std::collections::BTreeSet;

use residuum::device::{Arch, Device, Target};
use residuum::graph::{Builder, ConvOptions, Mode, Program};
use residuum::models::init::{initialise, Scheme};
use residuum::ops::conv2d::{Conv2d, Node, Plan};
use residuum::ops::{Op, Operator};
use residuum::tensor::{DType, HostTensor};

use self::rows::Row;
use crate::harness::{machines, outputs, reference, round_all, Data, Layout, Random, Sweep, DTYPES};
use crate::host;
use crate::machine;

/// The replacements of an element, in turn; with RESIDUUM_LONG=1 all of them for each element.
const NON_FINITE: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];

/// Finite replacements that show the dependents of an element of value `v`.
fn probes(v: f64) -> [f64; 4] {
    [v + 1.0, -v, 1e6, -1e6]
}

/// A row's tensors in one storage type: inputs, and the old content of the outputs that are updated.
#[derive(Clone)]
struct Tensors {
    inputs: Vec<Data>,
    updates: Vec<Data>,
}

impl Tensors {
    fn new(row: &Row, dtype: DType) -> Self {
        let op = row.case.op.operator();
        let types = op.outputs();
        let updated: Vec<_> = op.updates().iter().map(|&i| types[i].clone()).collect();
        Self {
            inputs: round_all(&row.case.inputs, &op.inputs(), dtype),
            updates: round_all(&row.case.updates, &updated, dtype),
        }
    }

    /// The numbers of tensor `i`: the inputs, then the updated outputs. `None` if it holds no numbers.
    fn numbers(&mut self, i: usize) -> Option<&mut Vec<f64>> {
        match self.inputs.iter_mut().chain(&mut self.updates).nth(i) {
            Some(Data::Real(v)) => Some(v),
            _ => None,
        }
    }

    fn with(&self, (tensor, element): (usize, usize), v: f64) -> Self {
        let mut changed = self.clone();
        changed.numbers(tensor).expect("numbers")[element] = v;
        changed
    }

    fn reference(&self, row: &Row) -> Vec<Data> {
        reference(&row.case.op, &self.inputs, &self.updates)
    }
}

fn same(a: &Data, b: &Data, i: usize) -> bool {
    match (a, b) {
        (Data::Real(a), Data::Real(b)) => a[i].to_bits() == b[i].to_bits(),
        (Data::Byte(a), Data::Byte(b)) => a[i] == b[i],
        (Data::Index(a), Data::Index(b)) => a[i] == b[i],
        _ => false,
    }
}

fn elements(data: &Data) -> usize {
    match data {
        Data::Real(v) => v.len(),
        Data::Index(v) => v.len(),
        Data::Byte(v) => v.len(),
    }
}

/// The effect of one non-finite number.
struct Expected {
    label: String,
    /// The element that was replaced.
    at: (usize, usize),
    /// The tensors with it.
    tensors: Tensors,
    /// For each output, the elements that depend on it.
    depends: Vec<Vec<bool>>,
    /// The reference's outputs, without and with it.
    clean: Vec<Data>,
    outputs: Vec<Data>,
}

impl Expected {
    /// `v` in the place of element `at` of `tensors`.
    fn new(row: &Row, tensors: &Tensors, at: (usize, usize), v: f64) -> Self {
        let label = format!("{v} in element {} of tensor {}", at.1, at.0);
        let clean = tensors.reference(row);
        let mut depends: Vec<Vec<bool>> = clean.iter().map(|o| vec![false; elements(o)]).collect();
        let old = tensors.clone().numbers(at.0).expect("numbers")[at.1];
        for probe in probes(old) {
            let changed = tensors.with(at, probe).reference(row);
            for (o, depends) in depends.iter_mut().enumerate() {
                (0..depends.len()).for_each(|i| depends[i] |= !same(&clean[o], &changed[o], i));
            }
        }
        let tensors = tensors.with(at, v);
        let outputs = tensors.reference(row);
        Self { label, at, tensors, depends, clean, outputs }
    }

    /// True if an output depends on the element.
    fn counts(&self) -> bool {
        self.depends.iter().flatten().any(|&d| d)
    }

    /// Calls `judge(o, i)` for element i of output o; returns the first complaint.
    fn each(&self, judge: impl Fn(usize, usize) -> Option<String>) -> Result<(), String> {
        for (o, depends) in self.depends.iter().enumerate() {
            for i in 0..depends.len() {
                if let Some(problem) = judge(o, i) {
                    return Err(format!("{}: element {i} of output {o} {problem}", self.label));
                }
            }
        }
        Ok(())
    }

    /// Judges the reference.
    fn check_reference(&self, row: &Row) -> Result<(), String> {
        let must_spread = self.label.starts_with("NaN") && !row.chooses(self.at.0);
        self.each(|o, i| {
            let (clean, found) = (shown(&self.clean[o], i), shown(&self.outputs[o], i));
            let kept = same(&self.outputs[o], &self.clean[o], i);
            if !self.depends[o][i] {
                let rectified = clean == "0" && row.rectified.contains(&o);
                let right = kept || rectified || row.meets_zeros(self.at, i) || row.zeros(self.at, o, i);
                return (!right).then(|| format!("changed from {clean} to {found}"));
            }
            let spread = !matches!(&self.outputs[o], Data::Real(v) if !v[i].is_nan());
            (must_spread && !spread && !row.counts.contains(&o)).then(|| format!("is {found}"))
        })
    }

    /// Judges `found`, given the same device's outputs `clean` for finite inputs.
    fn check(&self, row: &Row, clean: &[Data], found: &[Data]) -> Result<(), String> {
        self.each(|o, i| {
            let stays = !self.depends[o][i] && same(&self.outputs[o], &self.clean[o], i);
            let right = match (&found[o], &self.outputs[o]) {
                (output, _) if stays => {
                    let excused = || matches!(output, Data::Real(v) if v[i].is_nan()) && row.zeros(self.at, o, i);
                    same(output, &clean[o], i)
                        || excused()
                        || (row.chooses(self.at.0) && is_noise(output, &clean[o], i))
                }
                (Data::Real(v), Data::Real(want)) if want[i].is_finite() => {
                    (v[i] - want[i]).abs() <= 0.25 * (1.0 + want[i].abs())
                }
                // The sign of an infinity counts: a ReLU passes one and not the other.
                (Data::Real(v), Data::Real(want)) if want[i].is_infinite() && row.is_convolution() => {
                    v[i] == want[i] || (v[i].is_nan() && row.zeros(self.at, o, i))
                }
                (Data::Real(v), Data::Real(_)) if row.is_convolution() => v[i].is_nan(),
                (Data::Real(v), Data::Real(_)) => !v[i].is_finite(),
                (output, want) => same(output, want, i),
            };
            let expected = if stays { &clean[o] } else { &self.outputs[o] };
            (!right).then(|| format!("is {}, expected {}", shown(&found[o], i), shown(expected, i)))
        })
    }
}

/// True if both numbers are practically 0: a gradient whose terms cancel, masked or not.
fn is_noise(a: &Data, b: &Data, i: usize) -> bool {
    matches!((a, b), (Data::Real(a), Data::Real(b)) if a[i].abs().max(b[i].abs()) < 1e-6)
}

fn shown(data: &Data, i: usize) -> String {
    match data {
        Data::Real(v) => v[i].to_string(),
        Data::Index(v) => v[i].to_string(),
        Data::Byte(v) => format!("{:#010b}", v[i]),
    }
}

/// A row in one storage type: its finite tensors, and the effect of replacing one element of each.
struct Table {
    tensors: Tensors,
    all: Vec<Expected>,
}

/// The problems found, one per line.
type Problems = Vec<String>;

impl Table {
    fn new(row: &Row, dtype: DType, problems: &mut Problems) -> Self {
        const TRIES: usize = 40;
        let long = machine::asked("RESIDUUM_LONG");
        let tensors = Tensors::new(row, dtype);
        let mut random = Random::new(&format!("{} {dtype} non-finite", row.case.name));
        let (mut all, mut unused) = (Vec::new(), 0);
        for tensor in 0..tensors.inputs.len() + tensors.updates.len() {
            let Some(len) = tensors.clone().numbers(tensor).map(|v| v.len()) else { continue };
            if row.is_gate(tensor) {
                continue;
            }
            let first = random.below(NON_FINITE.len());
            for k in 0..if long { 3 } else { 1 } {
                let v = NON_FINITE[(first + k) % NON_FINITE.len()];
                // An element that an output depends on, unless the op does not use the tensor.
                let mut found = Expected::new(row, &tensors, (tensor, random.below(len)), v);
                for _ in 0..TRIES {
                    if found.counts() {
                        break;
                    }
                    found = Expected::new(row, &tensors, (tensor, random.below(len)), v);
                }
                unused += usize::from(!found.counts());
                problems.extend(found.check_reference(row).err().map(|e| format!("{}, reference: {e}", row.case.name)));
                all.push(found);
            }
        }
        assert!(unused < all.len(), "{}: nothing depends on any tensor", row.case.name);
        Self { tensors, all }
    }

    /// Judges the outputs that `run` gives.
    fn check(&self, row: &Row, device: &str, run: impl Fn(&Tensors) -> Vec<Data>, problems: &mut Problems) {
        let clean = run(&self.tensors);
        for expected in &self.all {
            let result = expected.check(row, &clean, &run(&expected.tensors));
            problems.extend(result.err().map(|e| format!("{} on {device}: {e}", row.case.name)));
        }
    }

    fn check_kernels(&self, row: &Row, dtype: DType, layout: Layout, problems: &mut Problems) {
        for machine in machines(Sweep::Quick) {
            let run = |t: &Tensors| outputs(&row.case, dtype, machine, layout, (&t.inputs, &t.updates));
            self.check(row, &format!("{} in {dtype}, {layout:?}", machine.label), run, problems);
        }
    }
}

/// Runs `row` on the CPU.
fn check_host<T: host::Number>(row: &Row, problems: &mut Problems) {
    let run = |t: &Tensors| host::outputs::<T>(&row.case.op, &t.inputs, &t.updates);
    Table::new(row, T::DTYPE, problems).check(row, &format!("the CPU in {}", T::DTYPE), run, problems);
}

fn check(rows: &[Row]) {
    let mut problems = Problems::new();
    for row in rows {
        for dtype in DTYPES {
            let table = Table::new(row, dtype, &mut problems);
            row.case.layouts.iter().for_each(|&layout| table.check_kernels(row, dtype, layout, &mut problems));
        }
        check_host::<f32>(row, &mut problems);
        check_host::<f64>(row, &mut problems);
    }
    assert_none(&problems);
}

fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn element_by_element() {
    check(&rows::elementwise());
}

#[test]
fn batch_norms_and_their_pieces() {
    check(&rows::norms());
}

#[test]
fn poolings() {
    check(&rows::poolings());
}

#[test]
fn losses() {
    check(&rows::losses());
}

/// Coverage: every kernel, split and whole, and every pass in every storage type by each kind of access.
struct Tested<P> {
    kernels: Vec<(&'static str, bool)>,
    passes: Vec<(DType, P, &'static str)>,
}

impl<P> Default for Tested<P> {
    fn default() -> Self {
        Self { kernels: Vec::new(), passes: Vec::new() }
    }
}

impl<P: PartialEq + Copy> Tested<P> {
    fn access(plan: &Plan) -> &'static str {
        ["_packed", "_stem", "_scalar"].into_iter().find(|end| plan.kernel().ends_with(end)).unwrap_or("")
    }

    fn is_new(&self, dtype: DType, pass: P, plan: &Plan) -> bool {
        !self.kernels.contains(&(plan.kernel(), plan.splits() > 1))
            || !self.passes.contains(&(dtype, pass, Self::access(plan)))
    }

    fn add(&mut self, dtype: DType, pass: P, plan: &Plan) {
        self.kernels.push((plan.kernel(), plan.splits() > 1));
        self.passes.push((dtype, pass, Self::access(plan)));
    }

    /// The names of the kernels.
    fn kernels(&self) -> Vec<&'static str> {
        let mut kernels: Vec<_> = self.kernels.iter().map(|(kernel, _)| *kernel).collect();
        kernels.sort_unstable();
        kernels.dedup();
        kernels
    }
}

/// Every kernel of every pass, with and without a split of the reduction, on the first shape that it fits; returns the
/// kernels.
fn check_convolutions(passes: impl Fn(Conv2d, bool) -> Vec<Node>) -> Vec<&'static str> {
    let (mut tested, mut problems) = (Tested::default(), Problems::new());
    for (conv, padded) in rows::convolutions() {
        let layout = if padded { Layout::Padded } else { Layout::Dense };
        for node in passes(conv, padded) {
            if node.pass.is_plain() {
                check_host::<f32>(&rows::convolution(node), &mut problems);
                check_host::<f64>(&rows::convolution(node), &mut problems);
            }
            for dtype in DTYPES {
                let plans = node.plans(Target { arch: Arch::Sm80, dtype });
                let mut table = None;
                for plan in plans {
                    if !tested.is_new(dtype, node.pass, &plan) {
                        continue;
                    }
                    let table = table.get_or_insert_with(|| Table::new(&rows::convolution(node), dtype, &mut problems));
                    table.check_kernels(&rows::planned(node, plan), dtype, layout, &mut problems);
                    tested.add(dtype, node.pass, &plan);
                }
            }
        }
    }
    assert_none(&problems);
    tested.kernels()
}

#[test]
fn convolutions() {
    let kernels = check_convolutions(|conv, _| rows::products(conv));
    assert_eq!(kernels.len(), 99, "every tile of fwd, bwd_x and bwd_w: {kernels:?}");
}

/// The forms that load or store more operands.
#[test]
fn fused_convolutions() {
    let kernels = check_convolutions(rows::fused);
    assert_eq!(kernels.len(), 141, "every tile of every pass: {kernels:?}");
}

/// The check finds an output that changes without depending on the element, and one that fails to change.
#[test]
fn a_leak_and_a_loss_are_found() {
    let row = &rows::elementwise()[0];
    let tensors = Tensors::new(row, DType::F64);
    let clean = tensors.reference(row);
    let expected = Expected::new(row, &tensors, (0, 1), f64::NAN);
    let mut leaked = expected.outputs.clone();
    let Data::Real(v) = &mut leaked[0] else { panic!("numbers") };
    v[0] = f64::NAN;
    assert!(expected.check(row, &clean, &leaked).is_err());
    assert!(expected.check(row, &clean, &clean).is_err());
    assert!(expected.check(row, &clean, &expected.outputs).is_ok());
}

#[test]
fn every_op_has_a_row() {
    let tables = [rows::elementwise(), rows::norms(), rows::poolings(), rows::losses()];
    let mut names: Vec<&str> = tables.iter().flatten().map(|row| row.case.op.operator().name()).collect();
    let mut modules: BTreeSet<&str> = tables.iter().flatten().map(|row| row.case.op.module()).collect();
    modules.insert("conv2d"); // its rows are products
    assert!(modules.into_iter().eq(Op::MODULES.iter().copied()), "an op has no row");
    for (conv, padded) in rows::convolutions() {
        names.extend(rows::products(conv).iter().map(|n| n.name()));
        names.extend(rows::fused(conv, padded).iter().map(|n| n.name()));
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names, rows::OPS);
}

/// Narrow groups between batch norms: an infinite shift of channel 0 spoils the four channels of its group and no bit
/// of the other channels, in every storage type and on every device.
#[test]
fn an_infinity_stays_in_its_group() {
    let mut b = Builder::new(Mode::Train);
    let x = b.input("input", [2, 5, 5, 8]);
    let x = b.conv2d("reduce", x, ConvOptions { k: 64, ..Default::default() }).unwrap();
    let x = b.batch_norm("bn1", x, 1e-5).unwrap();
    let x = b.relu(x).unwrap();
    let grouped = ConvOptions { k: 64, kernel: [3; 2], padding: [1; 2], groups: 16, ..Default::default() };
    let x = b.conv2d("grouped", x, grouped).unwrap();
    let x = b.batch_norm("bn2", x, 1e-5).unwrap();
    let x = b.relu(x).unwrap();
    let logits = b.linear("fc", x, 3).unwrap();
    b.loss(logits, Default::default()).unwrap();
    let mut graph = b.finish();
    graph.differentiate().unwrap();
    let clean = initialise(&graph, &Scheme::RESIDUAL, 1);
    let mut spoiled = clean.clone();
    spoiled.insert("bn1.bias".into(), HostTensor::f32([64], [vec![f32::INFINITY], vec![0.0; 63]].concat()));
    let pixels = Random::new("groups").normals(2 * 8 * 25, 0.0, 1.0).into_iter().map(|v| v as f32).collect();
    let images = HostTensor::f32([2, 8, 5, 5], pixels);
    for device in [Device::cpu()].into_iter().chain(crate::machine::devices("an infinity in a group")) {
        for dtype in DTYPES {
            let mut program = Program::compile(&graph, &device, dtype, None).unwrap();
            let [clean, spoiled] = [&clean, &spoiled].map(|state| {
                program.load(state).unwrap();
                program.set_input("input", &images).unwrap();
                program.set_labels(&[0, 2]).unwrap();
                program.run().unwrap();
                program.state().unwrap()
            });
            for buffer in ["bn2.running_mean", "bn2.running_var"] {
                let [clean, spoiled] = [&clean, &spoiled].map(|state| state[buffer].to_real::<f64>());
                for (i, (clean, spoiled)) in clean.iter().zip(&spoiled).enumerate() {
                    let right = if i < 4 { !spoiled.is_finite() } else { clean == spoiled };
                    assert!(right, "{buffer}[{i}] on {} in {dtype}: {spoiled}, clean {clean}", device.kind());
                }
            }
        }
    }
}
