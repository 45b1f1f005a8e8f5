//! Graphs wired unlike any network of the table, on every device against the reference executor: fusion must not change
//! their results. An error here is as large as the gradient itself.

mod blocks;
mod random;

use residuum::device::sim::{Copies, Schedule, SimOptions};
use residuum::device::{Arch, Device};
use residuum::graph::{Builder, ConvOptions, Graph, Interpreter, LossOptions, Mode, ParameterKind, Program, ValueId};
use residuum::ops::pool::{Kind, Window};
use residuum::tensor::{DType, HostTensor, Shape, StateDict};
use residuum::Result;

use crate::bounds;
use crate::distance::{difference, norm};
use crate::machine;
use crate::random::Random;

const CLASSES: usize = 4;

/// The eps of batch norms in random graphs: large enough that a constant channel does not amplify rounding.
const EPS: f64 = 0.1;

/// A graph with its inputs, and its outputs besides gradients and running statistics.
struct Case {
    graph: Graph,
    outputs: Vec<String>,
    state: StateDict,
    pixels: HostTensor,
    labels: Vec<i32>,
    gates: Vec<bool>,
}

impl Case {
    /// The graph in `b`, with `logits`, on data drawn from `seed`.
    fn new(mut b: Builder, logits: ValueId, mut outputs: Vec<String>, seed: &str) -> Result<Self> {
        b.output("logits", logits);
        b.loss(logits, LossOptions { smoothing: 0.1, ..Default::default() })?;
        outputs.extend(["logits".into(), "loss".into()]);
        let mut graph = b.finish();
        if graph.mode() == Mode::Train {
            graph.differentiate()?;
        }
        let mut random = Random::new(seed);
        let [n, h, w, c] = graph.input("input").unwrap().shape.nhwc().unwrap();
        let pixels = random.normals(n * h * w * c, 0.3, 1.0).into_iter().map(|v| v as f32).collect();
        let (state, labels) = (state(&graph, &mut random), random.labels(n, CLASSES));
        let gates = graph.survival().iter().map(|_| random.below(2) == 0).collect();
        Ok(Self { graph, outputs, state, pixels: HostTensor::f32([n, c, h, w], pixels), labels, gates })
    }

    fn results(&self, output: impl Fn(&str) -> HostTensor, gradients: StateDict, state: StateDict) -> StateDict {
        let mut all: StateDict = gradients.into_iter().map(|(name, t)| (format!("grad.{name}"), t)).collect();
        all.extend(state.into_iter().filter(|(name, _)| name.contains("running")));
        all.extend(self.outputs.iter().map(|name| (name.clone(), output(name))));
        all
    }

    fn reference(&self, dtype: DType) -> StateDict {
        let mut it = Interpreter::<f64>::new(&self.graph, dtype);
        it.load(&self.state).unwrap();
        it.set_input("input", &self.pixels).unwrap();
        it.set_labels(&self.labels).unwrap();
        let train = self.graph.mode() == Mode::Train;
        if train {
            it.set_gates(&self.gates).unwrap();
        }
        it.run();
        let gradients = if train { it.gradients() } else { StateDict::new() };
        self.results(|name| it.output(name).unwrap(), gradients, it.state())
    }

    /// The results of a run; a second run must repeat their bits.
    fn run(&self, graph: &Graph, device: &Device, dtype: DType) -> StateDict {
        let mut program = Program::compile(graph, device, dtype, None).unwrap();
        if graph.mode() == Mode::Train {
            program.set_gates(&self.gates).unwrap();
        }
        let mut run = || {
            program.load(&self.state).unwrap();
            program.set_input("input", &self.pixels).unwrap();
            program.set_labels(&self.labels).unwrap();
            program.run().unwrap();
            program.synchronize().unwrap();
            let output = |name: &str| program.output(name).unwrap();
            self.results(output, program.gradients().unwrap(), program.state().unwrap())
        };
        let first = run();
        assert!(first == run(), "a second run leaves other bits");
        first
    }

    /// Fails if a device disagrees with the reference executor.
    fn check(&self) {
        let exact = self.reference(DType::F64);
        self.compare(&self.run(&self.graph, &Device::cpu(), DType::F64), &exact, &exact, 1e-7);
        let rounded = self.reference(DType::F32);
        let mut again = self.graph.clone();
        again.recompute();
        let mut first: Option<StateDict> = None;
        for device in simulators() {
            for graph in [&self.graph, &again] {
                let found = self.run(graph, &device, DType::F32);
                self.compare(&found, &exact, &rounded, bounds::WIRING);
                assert!(*first.get_or_insert_with(|| found.clone()) == found, "other bits on {device:?}");
            }
        }
        if let Some(gpu) = machine::gpu("a wiring") {
            self.compare(&self.run(&self.graph, &Device::Kernels(gpu), DType::F32), &exact, &rounded, bounds::WIRING);
        }
    }

