//! Fused convolution: every pass, tile, dtype and combination of parts against the reference.

use std::collections::BTreeSet;

use residuum::device::{Arch, Device, Target, View};
use residuum::ops::conv2d::{Fwd, Node, Pass};
use residuum::ops::load::{Affine, Load, Operand};
use residuum::ops::store::{Epilogue, Moments};
use residuum::ops::{Arg, Call, Io, Op, Operator, Write};
use residuum::tensor::{DType, TensorType};

use super::conv2d::{named, terms, with_plan};
use crate::bounds;
use crate::cases::conv2d::{crossed, layers, odd, stems, widths, Row};
use crate::cases::conv2d_fused::{passes, BOTH, DATA, ENDS, FORWARD, WEIGHT};
use crate::harness::{check, check_dtype, check_each, check_refused, reference, reference_onto};
use crate::harness::{Case, Compare, Data, Judged, Layout, Random, Sweep, DTYPES};
use crate::named::{outputs, rules};

/// The role of an input.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    /// x, g, y, a residual: a number per element.
    Pixels,
    /// w.
    Weights,
    /// A number per channel that is multiplied by: a scale, a, b.
    Factor,
    /// A number per channel that is added.
    Term,
    /// A mean.
    Mean,
    /// Bits.
    Signs,
    /// The gate of a branch.
    Gate,
}

/// The roles of the inputs of `node`.
fn roles(node: &Node) -> Vec<Role> {
    let role = |(name, _)| match name {
        "x" | "dy" | "y" | "other" | "residual" => Role::Pixels,
        "w" => Role::Weights,
        "scale" | "a" | "b" => Role::Factor,
        "shift" | "c" => Role::Term,
        "mean" => Role::Mean,
        "bits" => Role::Signs,
        "gate" => Role::Gate,
        other => panic!("an operand called {other}"),
    };
    node.operands().reads.into_iter().map(role).collect()
}

/// True if it writes dx.
fn is_data(node: &Node) -> bool {
    matches!(node.pass, Pass::BwdX(_) | Pass::Bwd(_))
}

/// The number of products in an element of dw.
fn weight_terms(node: &Node) -> usize {
    node.conv.spec().n * node.conv.output().iter().product::<usize>()
}

/// Whole numbers whose sums, statistics and stored results are exact in any order. An operand is at most 4 and dense,
/// since added terms reach every element; so the weights are sparse.
fn integers(name: &str, node: &Node, dtype: DType) -> Vec<Data> {
    let mut random = Random::new(name);
    let stored_in_f32 = matches!(node.pass, Pass::BwdW(_));
    let digits = match dtype {
        DType::F32 => 20,
        _ if stored_in_f32 => 20,
        DType::F16 => 11,
        _ => 8,
    };
    let period = terms(node).div_ceil((1usize << digits) / 16);
    let draw = |(role, len): (Role, usize)| match role {
        Role::Pixels => Data::Real(random.integers(len, -1, 1)),
        Role::Weights => Data::Real(random.sparse(len, -1, 1, period)),
        Role::Factor => Data::Real((0..len).map(|_| [1.0, 2.0, -1.0][random.below(3)]).collect()),
        Role::Term | Role::Mean => Data::Real(random.integers(len, -1, 1)),
        Role::Signs => Data::Byte((0..len).map(|_| random.below(256) as u8).collect()),
        Role::Gate => Data::Real(vec![random.below(2) as f64]),
    };
    let drawn = roles(node).into_iter().zip(node.inputs().iter().map(|ty| ty.shape.len())).map(draw).collect();
    dropped(node, drawn)
}

/// Replaces the operands behind a closed gate with NaN.
fn dropped(node: &Node, mut inputs: Vec<Data>) -> Vec<Data> {
    if roles(node).last() == Some(&Role::Gate) && inputs.last() == Some(&Data::Real(vec![0.0])) {
        for i in node.behind_gate().inputs {
            inputs[i] = Data::Real(vec![f64::NAN; inputs[i].real().len()]);
        }
    }
    inputs
}

