//! Batch norms of channels that are constant, or nearly: y is beta, and the gradient of gamma is 0.

use residuum::device::{Device, Target, View};
use residuum::graph::{Builder, ConvOptions, Graph, Interpreter, LossOptions, Mode, Program};
use residuum::ops::batch_norm::{BatchNorm, Spec, Train};
use residuum::ops::pool::{Kind, Window};
use residuum::ops::{norm, Arg, Call, HostIo, HostMut, HostRef, Io, Op, Operator, Write};
use residuum::tensor::{DType, Elem, HostTensor, Real, StateDict};

use crate::bounds::{moved, U};
use crate::harness::{check, check_dtype, decode, encode, Case, Compare, Data, Sweep};
use crate::machine::devices;
use crate::named::rules;
use crate::random::Random;
use crate::sweep::{machines, Machine};

const EPS: f64 = 1e-5;
const BETA: f64 = 0.5;

/// A channel's value, and torch 2.11's distance from beta on the CPU in f32, f16 and bf16, NCHW.
const TORCH: [(f64, [f64; 3]); 8] = [
    (100.1, [8.762e-4, 9.766e-4, 0.0]),
    (1000.3, [7.849e-3, 8.545e-3, 3.906e-3]),
    (10000.3, [8.342e-2, 2.686e-2, 1.172e-1]),
    (-100.1, [8.762e-4, 9.766e-4, 0.0]),
    (-1000.3, [7.849e-3, 8.301e-3, 1.954e-3]),
    (-10000.3, [8.342e-2, 2.686e-2, 1.172e-1]),
    (12345.678, [7.458e-2, 1.208e-1, 4.883e-2]),
    (0.0, [0.0; 3]),
];

/// Runs the training pass on images of constant channels; gives y, mean, invstd and the running statistics.
fn train<T: Real>(host: bool, rows: usize, x: &[f64]) -> [Vec<f64>; 5] {
    let c = x.len();
    let bn = BatchNorm::new(Spec { x: [1, 1, rows, c], eps: EPS, momentum: 0.5 }).unwrap();
    let op = Op::BatchNorm(bn.train(false).unwrap());
    let real = |v: Vec<f64>| v.into_iter().map(T::from_f64).collect::<Vec<T>>();
    let inputs = [real((0..rows * c).map(|i| x[i % c]).collect()), real(vec![1.0; c]), real(vec![BETA; c])];
    run(host, &op, &inputs, [rows * c, c, c, c, c])
}

fn run<T: Real, const N: usize>(host: bool, op: &Op, inputs: &[Vec<T>], lens: [usize; N]) -> [Vec<f64>; N] {
    let way = op.host::<T>();
    let mut outputs = lens.map(|len| vec![T::from_f64(2.0); len]);
    let mut scratch = vec![T::from_f64(f64::NAN); way.host_scratch()];
    let mut io = HostIo {
        inputs: inputs.iter().map(|v| HostRef::Real(v)).collect(),
        outputs: outputs.iter_mut().map(|v| HostMut::Real(v)).collect(),
        writes: vec![Write::Overwrite; N],
        scratch: &mut scratch,
    };
    if host {
        way.host(&mut io);
    } else {
        way.reference(&mut io);
    }
    outputs.map(|v| v.into_iter().map(|v| v.to_f64()).collect())
}

fn is_beta_on_the_host<T: Real>() {
    let x: Vec<f64> = TORCH.iter().map(|row| row.0).chain([1e-3, 1e5 + 0.3, -3e7, 1e12, 1.0 / 3.0]).collect();
    for rows in [2, 3, 7, 100, 4099, 100_000 / x.len() * 7] {
        for host in [true, false] {
            let [y, mean, invstd, running_mean, running_var] = train::<T>(host, rows, &x);
            let at = |k: usize| format!("{} bytes, host {host}, {rows} rows of {}", size_of::<T>(), x[k]);
            y.iter().enumerate().for_each(|(i, &y)| assert_eq!(y, BETA, "y of {}", at(i % x.len())));
            for k in 0..x.len() {
                assert_eq!(mean[k], T::from_f64(x[k]).to_f64(), "mean of {}", at(k));
                assert_eq!(invstd[k], T::from_f64(1.0 / EPS.sqrt()).to_f64(), "invstd of {}", at(k));
                assert_eq!(running_mean[k], T::from_f64(0.5 * 2.0 + 0.5 * mean[k]).to_f64(), "{}", at(k));
                assert_eq!(running_var[k], 1.0, "variance of {}", at(k));
            }
        }
    }
}

#[test]
fn the_host_gives_exactly_beta() {
    is_beta_on_the_host::<f32>();
    is_beta_on_the_host::<f64>();
}

