//! The rectifier: exact everywhere.

use residuum::device::{Arch, Device, Target, View};
use residuum::ops::relu::{Node, Pass};
use residuum::ops::{Arg, Io, Op, Operator, Write};
use residuum::tensor::DType;

use crate::cases::elementwise::{LARGE, SHAPES};
use crate::harness::{check, check_dtype, Case, Data, Random, Sweep};
use crate::host::results;

fn fwd(shape: [usize; 4]) -> Case {
    let name = format!("relu fwd {shape:?}");
    let x = Random::new(&name).integers(shape.iter().product(), -9, 9);
    let op = Op::Relu(Node { shape: shape.into(), pass: Pass::Fwd });
    Case::exact(name, op, vec![Data::Real(x)]).sliced()
}

fn bwd(shape: [usize; 4]) -> Case {
    let name = format!("relu bwd {shape:?}");
    let mut random = Random::new(&name);
    let len = shape.iter().product();
    let (dy, y) = (random.integers(len, -100, 100), random.integers(len, -1, 2));
    let op = Op::Relu(Node { shape: shape.into(), pass: Pass::Bwd });
    Case::exact(name, op, vec![Data::Real(dy), Data::Real(y)]).sliced()
}

#[test]
fn forward() {
    SHAPES.iter().for_each(|&shape| check(&fwd(shape), Sweep::Schedules));
}

#[test]
fn backward() {
    SHAPES.iter().for_each(|&shape| check(&bwd(shape), Sweep::Schedules));
}

#[test]
fn many_rows() {
    check_dtype(&fwd(LARGE), DType::F32, Sweep::Schedules);
}

#[test]
fn special_values() {
    let values = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.0, -6e-8, 6e-8, 3.0, -3.0];
    let shape = [1, 1, 1, values.len()];
    let op = |pass| Op::Relu(Node { shape: shape.into(), pass });
    let dy = Data::Real(vec![f64::NAN; values.len()]);
    check(&Case::exact("relu fwd special", op(Pass::Fwd), vec![Data::Real(values.clone())]), Sweep::Schedules);
    check(&Case::exact("relu bwd special", op(Pass::Bwd), vec![dy, Data::Real(values.clone())]), Sweep::Schedules);
    // As in torch, dy passes where y is NaN.
    let dy: Vec<f64> = (1..=values.len()).map(|i| i as f64).collect();
    let expected = vec![1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 7.0, 8.0, 0.0];
    let inputs = vec![Data::Real(dy), Data::Real(values)];
    for found in results(&op(Pass::Bwd), &inputs) {
        assert_eq!(found, [Data::Real(expected.clone())]);
    }
    check(&Case::exact("relu bwd of numbers", op(Pass::Bwd), inputs), Sweep::Schedules);
}

/// The extent of a tensor overflows with such a stride: a small view must not pass for it.
#[test]
fn a_stride_beyond_all_memory_is_refused() {
    let Device::Kernels(backend) = Device::blueprint(Arch::Sm80) else { panic!("a blueprint has memory") };
    let arg = |pixel_stride| {
        let view = View::whole(backend.allocate(4096).expect("addresses"));
        Arg { view, pixel_stride, write: Write::Overwrite }
    };
    let node = Node { shape: [2, 2, 1, 8].into(), pass: Pass::Fwd };
    let target = Target { arch: Arch::Sm80, dtype: DType::F32 };
    let launch = |stride| {
        let (inputs, outputs) = ([arg(stride)], [arg(8)]);
        node.launches(target, &Io { inputs: &inputs, outputs: &outputs, scratch: None })
    };
    launch(8).expect("a launch");
    for stride in [1 << 62, usize::MAX / 3, usize::MAX / 12 + 1, usize::MAX] {
        let message = launch(stride).expect_err("refused").to_string();
        assert!(message.contains(&format!("a pixel stride of {stride}")), "{message}");
    }
}