/// Normal numbers, scales around 1.
fn reals(name: &str, node: &Node) -> Vec<Data> {
    let mut random = Random::new(name);
    let draw = |(role, len): (Role, usize)| match role {
        Role::Factor => Data::Real(random.normals(len, 1.0, 0.3)),
        Role::Signs => Data::Byte((0..len).map(|_| random.below(256) as u8).collect()),
        Role::Gate => Data::Real(vec![random.below(2) as f64]),
        _ => Data::Real(random.normals(len, 0.1, 1.0)),
    };
    let drawn = roles(node).into_iter().zip(node.inputs().iter().map(|ty| ty.shape.len())).map(draw).collect();
    dropped(node, drawn)
}

fn op(node: Node) -> Op {
    Op::Conv2d(node)
}

/// The results if nothing cancels and every ReLU is open: errors are relative to them.
fn magnitudes(node: &Node, inputs: &[Data]) -> Vec<Data> {
    let absolute = |v: &[f64], sign: f64| Data::Real(v.iter().map(|v| sign * v.abs()).collect());
    let all: Vec<Data> = roles(node)
        .iter()
        .zip(inputs)
        .map(|(role, data)| match (role, data) {
            (Role::Signs, Data::Byte(bits)) => Data::Byte(vec![0xFF; bits.len()]),
            (Role::Mean, data) => absolute(data.real(), -1.0),
            (_, data) => absolute(data.real(), 1.0),
        })
        .collect();
    match node.pass {
        // The harness adds whole numbers of at most 4.
        Pass::BwdX(_) | Pass::Bwd(_) => {
            let mut before = vec![None; node.outputs().len()];
            let mut writes = vec![Write::Overwrite; before.len()];
            for i in node.accumulates() {
                before[i] = Some(Data::Real(vec![4.0; node.outputs()[i].shape.len()]));
                writes[i] = Write::Accumulate;
            }
            reference_onto(&op(*node), &all, &before, writes)
        }
        _ => reference(&op(*node), &all, &[]),
    }
}

/// Bounds of the moments of a y whose element i is off by `off(i)` before it is stored.
fn moments_within(judged: &Judged<'_>, form: Fwd, off: &dyn Fn(usize) -> f64) -> Moments<Compare> {
    let Fwd { y, moments: Some(moments), .. } = form.with(judged.inputs, judged.outputs) else { panic!("no moments") };
    let (y, of) = (y.real(), moments.map(|_, data| data.real()));
    let channels = of.mean.len();
    let (mut means, mut vars) = (Vec::new(), Vec::new());
    for (c, (&mean, &var)) in of.mean.iter().zip(of.var).enumerate() {
        let places = || (c..y.len()).step_by(channels);
        let spread = places().fold(0.0, |a: f64, i| a.max((y[i] - mean).abs()));
        let channel = bounds::Channel { rows: y.len() / channels, mean, spread, var };
        // Each value moves by its error and by its rounding; a mean by no more than the largest of these.
        let moved = |i: usize| off(i) + bounds::stored(judged.dtype, y[i].abs() + off(i));
        let moved = places().fold(0.0, |a: f64, i| a.max(moved(i)));
        means.push(moved + channel.mean_bound());
        vars.push(2.0 * moved * (var.sqrt() + moved) + 2.0 * moved * moved + channel.var_bound());
    }
    Moments { mean: Compare::Within(means), var: Compare::Within(vars) }
}

fn exact(name: &str, what: &str, node: Node, dtype: DType) -> Case {
    let inputs = integers(name, &node, dtype);
    let judge = move |judged: &Judged<'_>| {
        let mut call = node.pass.map(|_, ()| (), |_, ()| Compare::Exact);
        // A mean of whole numbers is whole only by chance.
        if let (Pass::Fwd(form), Pass::Fwd(Fwd { moments: Some(moments), .. })) = (node.pass, &mut call) {
            *moments = moments_within(judged, form, &|_| 0.0);
        }
        rules(call)
    };
    case(Case::bounded(format!("{name}, {what}, {}", node.name()), op(node), inputs, judge), &node)
}

