//! The optimizer's step on the kernels: exact in whole numbers and powers of two, else bounded.

use residuum::control::sgd::{launch, step, Buffers, Sgd, Spec, StepState};
use residuum::device::{Target, View};
use residuum::tensor::{DType, Elem};

use crate::bounds;
use crate::cases::sgd::{SIZES, SPECS, TORCH, USUAL};
use crate::harness::{decode, encode, machines, Data, Machine, Random, Sweep, DTYPES};

/// The inputs of a step.
struct Start {
    spec: Spec,
    state: StepState,
    decay_end: usize,
    param: Vec<f64>,
    grad: Vec<f64>,
    velocity: Vec<f64>,
}

/// The results of a step.
#[derive(PartialEq)]
struct End {
    param: Vec<f64>,
    velocity: Vec<f64>,
    copy: Option<Vec<f64>>,
}

fn run(start: &Start, dtype: DType, machine: &Machine) -> residuum::Result<End> {
    run_after(None, start, dtype, machine)
}

/// Runs a step that depends on `loss`.
fn run_after(loss: Option<f64>, start: &Start, dtype: DType, machine: &Machine) -> residuum::Result<End> {
    let backend = &*machine.backend;
    let len = start.param.len();
    let upload = |values: &[f64]| -> residuum::Result<View> {
        let bytes = encode(&Data::Real(values.to_vec()), Elem::Stat, dtype);
        let memory = backend.allocate(bytes.len())?;
        memory.write(0, &bytes)?;
        Ok(View::whole(memory))
    };
    let download = |view: &View, elem: Elem| -> residuum::Result<Vec<f64>> {
        Ok(decode(&view.read()?, elem, dtype).real().to_vec())
    };
    let [param, grad] = [upload(&start.param)?, upload(&start.grad)?];
    // At the first step the velocity has not been written.
    let velocity = if start.state.first { upload(&vec![f64::NAN; len])? } else { upload(&start.velocity)? };
    let control = upload(&[start.state.lr, f64::from(u8::from(start.state.first))])?;
    let loss = loss.map(|loss| upload(&[loss])).transpose()?;
    let copy = match dtype {
        DType::F32 => None,
        _ => Some(View::whole(backend.allocate(len * dtype.bytes())?)),
    };
    let buffers = Buffers {
        param: &param,
        grad: &grad,
        velocity: &velocity,
        copy: copy.as_ref(),
        control: &control,
        loss_scale: None,
        loss: loss.as_ref(),
        grad_scale: start.state.grad_scale,
        len,
        decay_end: start.decay_end,
    };
    let sgd = Sgd::new(start.spec)?;
    backend.launch(&launch(&sgd, Target { arch: backend.arch(), dtype }, &buffers))?;
    backend.synchronize()?;
    assert_eq!(download(&grad, Elem::Stat)?, start.grad, "the gradients were written to");
    Ok(End {
        param: download(&param, Elem::Stat)?,
        velocity: download(&velocity, Elem::Stat)?,
        copy: copy.map(|s| download(&s, Elem::Real)).transpose()?,
    })
}

/// The parameters and velocities after the step, in f64 from the same f32 numbers.
fn expected(start: &Start) -> [Vec<f64>; 2] {
    let (mut param, mut velocity) = (start.param.clone(), start.velocity.clone());
    let sgd = Sgd::new(start.spec).unwrap();
    step(&sgd, start.state, start.decay_end, &mut param, &start.grad, &mut velocity);
    [param, velocity]
}