/// At inference, too, if the running mean is the channel's value.
#[test]
fn the_host_gives_exactly_beta_at_inference() {
    let x: Vec<f32> = TORCH.iter().map(|row| row.0 as f32).collect();
    let c = x.len();
    let bn = BatchNorm::new(Spec { x: [1, 1, 9, c], eps: EPS, momentum: 0.1 }).unwrap();
    let op = Op::BatchNorm(bn.infer(false));
    let inputs = [x.repeat(9), vec![1.5; c], vec![BETA as f32; c], x, vec![0.0; c]];
    for host in [true, false] {
        let [y] = run(host, &op, &inputs, [9 * c]);
        assert!(y.iter().all(|&y| y == BETA), "{y:?}");
    }
}

/// One element is the next larger number: the exact y is beta plus up to 316 times that difference.
#[test]
fn the_host_keeps_a_step_of_one_place() {
    for x in TORCH.map(|row| row.0 as f32) {
        let next = f32::from_bits(x.to_bits() + 1);
        for rows in [2usize, 3, 50, 5000] {
            let bn = BatchNorm::new(Spec { x: [1, 1, rows, 1], eps: EPS, momentum: 0.5 }).unwrap();
            for odd in [0, rows - 1] {
                let column: Vec<f32> = (0..rows).map(|i| if i == odd { next } else { x }).collect();
                let inputs = [column.clone(), vec![1.0], vec![BETA as f32]];
                let op = Op::BatchNorm(bn.train(false).unwrap());
                let [y, ..] = run(true, &op, &inputs, [rows, 1, 1, 1, 1]);
                let step = f64::from(next) - f64::from(x);
                let share = step / rows as f64;
                let var = share * (step - share);
                for (i, y) in y.iter().enumerate() {
                    let off = if i == odd { step - share } else { -share };
                    let exact = BETA + off / (var + EPS).sqrt();
                    assert!((y - exact).abs() <= 1e-6, "{x} of {rows}, element {i}: {y}, exactly {exact}");
                }
            }
        }
    }
}

/// Each channel's value at every pixel; the harness rounds it to the storage type.
fn constant(shape: [usize; 4], numbers: &[f64]) -> Data {
    Data::Real((0..shape.iter().product()).map(|i| numbers[i % shape[3] % numbers.len()]).collect())
}

/// On kernels mean and variance are exact; y is exact in the unfused pass, which subtracts the mean.
#[test]
fn kernels_take_exact_statistics() {
    let numbers = [100.1, -10000.3, 0.0, 54321.7, -1e-3, 12345.678, 3e4];
    for shape in [[2, 1, 1, 9], [3, 1, 1, 7], [4, 8, 8, 16], [1, 61, 67, 3], [1, 300, 300, 2]] {
        let (c, name) = (shape[3], format!("constant channels {shape:?}"));
        let bn = BatchNorm::new(Spec { x: shape, eps: EPS, momentum: 0.5 }).unwrap();
        let moments = Op::Norm(norm::Node { x: shape, pass: norm::Pass::Measure });
        check(&Case::exact(&name, moments, vec![constant(shape, &numbers)]).sliced(), Sweep::Quick);
        let of_channels = |v: f64| Data::Real(vec![v; c]);
        let inputs = vec![constant(shape, &numbers), of_channels(1.0), of_channels(BETA)];
        let train = Op::BatchNorm(bn.train(false).unwrap());
        let case = Case::bounded(name, train, inputs, |j| {
            let Train { mean, invstd, .. } = j.numbers(Train::default());
            let invstd = Compare::Within(invstd.iter().map(|s| 4.0 * U * s).collect());
            let running_mean = Compare::Within(mean.iter().map(|&m| moved(2.0, m, 0.5, 0.0)).collect());
            let exact = Train::default().map(|_, ()| (), |_, ()| Compare::Exact);
            rules(Train { invstd, running_mean, ..exact })
        });
        check(&case.updating(vec![of_channels(2.0), of_channels(2.0)]).sliced(), Sweep::Quick);
    }
}

/// A mean whose square overflows f32: no infinity is multiplied by 0.
#[test]
fn huge_numbers_are_numbers() {
    let shape = [1, 61, 67, 3];
    let x = constant(shape, &[1e20, -3e30, 1e38]);
    check_dtype(
        &Case::exact("huge", Op::Norm(norm::Node { x: shape, pass: norm::Pass::Measure }), vec![x]),
        DType::F32,
        Sweep::Quick,
    );
    for host in [true, false] {
        let [y, mean, invstd, ..] = train::<f32>(host, 4099, &[1e20, -3e30, 1e38]);
        assert!(y.iter().all(|&y| y == BETA), "host {host}: {:?}", &y[..3]);
        assert_eq!(mean, [1e20, -3e30, 1e38].map(|v| f64::from(v as f32)), "host {host}");
        assert_eq!(invstd, [f64::from((1.0 / EPS.sqrt()) as f32); 3], "host {host}");
    }
}