fn case(case: Case, node: &Node) -> Case {
    if is_data(node) {
        case.taking_in()
    } else {
        case
    }
}

fn bounded(name: &str, what: &str, node: Node, inputs: Vec<Data>) -> Case {
    let judge = move |judged: &Judged<'_>| {
        let dtype = judged.dtype;
        let sum = if dtype == DType::F32 { bounds::sum } else { bounds::tensor_core_sum };
        // Computed operands are rounded before they are multiplied.
        let relative =
            |terms: usize, computed: f64| sum(terms + 8, 1.0) + computed * bounds::stored(dtype, 1.0) + 4.0 * bounds::U;
        let (first, weights) = (relative(terms(&node), 1.0), relative(weight_terms(&node), 2.0));
        let each = first + bounds::stored(dtype, 1.0);
        let rows = node.conv.x().shape.len() / node.conv.spec().c;
        let sizes = magnitudes(&node, judged.inputs);
        let sizes = node.pass.with(judged.inputs, &sizes);
        let mut call = sizes.map(
            |_, _| (),
            |name, sizes| {
                let within = |bound: &dyn Fn(f64) -> f64| {
                    Compare::Within(sizes.real().iter().map(|&magnitude| bound(magnitude)).collect())
                };
                match name {
                    "y" | "dx" => within(&|m| first * m),
                    "dw" => within(&|m| weights * m),
                    "z" => within(&|m| 4.0 * bounds::U * m),
                    "signs" => Compare::Exact,
                    // The moments, replaced below, and the sums of a masked dx.
                    _ => within(&|m| each * m + bounds::channel_sum(rows, 4, m)),
                }
            },
        );
        if let (Pass::Fwd(form), Pass::Fwd(Fwd { y, .. }), Pass::Fwd(Fwd { moments: Some(moments), .. })) =
            (node.pass, sizes, &mut call)
        {
            *moments = moments_within(judged, form, &|i| first * y.real()[i]);
        }
        rules(call)
    };
    case(Case::bounded(format!("{name}, {what}, {}", node.name()), op(node), inputs, judge), &node)
}

/// Every row with `each` passes of every table, in turn, in every dtype, dense and as slices.
fn check_rows(rows: &[Row], each: usize) {
    for (i, row) in rows.iter().enumerate() {
        for table in [&FORWARD[..], &DATA, &WEIGHT, &BOTH] {
            for j in 0..each {
                let (what, pass) = table[(i * each + j) % table.len()];
                let node = Node { conv: row.conv(), pass };
                check_each(|dtype| exact(&row.name, what, node, dtype).sliced(), Sweep::Quick);
            }
        }
    }
}

#[test]
fn layers_are_exact() {
    check_rows(&layers(), 3);
}

#[test]
fn odd_sizes_are_exact() {
    check_rows(&odd(), 3);
}

#[test]
fn groups_strides_dilations_and_paddings_are_exact() {
    check_rows(&crossed(), 1);
}

#[test]
fn every_part_is_exact_with_every_other() {
    for row in ["cifar 16 to 32", "primes", "residues without taps"].map(named) {
        for (what, pass) in passes() {
            let node = Node { conv: row.conv(), pass };
            check_each(|dtype| exact(&row.name, what, node, dtype).sliced(), Sweep::Quick);
        }
    }
}

#[test]
fn widths_of_groups_are_exact() {
    check_rows(&widths(false), 1);
}