/// Runs everywhere; `bound` gives the error allowed in element `i`, from the magnitudes of its terms.
fn check(name: &str, start: &Start, bound: impl Fn(f64) -> f64) {
    let [param, velocity] = expected(start);
    for dtype in DTYPES {
        let mut seen: Vec<(&str, End)> = Vec::new();
        for machine in machines(Sweep::Schedules).filter(|m| !m.label.contains("replayed")) {
            let label = format!("sgd {name} {dtype} on {}", machine.label);
            let end = run(start, dtype, machine).unwrap_or_else(|e| panic!("{label}: {e}"));
            for i in 0..param.len() {
                let gradient = start.grad[i].abs() / start.state.grad_scale + start.param[i].abs();
                let magnitude = gradient + start.velocity[i].abs() + velocity[i].abs();
                for (what, found, want) in [("param", &end.param, &param), ("velocity", &end.velocity, &velocity)] {
                    let off = (found[i] - want[i]).abs();
                    assert!(off <= bound(magnitude), "{label}: {what} {i} is {:e}, expected {:e}", found[i], want[i]);
                }
            }
            if let Some(copy) = &end.copy {
                let rounded: Vec<f64> = end.param.iter().map(|&p| dtype.round(p)).collect();
                assert!(*copy == rounded, "{label}: the working copy is not the rounded parameter");
            }
            match seen.iter().find(|(group, _)| *group == machine.group) {
                Some((_, other)) => assert!(end == *other, "{label}: other bits than under another schedule"),
                None => seen.push((machine.group, end)),
            }
        }
    }
}

fn start(spec: Spec, [len, decay_end]: [usize; 2], first: bool, draw: impl Fn(&mut Random) -> Vec<f64>) -> Start {
    let mut random = Random::new(&format!("sgd {spec:?} {len} {decay_end} {first}"));
    let state = StepState { lr: 0.125, grad_scale: 4.0, first };
    let [param, grad, velocity] = [0; 3].map(|_| draw(&mut random));
    Start { spec, state, decay_end, param, grad, velocity }
}

#[test]
fn exact() {
    for spec in SPECS {
        for &size in SIZES {
            for first in [false, true] {
                let start = start(*spec, size, first, |r| r.integers(size[0], -64, 64));
                check(&format!("{spec:?} {size:?} first {first}"), &start, |_| 0.0);
            }
        }
    }
}

#[test]
fn bounded() {
    for first in [false, true] {
        let draw = |r: &mut Random| r.normals(1028, 0.0, 1.0).iter().map(|&v| DType::F32.round(v)).collect();
        let mut start = start(USUAL, [1028, 512], first, draw);
        start.state.lr = DType::F32.round(0.1);
        check(&format!("usual first {first}"), &start, bounds::step);
    }
}

/// The bound is tight enough to see the weight decay of one element.
#[test]
fn a_lost_decay_is_found() {
    let draw = |r: &mut Random| r.reals(8, 0.5, 1.0).iter().map(|&v| DType::F32.round(v)).collect();
    let right = start(USUAL, [8, 8], false, draw);
    let wrong = Start { decay_end: 7, ..start(USUAL, [8, 8], false, draw) };
    let Some(machine) = machines(Sweep::Schedules).next() else { return };
    let end = run(&wrong, DType::F32, machine).unwrap();
    let [param, _] = expected(&right);
    let magnitude = right.grad[7].abs() + right.param[7].abs() + 2.0 * right.velocity[7].abs() + 1.0;
    assert!((end.param[7] - param[7]).abs() > bounds::step(magnitude));
}

fn spec_of([momentum, dampening, weight_decay, _]: [f64; 4], nesterov: bool) -> Spec {
    Spec { momentum, dampening, nesterov, weight_decay }
}

/// Each row of torch's table on the host, in `T`, from a velocity that was never written.
fn host_follows_torch<T: residuum::tensor::Real>(bound: f64) {
    for &(numbers, nesterov, expected) in TORCH {
        let sgd = Sgd::new(spec_of(numbers, nesterov)).unwrap();
        let (mut param, mut velocity) = ([T::ONE], [T::from_f64(f64::NAN)]);
        for ((grad, expected), first) in [1.0, -0.5, 2.0].into_iter().zip(expected).zip([true, false, false]) {
            let state = StepState { lr: numbers[3], grad_scale: 1.0, first };
            step(&sgd, state, 1, &mut param, &[T::from_f64(grad)], &mut velocity);
            let off = (param[0].to_f64() - expected).abs();
            assert!(off <= bound, "{numbers:?} nesterov {nesterov}: {}, torch {expected}", param[0].to_f64());
        }
    }
}

#[test]
fn the_host_follows_torch() {
    host_follows_torch::<f64>(1e-12);
    host_follows_torch::<f32>(3e-7);
}

