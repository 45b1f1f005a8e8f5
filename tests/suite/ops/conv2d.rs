//! Convolution: every pass, tile and dtype against the reference. Whole numbers first, where results must be equal.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use residuum::device::{Arch, Cost, Target, View};
use residuum::ops::conv2d::{BwdBias, BwdW, BwdX, Conv2d, Fwd, Node, Pass, Plan, Spec};
use residuum::ops::load::{Load, Operand};
use residuum::ops::store::Epilogue;
use residuum::ops::{Arg, Call, Io, Op, Operator, Write};
use residuum::tensor::{DType, TensorType};

use crate::bounds;
use crate::cases::conv2d::{crossed, layers, odd, peers, stems, widths, Row};
use crate::harness::{
    check, check_dtype, check_each, check_refused_with, machines, reference, Case, Compare, Data, Launcher, Random,
    Sweep, DTYPES,
};
use crate::machine;
use crate::named::only;

const AS_IS: Operand = Operand { value: (), load: Load::AsIs };
const NO_EPILOGUE: Epilogue = Epilogue { scale: None, shift: None, residual: None, relu: false };
const FWD: Pass = Pass::Fwd(Fwd { x: AS_IS, w: (), epilogue: NO_EPILOGUE, y: (), moments: None, end: None });
const BWD_X: Pass = Pass::BwdX(BwdX { dy: AS_IS, w: (), mask: None, dx: (), sums: None });
const BWD_W: Pass = Pass::BwdW(BwdW { dy: AS_IS, x: AS_IS, dw: () });
const BWD_BIAS: Pass = Pass::BwdBias(BwdBias { dy: (), dbias: () });
const PRODUCTS: [Pass; 3] = [FWD, BWD_X, BWD_W];

/// True if the long lists run.
fn long() -> bool {
    machine::asked("RESIDUUM_LONG")
}

/// The number of products in a result.
pub fn terms(node: &Node) -> usize {
    let [_, r, s, cg] = node.conv.w_shape();
    let spec = node.conv.spec();
    match node.pass {
        Pass::Fwd(_) => r * s * cg,
        Pass::BwdX(_) | Pass::Bwd(_) => r * s * spec.k / spec.groups,
        Pass::BwdW(_) | Pass::BwdBias(_) => spec.n * node.conv.output().iter().product::<usize>(),
    }
}

/// Whole numbers whose sums are exact in the type that stores the result, as dense as that allows (`get_safe_n_acc` of
/// oneDNN's benchdnn).
fn integers(name: &str, node: &Node, dtype: DType) -> Vec<Data> {
    let mut random = Random::new(name);
    let stored_in_f32 = matches!(node.pass, Pass::BwdW(_) | Pass::BwdBias(_));
    let (most, digits) = match dtype {
        DType::F32 => (32, 24),
        DType::F16 => (2, if stored_in_f32 { 24 } else { 11 }),
        _ => (2, if stored_in_f32 { 24 } else { 8 }),
    };
    let safe = ((1u64 << digits) / (most * most) as u64) as usize;
    let period = terms(node).div_ceil(safe);
    let mut inputs: Vec<Data> = Vec::new();
    for (name, read) in node.operands().reads {
        let thin = name == "dy" || (name == "x" && matches!(node.pass, Pass::Fwd(_)));
        inputs.push(Data::Real(random.sparse(read.ty.shape.len(), -most, most, if thin { period } else { 1 })));
    }
    inputs
}

fn exact(name: &str, node: Node, dtype: DType) -> Case {
    Case::exact(format!("{name} {}", node.name()), Op::Conv2d(node), integers(name, &node, dtype))
}

/// Bounds of a sum of products, from the sum of their magnitudes.
fn bounded(name: &str, node: Node, inputs: Vec<Data>) -> Case {
    let op = Op::Conv2d(node);
    Case::bounded(format!("{name} {}", node.name()), op, inputs, move |judged| {
        let magnitudes: Vec<Data> =
            judged.inputs.iter().map(|input| Data::Real(input.real().iter().map(|v| v.abs()).collect())).collect();
        let bound = match judged.dtype {
            DType::F32 => bounds::sum,
            _ => bounds::tensor_core_sum,
        };
        let sums = only(reference(&Op::Conv2d(node), &magnitudes, &[]));
        vec![Compare::Within(sums.real().iter().map(|&m| bound(terms(&node) + 4, m)).collect())]
    })
}

fn reals(name: &str, node: &Node) -> Vec<Data> {
    let mut random = Random::new(name);
    node.inputs().iter().map(|ty| Data::Real(random.normals(ty.shape.len(), 0.1, 1.0))).collect()
}

pub fn with_plan(case: Case, node: Node, plan: Plan) -> Case {
    let name = format!("{} by {}, {} as one, in {}", case.name, plan.kernel(), plan.pack(), plan.splits());
    Case { name, ..case }.launched_by(Launcher::planned(node, plan))
}

pub fn named(name: &str) -> Row {
    layers().into_iter().chain(odd()).find(|r| r.name == name).expect("a row of that name")
}