/// The pads between pixels hold NaN, which must not reach a result.
#[test]
fn stems_are_exact() {
    for row in stems() {
        for (what, pass) in [FORWARD[1], WEIGHT[2], FORWARD[0], WEIGHT[0]] {
            let node = Node { conv: row.conv(), pass };
            check_each(|dtype| exact(&row.name, what, node, dtype).padded(), Sweep::Quick);
        }
    }
}

#[test]
fn every_tile_is_exact_with_and_without_splits() {
    let rows = [
        "cifar 16 to 32",
        "one channel too many",
        "tile and one",
        "resnext 8 a group, stride 2",
        "residues of one tile and two",
        "resnext 4 a group",
        "imagenet stem",
    ]
    .map(named);
    let passes = [
        FORWARD[0], FORWARD[1], FORWARD[5], DATA[0], DATA[2], DATA[7], WEIGHT[0], WEIGHT[2], BOTH[0], BOTH[1], BOTH[5],
    ];
    let mut tested = BTreeSet::new();
    for (row, (what, pass)) in rows.iter().flat_map(|row| passes.map(|pass| (row, pass))) {
        let node = Node { conv: row.conv(), pass };
        for dtype in DTYPES {
            for plan in node.plans(Target { arch: Arch::Sm80, dtype }) {
                let case = with_plan(exact(&row.name, what, node, dtype), node, plan);
                let case = if plan.kernel().ends_with("_stem") { case.padded() } else { case };
                check_dtype(&case, dtype, Sweep::Quick);
                tested.insert(plan.kernel());
            }
        }
    }
    assert_eq!(tested.len(), 128, "every tile of every pass: {tested:?}");
}

/// Every tile with and without splits: the first split stores the block end, once for all column tiles.
#[test]
fn ends_of_blocks_are_exact() {
    let rows = ["bottleneck reduce", "tail of the reduction", "tile and one", "classifier"].map(named);
    let mut tested = BTreeSet::new();
    for (row, (what, pass)) in rows.iter().flat_map(|row| ENDS.map(|pass| (row, pass))) {
        let node = Node { conv: row.conv(), pass };
        for dtype in DTYPES {
            for plan in node.plans(Target { arch: Arch::Sm80, dtype }) {
                let case = with_plan(exact(&row.name, what, node, dtype), node, plan);
                check_dtype(&Case { layouts: &[Layout::Dense, Layout::Aligned], ..case }, dtype, Sweep::Quick);
                tested.insert(plan.kernel());
            }
        }
    }
    assert_eq!(tested.len(), 13, "every tile: {tested:?}");
}

#[test]
fn ends_of_blocks_round_as_they_are_stored() {
    for row in ["bottleneck reduce", "tile and one"].map(named) {
        for (what, pass) in [ENDS[0], ENDS[1]] {
            let node = Node { conv: row.conv(), pass };
            check(&bounded(&row.name, what, node, reals(&row.name, &node)), Sweep::TensorCores);
        }
    }
}

/// A block end that kernels cannot load in pieces of 16 bytes is refused, not computed in another way.
#[test]
fn an_end_of_a_block_says_what_it_cannot_take() {
    let Device::Kernels(backend) = Device::blueprint(Arch::Sm80) else { panic!("a blueprint is of kernels") };
    let target = Target { arch: Arch::Sm80, dtype: DType::BF16 };
    let launch = |row: &str, stride: usize| {
        let node = Node { conv: named(row).conv(), pass: ENDS[0].1 };
        let bind = |ty: &TensorType| {
            let [n, h, w, c] = ty.shape.nhwc().unwrap_or([1, 1, 1, ty.shape.len()]);
            let view = View::whole(backend.allocate(n * h * w * (c + stride) * 4).unwrap());
            Arg { view, pixel_stride: c + stride, write: Write::Overwrite }
        };
        let (inputs, outputs): (Vec<Arg>, Vec<Arg>) =
            (node.inputs().iter().map(bind).collect(), node.outputs().iter().map(bind).collect());
        let scratch = View::whole(backend.allocate(node.scratch_bytes(target).max(1)).unwrap());
        node.launches(target, &Io { inputs: &inputs, outputs: &outputs, scratch: Some(&scratch) }).map(|l| l.len())
    };
    assert!(launch("bottleneck reduce", 8).is_ok());
    for (row, stride) in [("bottleneck reduce", 1), ("cifar 16", 0), ("cifar option B", 0), ("all ones", 0)] {
        let error = launch(row, stride).unwrap_err().to_string();
        assert!(error.contains("conv2d_fwd"), "{row}: {error}");
    }
}