#[test]
fn kernels_follow_torch() {
    for machine in machines(Sweep::Quick) {
        for &(numbers, nesterov, expected) in TORCH {
            let spec = spec_of(numbers, nesterov);
            let (mut param, mut velocity) = (vec![1.0; 4], vec![f64::NAN; 4]);
            for ((grad, expected), first) in [1.0, -0.5, 2.0].into_iter().zip(expected).zip([true, false, false]) {
                let (state, grad) = (StepState { lr: numbers[3], grad_scale: 1.0, first }, vec![grad; 4]);
                let start = Start { spec, state, decay_end: 4, param, grad, velocity };
                let end = run(&start, DType::F32, machine).unwrap();
                let off = end.param.iter().map(|p| (p - expected).abs()).fold(0.0, f64::max);
                let label = format!("{numbers:?} nesterov {nesterov} on {}", machine.label);
                assert!(off <= 3e-7, "{label}: {:?}, torch {expected}", end.param);
                (param, velocity) = (end.param, end.velocity);
            }
        }
    }
}

/// Without momentum the velocity is not read, without decay the parameter is not: no NaN, no 0 times infinity.
#[test]
fn operands_without_weight_are_not_read() {
    let (spec, len) = (Spec { dampening: 0.5, ..SPECS[0] }, 4);
    let lost = vec![f64::NAN, f64::INFINITY, 1.0, -1.0];
    let start = Start {
        spec,
        state: StepState { lr: 0.125, grad_scale: 1.0, first: false },
        decay_end: len,
        param: vec![1.0, 1.0, f64::INFINITY, 2.0],
        grad: vec![1.0; len],
        velocity: lost.clone(),
    };
    let after = vec![0.875, 0.875, f64::INFINITY, 1.875];
    assert_eq!(expected(&start), [after.clone(), vec![1.0; len]]);
    for machine in machines(Sweep::Quick) {
        let end = run(&start, DType::F32, machine).unwrap();
        assert_eq!((end.param, end.velocity), (after.clone(), vec![1.0; len]), "{}", machine.label);
    }
}

/// A loss that is not finite skips the step; any other changes nothing.
#[test]
fn a_loss_that_is_not_finite_skips_the_step() {
    let draw = |r: &mut Random| r.integers(12, 1, 64);
    for machine in machines(Sweep::Quick) {
        for dtype in DTYPES {
            let start = start(SPECS[1], [12, 8], false, draw);
            let plain = run(&start, dtype, machine).unwrap();
            for loss in [0.0, -1.0, f64::from(f32::MAX)] {
                assert!(run_after(Some(loss), &start, dtype, machine).unwrap() == plain, "{}, {loss}", machine.label);
            }
            for loss in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let end = run_after(Some(loss), &start, dtype, machine).unwrap();
                assert!(end.param == start.param && end.velocity == start.velocity, "{}, {loss}", machine.label);
            }
        }
    }
}

/// A number that is not finite stays in its element; at the first step the velocity is ignored.
#[test]
fn a_number_that_is_not_finite_stays_in_its_element() {
    const AT: usize = 5;
    let draw = |r: &mut Random| r.integers(12, 1, 64);
    let Some(machine) = machines(Sweep::Quick).next() else { return };
    for spec in SPECS {
        for (first, v) in [(false, f64::NAN), (true, f64::INFINITY)] {
            let clean = start(*spec, [12, 8], first, draw);
            let before = run(&clean, DType::BF16, machine).unwrap();
            for tensor in 0..3 {
                let mut start = start(*spec, [12, 8], first, draw);
                [&mut start.param, &mut start.grad, &mut start.velocity][tensor][AT] = v;
                // The gradients are compared as numbers to see that they are unchanged: no NaN.
                if tensor == 1 && v.is_nan() {
                    start.grad[AT] = f64::NEG_INFINITY;
                }
                let after = run(&start, DType::BF16, machine).unwrap();
                let kept = |a: &[f64], b: &[f64]| (0..12).all(|i| i == AT || a[i] == b[i]);
                let [old, new] = [&before, &after].map(|e| e.copy.clone().unwrap());
                assert!(kept(&after.param, &before.param) && kept(&after.velocity, &before.velocity), "{spec:?}");
                assert!(kept(&new, &old), "{spec:?}");
                let counts = tensor < 2 || (!first && spec.momentum != 0.0);
                assert!(!counts || !after.param[AT].is_finite(), "{spec:?}: tensor {tensor} has no effect");
            }
        }
    }
}
