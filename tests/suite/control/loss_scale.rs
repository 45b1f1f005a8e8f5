//! The loss scale on kernels: the search for overflow, the decision, and its use by the loss and the optimizer.
//! Everything is exact.

use residuum::control::loss_scale::{flags, is_finite, launches, Buffers, LossScale, State, INTERVAL, LEAST, STATE};
use residuum::control::sgd;
use residuum::device::{Target, View};
use residuum::tensor::{DType, Elem};

use crate::harness::{decode, encode, machines, Data, Machine, Random, Sweep};

const LENGTHS: [usize; 4] = [4, 1024, 5_000, 1024 * 1024 + 1_028];

fn view(machine: &Machine, values: &[f64]) -> residuum::Result<View> {
    let bytes = encode(&Data::Real(values.to_vec()), Elem::Stat, DType::F32);
    let memory = machine.backend.allocate(bytes.len())?;
    memory.write(0, &bytes)?;
    Ok(View::whole(memory))
}

fn values(view: &View) -> residuum::Result<Vec<f64>> {
    Ok(decode(&view.read()?, Elem::Stat, DType::F32).real().to_vec())
}

/// The state after a run with gradients `grad`.
fn decide(machine: &Machine, grad: &[f64], state: State) -> residuum::Result<State> {
    decide_after(None, machine, grad, state)
}

/// The state after a run with a loss and gradients `grad`.
fn decide_after(loss: Option<f64>, machine: &Machine, grad: &[f64], state: State) -> residuum::Result<State> {
    let (grad_view, state) = (view(machine, grad)?, view(machine, &state.to_memory())?);
    // The flags' old content is ignored.
    let flags = view(machine, &vec![1.0; flags(grad.len())])?;
    let loss = loss.map(|loss| view(machine, &[loss])).transpose()?;
    let buffers = Buffers { grad: &grad_view, flags: &flags, loss: loss.as_ref(), state: &state, len: grad.len() };
    launches(&buffers).iter().try_for_each(|launch| machine.backend.launch(launch))?;
    machine.backend.synchronize()?;
    let state = values(&state)?;
    assert_eq!(state.len(), STATE);
    Ok(State::from_memory(&state))
}

fn with(scale: f64, good_steps: u32) -> State {
    State::new(LossScale { scale, good_steps }, false)
}

/// Runs `grad` on every machine, asserts that all decide as the host does, and returns the decision.
fn agreed(grad: &[f64], start: State) -> State {
    let finite = is_finite(grad);
    let expected = start.decide(finite);
    for machine in machines(Sweep::Schedules).filter(|m| !m.label.contains("replayed")) {
        let found = decide(machine, grad, start).unwrap_or_else(|e| panic!("{}: {e}", machine.label));
        assert_eq!(found, expected, "{} from {start:?}, finite {finite}", machine.label);
    }
    expected
}

#[test]
fn one_bad_gradient_among_many_skips_the_step() {
    for len in LENGTHS {
        // The longest list is long enough for a second round of the grid, and for flags that one block reads in rounds.
        let small = machines(Sweep::Schedules).next();
        let mut random = Random::new(&format!("loss scale {len}"));
        let mut grad = random.integers(len, -64, 64);
        grad[len / 2] = f64::from(f32::MAX);
        let places: &[usize] = if len > 5_000 { &[700 * 1024, len - 1] } else { &[0, len / 3, len - 1] };
        for &place in places {
            for bad in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
                let mut wrong = grad.clone();
                wrong[place] = bad;
                if len <= 5_000 {
                    assert!(!agreed(&grad, with(8.0, 5)).skip, "all {len} are finite");
                    assert!(agreed(&wrong, with(8.0, 5)).skip, "{bad} at {place} of {len}");
                } else if let Some(machine) = small {
                    assert!(!decide(machine, &grad, with(8.0, 5)).unwrap().skip);
                    assert!(decide(machine, &wrong, with(8.0, 5)).unwrap().skip, "{bad} at {place} of {len}");
                }
            }
        }
    }
}

#[test]
fn a_loss_that_is_not_finite_skips_the_step() {
    let (grad, start) = ([1.0, 2.0, -3.0, 0.0], with(8.0, 5));
    for machine in machines(Sweep::Schedules).filter(|m| !m.label.contains("replayed")) {
        for loss in [0.5, f64::from(f32::MAX), f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let found = decide_after(Some(loss), machine, &grad, start).unwrap();
            assert_eq!(found, start.decide(loss.is_finite()), "{}, {loss}", machine.label);
        }
    }
}

