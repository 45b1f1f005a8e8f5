//! The gradient through a ReLU and its sums for batch norms: exact on whole numbers.

use residuum::ops::norm::{Gradient, Node, Pass};
use residuum::ops::store::{sign_bytes, Mask, Sums};
use residuum::ops::{Call, Io, Op, Operator, Write};

use super::batch_norm::{last_pixel_lost, powers};
use crate::bounds;
use crate::cases::batch_norm::SHAPES;
use crate::cases::norm::MASKS;
use crate::harness::{check, check_refused_with, reference, Case, Compare, Data, Judged, Launcher, Random, Sweep};
use crate::named::{inputs, outputs, rules};

fn form(mask: Mask) -> Gradient {
    Gradient { mask, sums: mask.sums(), ..Gradient::default() }
}

fn node(x: [usize; 4], mask: Mask) -> Node {
    Node { x, pass: Pass::Gradient(form(mask)) }
}

/// Random signs of `shape`; the bits beyond the last channel are 0.
fn signs(random: &mut Random, [n, h, w, c]: [usize; 4]) -> Data {
    let pixel = |random: &mut Random| -> Vec<u8> {
        let bits = |i: usize| if c - 8 * i >= 8 { 0xFF } else { (1u8 << (c - 8 * i)) - 1 };
        (0..sign_bytes(c)).map(|i| random.below(256) as u8 & bits(i)).collect()
    };
    Data::Byte((0..n * h * w).flat_map(|_| pixel(random)).collect())
}

/// Small whole numbers for the operands of `mask`; scales are powers of two, and z is often 0. Operands behind a closed
/// gate are NaN.
pub fn operands(random: &mut Random, mask: Mask, shape: [usize; 4]) -> Mask<Data> {
    let (len, c) = (shape.iter().product(), shape[3]);
    let open = random.below(2) == 1;
    mask.types(shape).map(|name, read| match name {
        _ if read.gated && !open => Data::Real(vec![f64::NAN; read.ty.shape.len()]),
        "y" => Data::Real(random.integers(len, -2, 2)),
        "mean" => Data::Real(random.integers(c, -1, 1)),
        "scale" => Data::Real(powers(random, c)),
        "shift" => Data::Real(random.integers(c, -2, 2)),
        "bits" => signs(random, shape),
        "gate" => Data::Real(vec![f64::from(u8::from(open))]),
        other => panic!("an operand called {other}"),
    })
}

fn exact_case(shape: [usize; 4], mask: Mask) -> Case {
    let name = format!("norm gradient {shape:?} {mask:?}");
    let mut random = Random::new(&name);
    let dz = Data::Real(random.integers(shape.iter().product(), -2, 2));
    let call = Gradient { dz, mask: operands(&mut random, mask, shape), g: (), sums: mask.sums() };
    Case::exact(name, Op::Norm(node(shape, mask)), call.into_lists().0).sliced().taking_in()
}

#[test]
fn exact() {
    for &shape in SHAPES {
        for &mask in MASKS {
            check(&exact_case(shape, mask), Sweep::Schedules);
        }
    }
}

/// As in torch, dz passes a ReLU whose output is NaN.
#[test]
fn a_nan_does_not_close_the_relu() {
    for &mask in MASKS.iter().filter(|mask| matches!(mask, Mask::Affine { .. })) {
        let numbers = mask.map(|name, ()| match name {
            "y" => vec![f64::NAN, 1.0, 0.0, -1.0],
            "scale" => vec![1.0],
            _ => vec![0.0],
        });
        let inputs = inputs(Gradient { dz: vec![1.0, 2.0, 4.0, 8.0], mask: numbers, g: (), sums: mask.sums() });
        let op = Op::Norm(node([1, 1, 4, 1], mask));
        let g = outputs(form(mask), reference(&op, &inputs, &[])).g;
        assert_eq!(g.real()[..2], [1.0, 2.0], "{mask:?}");
        let name = format!("norm gradient of NaN {mask:?}");
        check(&Case::exact(name, op, inputs).taking_in(), Sweep::Schedules);
    }
}

/// g overwrites dz.
#[test]
fn in_place() {
    for &mask in MASKS {
        let shape = SHAPES[3];
        let node = node(shape, mask);
        let mut case = exact_case(shape, mask);
        case.name += " in place";
        let case = case.launched_by(Launcher {
            scratch_bytes: Box::new(move |target| node.scratch_bytes(target)),
            launches: Box::new(move |target, io| {
                let Gradient { dz, g, .. } = io.bind(form(mask));
                if g.write == Write::Accumulate {
                    return node.launches(target, io);
                }
                assert_eq!(dz.pixel_stride, g.pixel_stride);
                g.view.write(&dz.view.read()?)?;
                let inputs = Gradient { dz: g, ..io.bind(form(mask)) }.into_lists().0;
                let inputs: Vec<_> = inputs.into_iter().cloned().collect();
                node.launches(target, &Io { inputs: &inputs, ..*io })
            }),
        });
        check(&case, Sweep::Schedules);
    }
}

/// With a scale of 1 and a shift of 0, z = y: rounding closes no ReLU that the reference leaves open.
const RELU: Mask = Mask::Affine { y: (), scale: (), shift: (), mean: (), relu: true, scaled: false };

fn judge(j: &Judged<'_>) -> Gradient<(), Compare> {
    let call = j.numbers(form(RELU));
    let (g, Mask::Affine { y, mean, .. }) = (call.g, call.mask) else { panic!("an affine mask") };
    let (len, c) = (g.len(), mean.len());
    // In the accumulating run v is a rounded sum; the 16-bit types store it rounded once more.
    let magnitude = |k: usize, of: &dyn Fn(usize) -> f64| (k..len).step_by(c).map(|i| of(i).abs()).sum::<f64>();
    let sums = |of: &dyn Fn(usize) -> f64| {
        Compare::Within((0..c).map(|k| bounds::channel_sum(len / c, 3, magnitude(k, of))).collect())
    };
    let sums = Sums { dy: sums(&|i| g[i]), first: sums(&|i| g[i] * (y[i] - mean[i % c])), second: None };
    let g = Compare::Within(g.iter().map(|v| bounds::U * v.abs()).collect());
    Gradient { dz: (), mask: RELU, g, sums }
}

fn bounded_case(shape: [usize; 4]) -> Case {
    let name = format!("norm gradient of real numbers {shape:?}");
    let mut random = Random::new(&name);
    let (len, c) = (shape.iter().product(), shape[3]);
    let mean = random.reals(c, -0.5, 0.5);
    let (dz, y) = (random.normals(len, 0.1, 1.0), random.normals(len, 0.2, 1.0));
    let mask = Mask::Affine { y, scale: vec![1.0; c], shift: vec![0.0; c], mean, relu: true, scaled: false };
    let inputs = inputs(Gradient { dz, mask, g: (), sums: RELU.sums() });
    Case::bounded(name, Op::Norm(node(shape, RELU)), inputs, |j| rules(judge(j))).taking_in()
}

#[test]
fn bounded() {
    for &shape in SHAPES {
        check(&bounded_case(shape).sliced(), Sweep::Schedules);
    }
}

/// A lost row is found in the sums, the only outputs that are judged.
#[test]
fn a_lost_row_is_found() {
    for &shape in &SHAPES[2..6] {
        let mut case = bounded_case(shape);
        case.judge = Box::new(move |j| {
            let g = Compare::Within(vec![f64::INFINITY; shape.iter().product()]);
            rules(Gradient { g, ..judge(j) })
        });
        check_refused_with(&case, form(RELU).places().dz, last_pixel_lost(shape[3]));
    }
}