    /// Fails if `found` is off by more than `bound` and the effect of rounding. Errors are relative to the tensor, but
    /// at least to a hundredth of the largest gradient.
    fn compare(&self, found: &StateDict, exact: &StateDict, rounded: &StateDict, bound: f64) {
        let largest =
            exact.iter().filter(|(name, _)| name.starts_with("grad.")).map(|(_, t)| norm(t)).fold(0.0, f64::max);
        for (name, tensor) in found {
            let least = if name.starts_with("grad.") { 0.01 * largest } else { 1e-6 };
            let scale = norm(&exact[name]).max(least);
            let noise = difference(&rounded[name], &exact[name]) / scale;
            let (off, allowed) = (difference(tensor, &exact[name]) / scale, bounds::wiring(bound, noise));
            assert!(off <= allowed, "{name}: off by {off:e}, allowed {allowed:e}");
        }
    }
}

/// Checks the graphs of the first `seeds` seeds; fails if many of them cannot be differentiated.
fn check_seeds(seeds: usize, case: impl Fn(usize) -> Result<Case>) {
    let mut refused = 0;
    for seed in 0..seeds {
        match case(seed) {
            Ok(case) => {
                println!("seed {seed}"); // shown on failure
                case.check();
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused * 10 < seeds, "{refused} of {seeds} graphs cannot be differentiated");
}

/// Threads in order, and an adversarial schedule.
fn simulators() -> Vec<Device> {
    if !(cfg!(feature = "sim") && machine::wanted("sim")) {
        return Vec::new();
    }
    let adversary =
        SimOptions { schedule: Schedule::Priority { depth: 3 }, copies: Copies::Random, ..Default::default() };
    [SimOptions::default(), adversary].into_iter().map(|options| Device::sim(options).unwrap()).collect()
}

/// Random parameters and running statistics that keep activations at about 1.
fn state(graph: &Graph, random: &mut Random) -> StateDict {
    let mut tensor = |shape: &Shape, mean: f64, spread: f64| {
        let values = random.reals(shape.len(), mean - spread, mean + spread);
        HostTensor::f32(shape.clone(), values.into_iter().map(|v| v as f32).collect())
    };
    let mut state = StateDict::new();
    for p in graph.parameters() {
        let terms: usize = p.shape.dims()[1..].iter().product();
        let (mean, spread) = match p.kind {
            ParameterKind::BatchNormWeight => (1.0, 0.4),
            ParameterKind::BatchNormBias | ParameterKind::Bias => (0.0, 0.4),
            ParameterKind::ConvWeight | ParameterKind::LinearWeight => (0.0, (3.0 / terms as f64).sqrt()),
        };
        state.insert(p.name.clone(), tensor(&p.shape, mean, spread));
    }
    for b in graph.buffers() {
        let mean = if b.name.ends_with("var") { 1.0 } else { 0.0 };
        state.insert(b.name.clone(), tensor(&b.shape, mean, 0.5));
    }
    state
}

/// A terse builder.
struct Net {
    b: Builder,
    layers: usize,
}

impl Net {
    fn name(&mut self) -> String {
        self.layers += 1;
        format!("layer{}", self.layers)
    }

    /// A convolution that keeps the size.
    fn conv(&mut self, x: ValueId, k: usize, kernel: usize) -> ValueId {
        let options = ConvOptions { k, kernel: [kernel; 2], padding: [kernel / 2; 2], ..Default::default() };
        let name = self.name();
        self.b.conv2d(&name, x, options).unwrap()
    }

    fn norm(&mut self, x: ValueId) -> ValueId {
        let name = self.name();
        self.b.batch_norm(&name, x, 1e-5).unwrap()
    }

    fn relu(&mut self, x: ValueId) -> ValueId {
        self.b.relu(x).unwrap()
    }

    fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.b.add(a, b).unwrap()
    }

    fn concat(&mut self, parts: &[ValueId]) -> ValueId {
        self.b.concat(parts).unwrap()
    }
}

/// Checks the [`graph`] of `layers`.
fn check(layers: impl FnOnce(&mut Net, ValueId) -> Vec<ValueId>) {
    graph([5, 6], layers).check();
}

/// The training graph of `layers` on images of 4 channels. Its logits are the sum of a linear layer over the mean pixel
/// of each result of `layers`.
fn graph([h, w]: [usize; 2], layers: impl FnOnce(&mut Net, ValueId) -> Vec<ValueId>) -> Case {
    let mut net = Net { b: Builder::new(Mode::Train), layers: 0 };
    let x = net.b.input("input", [2, h, w, 4]);
    let ends = layers(&mut net, x);
    let mut logits: Option<ValueId> = None;
    for end in ends {
        let (name, window) = (net.name(), Window::Adaptive([1; 2]));
        let mean = net.b.pool(end, window, Kind::Average { count_padding: false }).unwrap();
        let part = net.b.linear(&name, mean, CLASSES).unwrap();
        logits = Some(logits.map_or(part, |sum| net.add(sum, part)));
    }
    Case::new(net.b, logits.unwrap(), Vec::new(), "wiring").unwrap()
}

/// The convolution reads the gradient of the block's end, and adds its own to it, since it is also the shortcut's.
#[test]
fn a_block_of_one_convolution() {
    for (k, relu) in [(6, true), (6, false), (8, true), (8, false)] {
        check(|net, x| {
            let x = net.conv(x, k, 3);
            let branch = net.conv(x, k, 3);
            let branch = net.norm(branch);
            let y = net.add(branch, x);
            vec![if relu { net.relu(y) } else { y }]
        });
    }
}

/// The gradient of the shortcut grows between the batch norm that reads it first and the convolution before that.
#[test]
fn a_layer_between_a_convolution_and_its_norm() {
    for relu in [true, false] {
        check(|net, x| {
            let x = net.conv(x, 6, 3);
            let branch = net.conv(x, 6, 3);
            let beside = net.conv(x, 3, 3);
            let branch = net.norm(branch);
            let y = net.add(branch, x);
            vec![if relu { net.relu(y) } else { y }, beside]
        });
    }
}

/// The gradient of the sum belongs to both operands: masking it for one must leave it for the other.
#[test]
fn a_sum_of_a_blocks_end_and_an_older_value() {
    check(|net, x| {
        let old = net.conv(x, 6, 3);
        let beside = net.conv(old, 3, 3);
        let (branch, shortcut) = (net.conv(x, 6, 3), net.conv(x, 6, 1));
        let branch = net.norm(branch);
        let y = net.add(branch, shortcut);
        let y = net.relu(y);
        vec![net.add(y, old), beside]
    });
}

/// The shortcut's batch norm adds to the gradient that the branch's convolution has yet to correct: the layer that
/// would add in its place comes between that convolution and its batch norm.
#[test]
fn a_norm_of_a_shortcut_beside_a_convolution_and_its_norm() {
    for relu in [true, false] {
        check(|net, x| {
            let shortcut = net.conv(x, 6, 3);
            let beside = net.norm(shortcut);
            let beside = net.relu(beside);
            let branch = net.conv(x, 6, 3);
            let beside = net.conv(beside, 3, 3);
            let branch = net.norm(branch);
            let y = net.add(branch, shortcut);
            vec![if relu { net.relu(y) } else { y }, beside]
        });
    }
}

/// That layer is the convolution itself, which would add to gradients that its other tiles have yet to read.
#[test]
fn a_block_of_one_convolution_between_two_norms() {
    for relu in [true, false] {
        // Several tiles of rows.
        let case = graph([13, 14], |net, x| {
            let x = net.conv(x, 6, 3);
            let branch = net.norm(x);
            let branch = net.relu(branch);
            let branch = net.conv(branch, 6, 3);
            let branch = net.norm(branch);
            let y = net.add(branch, x);
            vec![if relu { net.relu(y) } else { y }]
        });
        case.check();
    }
}

/// A concatenation under a batch norm has one gradient buffer, corrected by its readers: here a part's batch norm.
#[test]
fn a_norm_of_a_concatenated_norm() {
    check(|net, x| {
        let (first, second) = (net.conv(x, 3, 3), net.conv(x, 5, 3));
        let second = net.norm(second);
        let whole = net.concat(&[first, second]);
        let whole = net.norm(whole);
        let whole = net.relu(whole);
        vec![net.conv(whole, 6, 1)]
    });
}

/// Here the reader is the end of a residual block.
#[test]
fn a_norm_of_a_concatenated_block() {
    for relu in [true, false] {
        check(|net, x| {
            let (first, second) = (net.conv(x, 3, 3), net.conv(x, 5, 3));
            let branch = net.conv(second, 5, 3);
            let branch = net.norm(branch);
            let y = net.add(branch, second);
            let y = if relu { net.relu(y) } else { y };
            let whole = net.concat(&[first, y]);
            let whole = net.norm(whole);
            let whole = net.relu(whole);
            vec![net.conv(whole, 6, 1)]
        });
    }
}

/// The batch norm whose gradient overwrites the shared buffer comes first, whatever the order of the convolutions.
#[test]
fn two_norms_of_one_concatenation() {
    for swapped in [true, false] {
        check(|net, x| {
            let (first, second) = (net.conv(x, 3, 3), net.conv(x, 5, 3));
            let whole = net.concat(&[first, second]);
            let mut branches = [0; 2].map(|_| {
                let branch = net.norm(whole);
                net.relu(branch)
            });
            if swapped {
                branches.reverse();
            }
            branches.map(|branch| net.conv(branch, 4, 3)).to_vec()
        });
    }
}

/// A 1x1 convolution computes the block end that it reads, whatever else reads it, before or after.
#[test]
fn an_end_of_a_block_that_a_convolution_takes() {
    for (wiring, taken) in [(0, 1), (1, 1), (2, 1), (3, 0)] {
        let case = graph([5, 6], |net, x| {
            let x = net.conv(x, 8, 3);
            let mut branch = x;
            for _ in 0..2 {
                branch = net.conv(branch, 8, 3);
                branch = net.norm(branch);
            }
            let shortcut = if wiring == 0 { net.conv(x, 8, 1) } else { x };
            let shortcut = if wiring == 0 { net.norm(shortcut) } else { shortcut };
            let y = net.add(branch, shortcut);
            let y = net.relu(y);
            match wiring {
                // After it: a convolution and the next block's end.
                0 => {
                    let (first, beside) = (net.conv(y, 8, 1), net.conv(y, 5, 3));
                    let next = net.norm(first);
                    let next = net.add(next, y);
                    vec![net.relu(next), beside]
                }
                // Before it a convolution, after it another 1x1 convolution.
                1 => {
                    let ends = [(5, 3), (12, 1), (8, 1)].map(|(k, kernel)| net.conv(y, k, kernel));
                    ends.map(|end| net.norm(end)).to_vec()
                }
                // Its output is a slice of a concatenation.
                2 => {
                    let (first, beside) = (net.conv(y, 8, 1), net.conv(x, 3, 3));
                    let whole = net.concat(&[beside, first]);
                    let whole = net.norm(whole);
                    let whole = net.relu(whole);
                    vec![net.conv(whole, 6, 1)]
                }
                // The block end itself is a slice: it stays a pass.
                _ => {
                    let (first, beside) = (net.conv(y, 8, 1), net.conv(x, 3, 3));
                    let whole = net.concat(&[y, beside]);
                    let (whole, first) = (net.norm(whole), net.norm(first));
                    vec![net.conv(whole, 6, 1), first]
                }
            }
        });
        case.check();
        let program = Program::compile(&case.graph, &Device::blueprint(Arch::Sm90), DType::F32, None).unwrap();
        let found = program.ops().into_iter().filter(|&op| op == "conv2d_fwd_end").count();
        assert_eq!(found, taken, "wiring {wiring}");
    }
}

/// The batch norm before a droppable branch is the only one of its concatenation: what it adds to the gradient outside
/// is corrected if the branch is kept.
#[test]
fn a_norm_of_a_concatenation_in_a_branch() {
    for open in [true, false] {
        let mut case = graph([5, 6], |net, x| {
            let (first, second) = (net.conv(x, 3, 3), net.conv(x, 5, 3));
            let whole = net.concat(&[first, second]);
            let beside = net.add(whole, whole);
            let beside = net.relu(beside);
            let branch = net.b.branch(0.5, |b| {
                let z = b.batch_norm("bn", whole, 1e-5)?;
                let z = b.relu(z)?;
                b.conv2d("conv", z, ConvOptions { k: 8, ..Default::default() })
            });
            vec![net.b.join(branch.unwrap(), whole).unwrap(), beside]
        });
        case.gates.fill(open);
        case.check();
    }
}