#[test]
fn real_numbers_are_within_bounds_and_the_same_on_every_schedule() {
    for row in ["cifar 16 to 32", "primes", "long reduction"].map(named) {
        for (what, pass) in [FORWARD[0], FORWARD[3], DATA[0], DATA[2], DATA[3], WEIGHT[0], BOTH[0], BOTH[2]] {
            let node = Node { conv: row.conv(), pass };
            check(&bounded(&row.name, what, node, reals(&row.name, &node)), Sweep::TensorCores);
        }
    }
}

/// The bounds must notice a change of some numbers of any input.
#[test]
fn a_wrong_operand_is_refused() {
    let row = named("cifar 16 to 32");
    let others =
        [FORWARD[0], FORWARD[5], DATA[0], DATA[2], DATA[3], WEIGHT[0], BOTH[0], BOTH[2]].map(|pass| (&row, pass));
    let end = named("bottleneck reduce");
    for (row, (what, pass)) in others.into_iter().chain([(&end, ENDS[1])]) {
        let node = Node { conv: row.conv(), pass };
        let inputs = reals(&row.name, &node);
        for i in 0..inputs.len() {
            let mut wrong = inputs.clone();
            // A channel has one or two of the changed pixels, and the signs mask half of them: in bf16 the bound of its
            // sum hides a change by 8 of the epilogue's y.
            let both = matches!(pass, Pass::Bwd(_));
            let by = if both && roles(&node)[i] == Role::Pixels { 32.0 } else { 8.0 };
            match &mut wrong[i] {
                Data::Real(v) => v.iter_mut().take(20).for_each(|v| *v += by),
                Data::Byte(v) => v.iter_mut().for_each(|bits| *bits ^= 1),
                Data::Index(_) => panic!("there are no labels"),
            }
            check_refused(&bounded(&row.name, &format!("{what}, input {i}"), node, inputs.clone()), &wrong, &DTYPES);
        }
    }
}

#[test]
fn a_mean_far_from_zero_leaves_the_variance() {
    let load = Load::Affine { affine: Affine::default(), relu: true };
    let (x, epilogue) = (Operand { value: (), load }, Epilogue { shift: Some(()), ..Epilogue::default() });
    let form: Fwd = Fwd { x, epilogue, moments: Some(Moments::default()), ..Fwd::default() };
    let node = Node { conv: named("long reduction").conv(), pass: Pass::Fwd(form) };
    let mut inputs = reals("far", &node);
    let Fwd { moments: Some(Moments { var, .. }), .. } = outputs(form, reference(&op(node), &inputs, &[])) else {
        panic!("no moments")
    };
    let deviation = var.real().iter().fold(0.0, |a: f64, v| a.max(v.sqrt()));
    let shift = form.places().epilogue.shift.expect("a shift");
    inputs[shift] = Data::Real(vec![1000.0 * deviation; node.conv.spec().k]);
    let judge = move |judged: &Judged<'_>| {
        let within = |name: &str, data: &Data| {
            let relative = match name {
                "y" => 1e-5,
                "mean" => 1e-6,
                _ => 1e-3,
            };
            Compare::Within(data.real().iter().map(|v| relative * v.abs()).collect())
        };
        rules(form.with(judged.inputs, judged.outputs).map(|_, _| (), within))
    };
    check_dtype(&case(Case::bounded("far", op(node), inputs, judge), &node), DType::F32, Sweep::Schedules);
}