/// Scale and shift of `norm_affine` for these channels.
fn line(machine: &Machine, numbers: &[Vec<f64>; 4]) -> [Vec<f64>; 2] {
    let c = numbers[0].len();
    let op = norm::Node { x: [1, 1, 2, c], pass: norm::Pass::Scale { eps: EPS, momentum: 0.5 } };
    let arg = |v: &[f64]| {
        let memory = machine.backend.allocate(4 * c).unwrap();
        memory.write(0, &encode(&Data::Real(v.to_vec()), Elem::Stat, DType::F32)).unwrap();
        Arg { view: View::whole(memory), pixel_stride: c, write: Write::Overwrite }
    };
    let (inputs, outputs) = (numbers.each_ref().map(|v| arg(v)), [0; 4].map(|_| arg(&vec![0.0; c])));
    let target = Target { arch: machine.backend.arch(), dtype: DType::F32 };
    let io = Io { inputs: &inputs, outputs: &outputs, scratch: None };
    op.launches(target, &io).unwrap().iter().for_each(|launch| machine.backend.launch(launch).unwrap());
    machine.backend.synchronize().unwrap();
    [0, 1].map(|i| decode(&outputs[i].view.read().unwrap(), Elem::Stat, DType::F32).real().to_vec())
}

/// A multiply-add replaces a subtraction, a product and a sum: at the mean, y is off by at most the rounding of the
/// shift. If the mean is many deviations, it is off far less, and hardly more elsewhere.
#[test]
fn the_line_passes_near_beta() {
    let mut random = Random::new("line");
    let c = 4000;
    let mut draw = |low: f64, high: f64| random.reals(c, low, high).iter().map(|&v| DType::F32.round(v)).collect();
    let (gamma, beta, exponent): (Vec<f64>, Vec<f64>, Vec<f64>) = (draw(0.2, 2.0), draw(-2.0, 2.0), draw(-2.0, 13.0));
    for var in [0.0, 1e-3, 4.0] {
        let mean: Vec<f64> = exponent.iter().zip(&beta).map(|(e, b)| DType::F32.round(b.signum() * e.exp())).collect();
        let deviation = (var + EPS).sqrt();
        for machine in machines(Sweep::Quick) {
            let numbers = [gamma.clone(), beta.clone(), mean.clone(), vec![var; c]];
            let [scale, shift] = line(machine, &numbers);
            let (mut far, mut rounded) = (0.0, 0.0);
            for k in 0..c {
                let label = format!("{} mean {} variance {var}", machine.label, mean[k]);
                let place = U * (mean[k] * scale[k]).abs();
                let off = (mean[k] * scale[k] + shift[k] - beta[k]).abs();
                assert!(off <= place + U * beta[k].abs(), "{label}: {off:e} from beta at the mean");
                let slope = gamma[k] / deviation;
                let steps = (mean[k].abs() / (64.0 * deviation)).min(32.0);
                let allowed = (4.0 + 2.0 * steps) * U * slope.abs();
                assert!((scale[k] - slope).abs() <= allowed, "{label}: scale {} for {slope}", scale[k]);
                if steps >= 8.0 {
                    far += off;
                    rounded += place / 2.0;
                }
            }
            // The nearest of at least 17 lines is chosen: on average a seventeenth of one line's error.
            assert!(far < 0.15 * rounded, "{}: {far:e} of {rounded:e} at variance {var}", machine.label);
        }
    }
}

/// Every pixel of a channel is its value in [`TORCH`]; the other layers do not change it.
fn graph(path: &str) -> Graph {
    let c = TORCH.len();
    let mut b = Builder::new(Mode::Train);
    let conv = ConvOptions { k: c, ..Default::default() };
    let input = b.input("input", [2, 6, 6, c]);
    let x = if path == "plain" { input } else { b.conv2d("first", input, conv).unwrap() };
    let y = b.batch_norm("bn", x, EPS).unwrap();
    let window = Window::Sliding { kernel: [2; 2], stride: [2; 2], padding: [0; 2], ceil: false };
    let z = match path {
        "plain" => y,
        "convolution" => b.relu(y).and_then(|z| b.conv2d("second", z, conv)).unwrap(),
        "pool" => b.relu(y).and_then(|z| b.pool(z, window, Kind::Max)).unwrap(),
        "mean" => b.pool(y, window, Kind::Average { count_padding: false }).unwrap(),
        "block" => {
            let zeros = b.conv2d("zeros", input, conv).unwrap();
            let end = b.add(y, zeros).unwrap();
            b.relu(end).and_then(|z| b.conv2d("second", z, conv)).unwrap()
        }
        _ => unreachable!("{path}"),
    };
    b.output("z", z);
    let pooled = b.pool(z, Window::Adaptive([1, 1]), Kind::Average { count_padding: false }).unwrap();
    let logits = b.linear("fc", pooled, 3).unwrap();
    b.loss(logits, LossOptions::default()).unwrap();
    let mut graph = b.finish();
    graph.differentiate().unwrap();
    graph
}