#[test]
fn the_scale_moves_as_torch_says() {
    let (good, bad) = ([1.0, 2.0, -3.0, 0.0], [1.0, f64::NAN, -3.0, 0.0]);
    let next = |grad: &[f64], scale, steps| {
        let LossScale { scale, good_steps } = agreed(grad, with(scale, steps)).next;
        (scale, good_steps)
    };
    assert_eq!(next(&good, 1024.0, 0), (1024.0, 1));
    assert_eq!(next(&good, 1024.0, INTERVAL - 2), (1024.0, INTERVAL - 1));
    assert_eq!(next(&good, 1024.0, INTERVAL - 1), (2048.0, 0));
    assert_eq!(next(&good, 2f64.powi(127), INTERVAL - 1), (2f64.powi(127), 0), "2^128 is no f32");
    assert_eq!(next(&bad, 1024.0, INTERVAL - 1), (512.0, 0));
    assert_eq!(next(&bad, 2.0, 7), (1.0, 0));
    assert_eq!(next(&bad, LEAST, 7), (LEAST, 0));
}

#[test]
fn the_first_step_is_the_first_that_is_taken() {
    let fresh = State::new(LossScale::default(), true);
    let skipped = agreed(&[f64::INFINITY, 0.0, 0.0, 0.0], fresh);
    assert!(skipped.skip && skipped.fresh && skipped.used == 65_536.0 && skipped.next.scale == 32_768.0);
    let taken = agreed(&[1.0, 0.0, 0.0, 0.0], skipped);
    assert!(!taken.skip && taken.first && !taken.fresh && taken.used == 32_768.0);
    let second = agreed(&[1.0, 0.0, 0.0, 0.0], taken);
    assert!(!second.skip && !second.first && second.next.good_steps == 2);
}

#[test]
fn impossible_scales_are_refused() {
    for scale in [0.0, -2.0, 0.5, 3.0, f64::NAN, f64::INFINITY, 2f64.powi(128)] {
        let text = LossScale { scale, good_steps: 0 }.check().expect_err("refused").to_string();
        assert!(text.contains("a power of two from 1 to 2^127"), "{text}");
    }
    assert!(LossScale { scale: 1.0, good_steps: INTERVAL }.check().is_err());
    for scale in [1.0, 2.0, 2f64.powi(127)] {
        LossScale { scale, good_steps: INTERVAL - 1 }.check().expect("possible");
    }
}

/// Parameters, velocities and working copy after an optimizer's step from the state `scale`.
fn step(machine: &Machine, scale: State, lr_and_first: [f64; 2]) -> residuum::Result<[Vec<f64>; 3]> {
    const LEN: usize = 1028;
    let whole = |f: &dyn Fn(usize) -> f64| view(machine, &(0..LEN).map(f).collect::<Vec<_>>());
    let (param, grad) = (whole(&|i| i as f64 % 61.0)?, whole(&|i| 4.0 * (i as f64 % 7.0))?);
    let velocity = whole(&|i| i as f64 % 5.0)?;
    let copy = View::whole(machine.backend.allocate(2 * LEN)?);
    copy.write(&vec![0; 2 * LEN])?;
    let (control, state) = (view(machine, &lr_and_first)?, view(machine, &scale.to_memory())?);
    let spec = sgd::Spec { momentum: 0.5, dampening: 0.0, nesterov: false, weight_decay: 0.0 };
    let buffers = sgd::Buffers {
        param: &param,
        grad: &grad,
        velocity: &velocity,
        copy: Some(&copy),
        control: &control,
        loss_scale: Some(&state),
        loss: None,
        grad_scale: 2.0,
        len: LEN,
        decay_end: LEN,
    };
    let target = Target { arch: machine.backend.arch(), dtype: DType::F16 };
    machine.backend.launch(&sgd::launch(&sgd::Sgd::new(spec)?, target, &buffers))?;
    let copy = decode(&copy.read()?, Elem::Real, DType::F16).real().to_vec();
    Ok([values(&param)?, values(&velocity)?, copy])
}

#[test]
fn the_optimizer_obeys() {
    let scale = |used, skip, first| State { used, skip, first, ..with(1024.0, 3) };
    for machine in machines(Sweep::Schedules).filter(|m| !m.label.contains("replayed")) {
        let run = |state| step(machine, state, [0.5, 0.0]).unwrap_or_else(|e| panic!("{}: {e}", machine.label));
        let [param, velocity, copy] = run(scale(2.0, true, false));
        for i in 0..param.len() {
            let before = [i as f64 % 61.0, i as f64 % 5.0, 0.0];
            assert_eq!([param[i], velocity[i], copy[i]], before, "{}: {i} is skipped", machine.label);
        }
        for first in [false, true] {
            let [param, velocity, copy] = run(scale(2.0, false, first));
            for i in 0..param.len() {
                let v = i as f64 % 7.0 + if first { 0.0 } else { 0.5 * (i as f64 % 5.0) };
                let p = i as f64 % 61.0 - 0.5 * v;
                assert_eq!([param[i], velocity[i], copy[i]], [p, v, p], "{}: {i}, first {first}", machine.label);
            }
        }
    }
}
