//! Concatenation and its split: copies, exact everywhere.

use residuum::device::{Target, View};
use residuum::ops::concat::{Concat, Node, Pass, Spec};
use residuum::ops::{Arg, Io, Op, Operator, Write};
use residuum::tensor::DType;

use crate::cases::concat::CASES;
use crate::harness::{check, machines, reference, Case, Data, Random, Sweep};
use crate::named::only;

fn node(pixels: [usize; 3], channels: &[usize], pass: Pass) -> Node {
    Node { concat: Concat::new(Spec { pixels, channels: channels.to_vec() }).unwrap(), pass }
}

fn check_all(pass: Pass) {
    for &(pixels, channels) in CASES {
        let name = format!("concat {pass:?} {pixels:?} {channels:?}");
        let node = node(pixels, channels, pass);
        let mut random = Random::new(&name);
        let inputs = node.inputs().iter().map(|ty| Data::Real(random.integers(ty.shape.len(), -100, 100))).collect();
        check(&Case::exact(name, Op::Concat(node), inputs).sliced(), Sweep::Schedules);
    }
}

#[test]
fn forward() {
    check_all(Pass::Fwd);
}

#[test]
fn backward() {
    check_all(Pass::Bwd);
}

#[test]
fn the_split_is_the_inverse() {
    let (pixels, channels) = ([2, 3, 5], [7, 1, 3]);
    let parts: Vec<Data> =
        channels.iter().map(|&c| Data::Real(Random::new(&c.to_string()).normals(30 * c, 0.0, 1.0))).collect();
    let whole = only(reference(&Op::Concat(node(pixels, &channels, Pass::Fwd)), &parts, &[]));
    assert_eq!(whole.real()[..8], [&parts[0].real()[..7], &parts[1].real()[..1]].concat());
    assert_eq!(reference(&Op::Concat(node(pixels, &channels, Pass::Bwd)), &[whole], &[]), parts);
}

/// A part that is the whole's slice at its own channels costs no launch; any other part does.
#[test]
fn a_part_in_place_is_not_copied() {
    let Some(machine) = machines(Sweep::Quick).next() else { return };
    let target = Target { arch: machine.backend.arch(), dtype: DType::F32 };
    let memory = machine.backend.allocate(4 * 30 * 11).unwrap();
    let other = machine.backend.allocate(4 * 30 * 11).unwrap();
    let arg = |memory, first: usize, c: usize| Arg {
        view: View::new(memory, 4 * first, 4 * (29 * 11 + c)).unwrap(),
        pixel_stride: 11,
        write: Write::Overwrite,
    };
    let whole = [arg(memory.clone(), 0, 11)];
    for (starts, copies) in [([0, 7, 8], 0), ([0, 6, 8], 1), ([1, 0, 8], 2)] {
        let place = |i: usize| if starts[i] == [0, 7, 8][i] { memory.clone() } else { other.clone() };
        let parts = [0, 1, 2].map(|i| arg(place(i), starts[i], [7, 1, 3][i]));
        for (pass, inputs, outputs) in [(Pass::Fwd, &parts[..], &whole[..]), (Pass::Bwd, &whole, &parts)] {
            let io = Io { inputs, outputs, scratch: None };
            let launches = node([2, 3, 5], &[7, 1, 3], pass).launches(target, &io).unwrap();
            assert_eq!(launches.len(), copies, "{pass:?} {starts:?}");
        }
    }
    let parts = [0, 1, 2].map(|i| arg(other.clone(), [0, 7, 8][i], [7, 1, 3][i]));
    let io = Io { inputs: &parts, outputs: &whole, scratch: None };
    assert_eq!(node([2, 3, 5], &[7, 1, 3], Pass::Fwd).launches(target, &io).unwrap().len(), 3, "in other memory");
}

#[test]
fn impossible_specs_are_errors() {
    let error =
        |pixels, channels: &[usize]| Concat::new(Spec { pixels, channels: channels.to_vec() }).unwrap_err().to_string();
    assert_eq!(error([1, 1, 1], &[]), "concat: no tensors, expected at least one");
    assert!(error([1, 0, 1], &[2]).contains("zero"));
    assert!(error([1, 1, 1], &[2, 0]).contains("zero"));
}
