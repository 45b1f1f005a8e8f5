//! The gradient through a ReLU and what batch norms need of it: exact on whole numbers.

use residuum::ops::batch_norm::{BatchNorm, Spec};
use residuum::ops::norm::{Gradient, Node, Pass};
use residuum::ops::store::{sign_bytes, Mask};
use residuum::ops::{Call, Io, Op, Operator, Write};

use super::batch_norm::powers;
use crate::bounds;
use crate::cases::batch_norm::SHAPES;
use crate::cases::norm::MASKS;
use crate::harness::{check, check_refused, reference, Case, Compare, Data, Judged, Launcher, Random, Sweep, DTYPES};

fn form(mask: Mask) -> Gradient {
    Gradient { mask, sums: mask.sums(), ..Gradient::default() }
}

fn node(x: [usize; 4], mask: Mask) -> Node {
    Node { bn: BatchNorm::new(Spec { x, eps: 1e-5, momentum: 0.1 }).unwrap(), pass: Pass::Gradient(form(mask)) }
}

/// Signs of `shape`: any, but none beyond the last channel.
fn signs(random: &mut Random, [n, h, w, c]: [usize; 4]) -> Data {
    let pixel = |random: &mut Random| -> Vec<u8> {
        let bits = |i: usize| if c - 8 * i >= 8 { 0xFF } else { (1u8 << (c - 8 * i)) - 1 };
        (0..sign_bytes(c)).map(|i| random.below(256) as u8 & bits(i)).collect()
    };
    Data::Byte((0..n * h * w).flat_map(|_| pixel(random)).collect())
}

/// Small whole numbers for the operands of `mask`; scales are powers of two, and z is often 0. Behind a closed gate is
/// nothing but NaN.
pub fn operands(random: &mut Random, mask: Mask, shape: [usize; 4]) -> Vec<Data> {
    let (len, c) = (shape.iter().product(), shape[3]);
    let open = random.below(2) == 1;
    let mut operands = Vec::new();
    mask.types(shape).map(|name, read| {
        operands.push(match name {
            _ if read.gated && !open => Data::Real(vec![f64::NAN; read.ty.shape.len()]),
            "y" => Data::Real(random.integers(len, -2, 2)),
            "mean" => Data::Real(random.integers(c, -1, 1)),
            "scale" => Data::Real(powers(random, c)),
            "shift" => Data::Real(random.integers(c, -2, 2)),
            "bits" => signs(random, shape),
            "gate" => Data::Real(vec![f64::from(u8::from(open))]),
            other => panic!("an operand called {other}"),
        });
    });
    operands
}

fn exact_case(shape: [usize; 4], mask: Mask) -> Case {
    let name = format!("norm gradient {shape:?} {mask:?}");
    let mut random = Random::new(&name);
    let dz = Data::Real(random.integers(shape.iter().product(), -2, 2));
    let inputs = [vec![dz], operands(&mut random, mask, shape)].concat();
    Case::exact(name, Op::Norm(node(shape, mask)), inputs).sliced().taking_in()
}

#[test]
fn exact() {
    for &shape in SHAPES {
        for &mask in MASKS {
            check(&exact_case(shape, mask), Sweep::Schedules);
        }
    }
}

/// As torch: dz passes a ReLU that left NaN.
#[test]
fn a_nan_does_not_close_the_relu() {
    for &mask in MASKS.iter().filter(|mask| matches!(mask, Mask::Affine { .. })) {
        let y = vec![f64::NAN, 1.0, 0.0, -1.0];
        let inputs = [vec![1.0, 2.0, 4.0, 8.0], y, vec![1.0], vec![0.0], vec![0.0]].map(Data::Real).to_vec();
        let op = Op::Norm(node([1, 1, 4, 1], mask));
        let Data::Real(g) = &reference(&op, &inputs, &[])[0] else { panic!("numbers") };
        assert_eq!(g[..2], [1.0, 2.0], "{mask:?}");
        let name = format!("norm gradient of NaN {mask:?}");
        check(&Case::exact(name, op, inputs).taking_in(), Sweep::Schedules);
    }
}

/// g takes the place of dz.
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

/// z = y, so that rounding closes no other ReLU than in the reference.
fn bounded_case(shape: [usize; 4]) -> Case {
    let name = format!("norm gradient of real numbers {shape:?}");
    let mut random = Random::new(&name);
    let (len, c) = (shape.iter().product(), shape[3]);
    let numbers = [vec![1.0; c], vec![0.0; c], random.reals(c, -0.5, 0.5)];
    let inputs = [vec![random.normals(len, 0.1, 1.0), random.normals(len, 0.2, 1.0)], numbers.into()].concat();
    let mask = Mask::Affine { y: (), scale: (), shift: (), mean: (), relu: true, scaled: false };
    let op = Op::Norm(node(shape, mask));
    let judge = move |j: &Judged<'_>| {
        let call = form(mask).with(j.inputs, j.outputs).map(|_, data| data.real(), |_, data| data.real());
        let (g, Mask::Affine { y, mean, .. }) = (call.g, call.mask) else { panic!("an affine mask") };
        // In the accumulating run v is a rounded sum; the 16-bit types store it rounded once more.
        let magnitude = |k: usize, of: &dyn Fn(usize) -> f64| (k..len).step_by(c).map(|i| of(i).abs()).sum::<f64>();
        let sums = |of: &dyn Fn(usize) -> f64| {
            Compare::Within((0..c).map(|k| bounds::channel_sum(len / c, 3, magnitude(k, of))).collect())
        };
        let here = g.iter().map(|v| bounds::U * v.abs()).collect();
        vec![Compare::Within(here), sums(&|i| g[i]), sums(&|i| g[i] * (y[i] - mean[i % c]))]
    };
    Case::bounded(name, op, inputs.into_iter().map(Data::Real).collect(), judge).taking_in()
}

#[test]
fn bounded() {
    for &shape in SHAPES {
        check(&bounded_case(shape).sliced(), Sweep::Schedules);
    }
}

/// A row more or less in the sums is found, the sums alone being judged.
#[test]
fn a_lost_row_is_found() {
    for &shape in &SHAPES[2..6] {
        let mut case = bounded_case(shape);
        let all = case.judge;
        case.judge = Box::new(move |j| {
            let mut rules = all(j);
            rules[0] = Compare::Within(vec![f64::INFINITY; j.inputs[0].real().len()]);
            rules
        });
        let mut wrong = case.inputs.clone();
        let Data::Real(dz) = &mut wrong[0] else { unreachable!() };
        let last = dz.len() - shape[3]..;
        dz[last].fill(0.0);
        check_refused(&case, &wrong, &DTYPES);
    }
}