fn state(graph: &Graph) -> StateDict {
    let c = TORCH.len();
    let mut random = Random::new("constant");
    let parameters = graph.parameters().iter().map(|p| {
        let v = match &*p.name {
            "bn.weight" => vec![1.0; c],
            "bn.bias" => vec![BETA as f32; c],
            "zeros.weight" => vec![0.0; c * c],
            "fc.weight" | "fc.bias" => (0..p.shape.len()).map(|_| random.unit() as f32 - 0.5).collect(),
            _ => (0..c * c).map(|i| f32::from(u8::from(i / c == i % c))).collect(),
        };
        (p.name.clone(), HostTensor::f32(p.shape.clone(), v))
    });
    let buffers = graph.buffers().iter().map(|b| (b.name.clone(), HostTensor::f32(b.shape.clone(), vec![1.0; c])));
    parameters.chain(buffers).collect()
}

fn images(dtype: DType) -> HostTensor {
    let c = TORCH.len();
    let pixels = (0..2 * c * 36).map(|i| dtype.round(TORCH[i / 36 % c].0) as f32).collect();
    HostTensor::f32([2, c, 6, 6], pixels)
}

#[test]
fn programs_are_at_least_as_near_to_beta_as_torch() {
    for path in ["plain", "convolution", "pool", "mean", "block"] {
        let graph = graph(path);
        let state = state(&graph);
        for device in devices("constant channels") {
            for (column, dtype) in [DType::F32, DType::F16, DType::BF16].into_iter().enumerate() {
                let label = format!("{path} in {dtype} on {}", device.kind());
                let mut program = Program::compile(&graph, &device, dtype, None).unwrap();
                program.load(&state).unwrap();
                program.set_input("input", &images(dtype)).unwrap();
                program.set_labels(&[0, 2]).unwrap();
                program.run().unwrap();
                let z: Vec<f64> = program.output("z").unwrap().to_real();
                let pixels = z.len() / 2 / TORCH.len();
                for (i, z) in z.iter().enumerate() {
                    let (x, torch) = TORCH[i / pixels % TORCH.len()];
                    let allowed = if matches!(device, Device::Cpu) { 0.0 } else { torch[column] };
                    let off = (z - BETA).abs();
                    assert!(
                        off <= allowed.max(0.5 * dtype.epsilon() * BETA),
                        "{label}: {x} gives {z}, torch is off {allowed}"
                    );
                }
                check_statistics(&label, &program, dtype);
            }
        }
    }
}

/// The running statistics move towards the value and 0; gamma's gradient is 0, beta's is not.
fn check_statistics(label: &str, program: &Program, dtype: DType) {
    let state = program.state().unwrap();
    let [means, vars]: [Vec<f64>; 2] = ["bn.running_mean", "bn.running_var"].map(|name| state[name].to_real());
    let gradients = program.gradients().unwrap();
    let [dgamma, dbeta]: [Vec<f64>; 2] = ["bn.weight", "bn.bias"].map(|name| gradients[name].to_real());
    for (k, (x, _)) in TORCH.iter().enumerate() {
        let mean = 0.9 + 0.1 * dtype.round(*x);
        assert!((means[k] - mean).abs() <= 2e-7 * mean.abs(), "{label}: {x} has the running mean {}", means[k]);
        assert!((vars[k] - 0.9).abs() <= 1e-7, "{label}: {x} has the running variance {}", vars[k]);
        assert_eq!(dgamma[k], 0.0, "{label}: the gradient of gamma at {x}");
    }
    assert!(dbeta.iter().any(|g| g.abs() > 1e-3), "{label}: {dbeta:?}");
}

/// The interpreter in f64, which judges programs, is exact itself.
#[test]
fn the_interpreter_gives_exactly_beta() {
    let graph = graph("convolution");
    let mut it = Interpreter::<f64>::new(&graph, DType::F64);
    it.load(&state(&graph)).unwrap();
    it.set_input("input", &images(DType::F64)).unwrap();
    it.set_labels(&[0, 2]).unwrap();
    it.run();
    let z: Vec<f64> = it.output("z").unwrap().to_real();
    assert!(z.iter().all(|&z| z == BETA), "{z:?}");
}