/// Checks every row, on as many threads as the machine has: the simulator uses one for a launch.
fn on_all_cores(rows: &[Row], check: impl Fn(&Row) + Sync) {
    let (next, workers) = (AtomicUsize::new(0), std::thread::available_parallelism().map_or(1, usize::from));
    std::thread::scope(|scope| {
        for _ in 0..workers.min(rows.len()) {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(row);
                }
            });
        }
    });
}

/// Every pass of every row in every dtype, dense and as slices of wider tensors, on one schedule.
fn check_rows(rows: &[Row]) {
    on_all_cores(rows, |row| {
        for pass in PRODUCTS.into_iter().chain([BWD_BIAS]) {
            let node = Node { conv: row.conv(), pass };
            check_each(|dtype| exact(&row.name, node, dtype).sliced(), Sweep::Quick);
        }
    });
}

#[test]
fn layers_are_exact() {
    check_rows(&layers());
}

#[test]
fn odd_sizes_are_exact() {
    check_rows(&odd());
}

#[test]
fn groups_strides_dilations_and_paddings_are_exact() {
    check_rows(&crossed());
}

/// Narrow and wide groups: each width meets all strides, dilations and paddings, and with RESIDUUM_LONG=1 all their
/// combinations.
#[test]
fn widths_of_groups_are_exact() {
    check_rows(&widths(long()));
}

/// The pads between pixels hold NaN, which must not reach a result.
#[test]
fn stems_are_exact() {
    check_rows(&stems());
    for row in stems() {
        for pass in PRODUCTS {
            let node = Node { conv: row.conv(), pass };
            for dtype in DTYPES {
                check_dtype(&exact(&row.name, node, dtype).padded(), dtype, Sweep::Quick);
                for plan in node.plans(Target { arch: Arch::Sm80, dtype }) {
                    let case = with_plan(exact(&row.name, node, dtype), node, plan);
                    check_dtype(&case.padded(), dtype, Sweep::Quick);
                }
            }
        }
    }
}

/// The launch of a product in bf16 with the pixels of x `stride` elements apart.
fn launched(name: &str, pass: Pass, stride: usize) -> Option<(&'static str, Cost)> {
    let node = Node { conv: named(name).conv(), pass };
    let backend = &machines(Sweep::Quick).next()?.backend;
    let target = Target { arch: backend.arch(), dtype: DType::BF16 };
    let bound = |name: &str, ty: &TensorType| {
        let [.., c] = *ty.shape.dims() else { panic!("channels") };
        let pixel_stride = if name == "x" { stride } else { c };
        let bytes = ty.shape.len() / c * pixel_stride * 4;
        Arg { view: View::whole(backend.allocate(bytes).expect("memory")), pixel_stride, write: Write::Overwrite }
    };
    let operands = node.operands();
    let inputs: Vec<Arg> = operands.reads.iter().map(|(name, read)| bound(name, &read.ty)).collect();
    let outputs: Vec<Arg> = operands.writes.iter().map(|(name, written)| bound(name, &written.ty)).collect();
    let scratch = View::whole(backend.allocate(node.scratch_bytes(target).max(1)).expect("memory"));
    let io = Io { inputs: &inputs, outputs: &outputs, scratch: Some(&scratch) };
    let launch = node.launches(target, &io).expect("launches").remove(0);
    Some((launch.kernel().name, launch.cost()))
}

#[test]
fn the_layout_of_x_decides_between_the_kernels() {
    for (pass, y) in [(FWD, "fwd"), (BWD_W, "bwd_w")] {
        let Some((stem, cost)) = launched("imagenet stem", pass, 4) else { return };
        assert!(stem.starts_with(&format!("conv2d_{y}_bf16")) && stem.ends_with("_stem"), "{stem}");
        let other = if pass == FWD { 64 * 7 * 7 * 3 } else { 11 * 10 * 64 };
        // Whole sectors: x may begin inside one.
        let (pads, x) = (2 * 21 * 19 * 4, cost.bytes_read - 2 * other);
        assert!((pads..pads + 64).contains(&x), "{x} bytes of x are read, {pads} with its pads");
        for (row, stride, end) in [
            ("imagenet stem", 3, "_scalar"),
            ("imagenet stem", 8, "_scalar"),
            ("resnext 4 a group", 32, "_packed"),
            ("resnext 4 a group", 40, "_packed"),
            ("resnext 4 a group", 33, "_scalar"),
        ] {
            let (kernel, _) = launched(row, pass, stride).expect("a machine");
            assert!(kernel.ends_with(end), "{row} {y} with {stride} elements a pixel: {kernel}");
        }
    }
}

/// 2-D problems of oneDNN's benchdnn, if the list lies beside the project: some of the smallest, and with
/// RESIDUUM_LONG=1 all that the simulator runs in minutes.
#[test]
fn peer_problems_are_exact() {
    let Some(rows) = peers() else {
        eprintln!("skipped: no ../shared/problems/conv2d.tsv and no RESIDUUM_SHARED");
        return;
    };
    let most = if long() { 20_000_000 } else { 100_000 };
    let mut rows: Vec<Row> =
        rows.into_iter().filter(|r| r.conv().macs() <= most).step_by(if long() { 1 } else { 6 }).collect();
    rows.sort_by_key(|r| std::cmp::Reverse(r.conv().macs()));
    on_all_cores(&rows, |row| {
        for pass in PRODUCTS {
            let node = Node { conv: row.conv(), pass };
            check_each(|dtype| exact(&row.name, node, dtype), Sweep::Quick);
        }
    });
}

#[test]
fn every_tile_is_exact_with_and_without_splits() {
    let rows = [
        "cifar 16 to 32",
        "one channel too many",
        "tile and one",
        "resnext 4 a group",
        "resnext 8 a group, stride 2",
        "depthwise 16",
        "imagenet stem",
    ]
    .map(named);
    let mut tested = BTreeSet::new();
    for (row, pass) in rows.iter().flat_map(|row| PRODUCTS.map(|pass| (row, pass))) {
        let node = Node { conv: row.conv(), pass };
        for dtype in DTYPES {
            for plan in node.plans(Target { arch: Arch::Sm80, dtype }) {
                let case = with_plan(exact(&row.name, node, dtype), node, plan);
                check_dtype(&case, dtype, Sweep::Quick);
                if row.spec.c < 4 {
                    check_dtype(&case.padded(), dtype, Sweep::Quick);
                }
                tested.insert(plan.kernel());
            }
        }
    }
    assert_eq!(tested.len(), 99, "every tile of fwd, bwd_x and bwd_w: {tested:?}");
}

#[test]
fn every_epilogue_is_exact() {
    let row = named("cifar 64");
    for bits in 0..16 {
        let on = |bit: u32| (bits >> bit & 1 == 1).then_some(());
        let epilogue = Epilogue { scale: on(0), shift: on(1), residual: on(2), relu: on(3).is_some() };
        let node = Node { conv: row.conv(), pass: Pass::Fwd(Fwd { epilogue, ..Fwd::default() }) };
        for dtype in DTYPES {
            let case = exact(&format!("epilogue {bits}"), node, dtype).sliced();
            check_dtype(&case, dtype, Sweep::Quick);
            let target = Target { arch: Arch::Sm80, dtype };
            let split = node.plans(target).into_iter().find(|p| p.splits() > 1).expect("a split plan");
            check_dtype(&with_plan(case, node, split), dtype, Sweep::Quick);
        }
    }
}

#[test]
fn real_numbers_are_within_bounds_and_the_same_on_every_schedule() {
    for row in ["cifar 16 to 32", "primes", "long reduction"].map(named) {
        for pass in PRODUCTS.into_iter().chain([BWD_BIAS]) {
            let node = Node { conv: row.conv(), pass };
            check(&bounded(&row.name, node, reals(&row.name, &node)), Sweep::TensorCores);
        }
    }
}

#[test]
fn packed_groups_and_stems_are_within_bounds_and_the_same_on_every_schedule() {
    for row in ["resnext 4 a group", "depthwise 16", "imagenet stem"].map(named) {
        for pass in PRODUCTS {
            let node = Node { conv: row.conv(), pass };
            check(&bounded(&row.name, node, reals(&row.name, &node)).padded(), Sweep::TensorCores);
        }
    }
}

#[test]
fn a_missing_product_is_refused() {
    let row = named("cifar 16 to 32");
    for pass in PRODUCTS {
        let node = Node { conv: row.conv(), pass };
        let factor = match pass.places() {
            Pass::BwdW(at) => at.x.value,
            Pass::Fwd(Fwd { w, .. }) | Pass::BwdX(BwdX { w, .. }) => w,
            _ => unreachable!("no product"),
        };
        let case = bounded(&row.name, node, reals(&row.name, &node));
        check_refused_with(&case, factor, |factors| factors[7] = 0.0);
    }
}

fn any_conv() -> impl Strategy<Value = Conv2d> {
    let pair = |range: std::ops::RangeInclusive<usize>| (range.clone(), range).prop_map(|(a, b)| [a, b]);
    (1..=3usize, pair(1..=9), 1..=4usize, pair(1..=9), pair(1..=4), pair(1..=4), pair(0..=3), pair(1..=3))
        .prop_filter_map("the kernel fits", |(n, [h, w], groups, [cg, kg], kernel, stride, padding, dilation)| {
            let spec = Spec { n, h, w, c: groups * cg, k: groups * kg, kernel, stride, padding, dilation, groups };
            Conv2d::new(spec).ok()
        })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if long() { 2000 } else { 24 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_convolution_is_exact(conv in any_conv(), pass in 0..3usize, dtype in 0..3usize) {
        let node = Node { conv, pass: PRODUCTS[pass] };
        check_dtype(&exact(&format!("{:?}", conv.spec()), node, DTYPES[dtype]), DTYPES[dtype], Sweep::Quick);
    }
}
