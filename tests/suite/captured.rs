//! Recorded steps: every replay has the bits of single launches, and inputs may be set while a step runs.

use std::sync::Arc;

use residuum::control::sgd::{Sgd, Spec};
use residuum::device::sim::SimOptions;
use residuum::device::{Arch, Backend, Device, Launch, Memory};
use residuum::graph::{Builder, ConvOptions, Graph, LossOptions, Mode, Program};
use residuum::tensor::{DType, HostTensor, StateDict};
use residuum::Result;

use crate::machine;
use crate::random::Random;

const BATCH: usize = 2;
const CLASSES: usize = 4;

/// A device that does not record, so that every launch is submitted alone.
#[derive(Debug)]
struct Eager(Arc<dyn Backend>);

// SAFETY: every call is forwarded to one backend.
unsafe impl Backend for Eager {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn name(&self) -> String {
        self.0.name()
    }

    fn arch(&self) -> Arch {
        self.0.arch()
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Memory>> {
        self.0.allocate(bytes)
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        self.0.launch(launch)
    }

    fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }
}

/// A convolution, a batch norm and a linear layer on `size`x`size` pixels.
fn network(size: usize) -> Graph {
    let mut b = Builder::new(Mode::Train);
    let x = b.input("input", [BATCH, size, size, 3]);
    let conv = ConvOptions { k: 4, kernel: [3; 2], padding: [1; 2], ..Default::default() };
    let x = b.conv2d("conv", x, conv).unwrap();
    let x = b.batch_norm("bn", x, 1e-5).unwrap();
    let x = b.relu(x).unwrap();
    let logits = b.linear("fc", x, CLASSES).unwrap();
    b.loss(logits, LossOptions { smoothing: 0.1, ..Default::default() }).unwrap();
    let mut graph = b.finish();
    graph.differentiate().unwrap();
    graph
}

/// Three residual blocks, each dropped in half of the steps.
fn droppable(size: usize) -> Graph {
    let mut b = Builder::new(Mode::Train);
    let x = b.input("input", [BATCH, size, size, 3]);
    let conv = ConvOptions { k: 8, kernel: [3; 2], padding: [1; 2], ..Default::default() };
    let mut x = b.conv2d("stem", x, conv).unwrap();
    for block in ["a", "b", "c"] {
        let layers = |b: &mut Builder| {
            let f = b.conv2d(&format!("{block}.conv"), x, conv)?;
            b.batch_norm(&format!("{block}.bn"), f, 1e-5)
        };
        let branch = b.branch(0.5, layers).unwrap();
        let y = b.join(branch, x).unwrap();
        x = b.relu(y).unwrap();
    }
    let logits = b.linear("fc", x, CLASSES).unwrap();
    b.loss(logits, LossOptions { smoothing: 0.1, ..Default::default() }).unwrap();
    let mut graph = b.finish();
    graph.differentiate().unwrap();
    graph
}

fn start(graph: &Graph) -> StateDict {
    let mut random = Random::new("captured");
    let mut draw = |shape: &residuum::tensor::Shape| {
        HostTensor::f32(shape.clone(), (0..shape.len()).map(|_| random.unit() as f32 - 0.25).collect())
    };
    let parameters: Vec<_> = graph.parameters().iter().map(|p| (p.name.clone(), draw(&p.shape))).collect();
    let buffers = graph.buffers().iter().map(|b| (b.name.clone(), draw(&b.shape)));
    parameters.into_iter().chain(buffers.collect::<Vec<_>>()).collect()
}

/// The batch of step `i`; no two are equal.
fn batch(i: usize, size: usize) -> (HostTensor, Vec<i32>) {
    let mut random = Random::new(&format!("batch {i}"));
    let pixels = random.normals(BATCH * 3 * size * size, 0.0, 1.0).iter().map(|&v| v as f32).collect();
    (HostTensor::f32([BATCH, 3, size, size], pixels), random.labels(BATCH, CLASSES))
}

fn compile(graph: &Graph, backend: &Arc<dyn Backend>, dtype: DType) -> Program {
    let spec = Spec { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 1e-3 };
    let device = Device::Kernels(backend.clone());
    Program::compile(graph, &device, dtype, Some(Sgd::new(spec).unwrap())).unwrap()
}

fn feed(program: &mut Program, i: usize, size: usize) {
    let (x, labels) = batch(i, size);
    program.set_input("input", &x).unwrap();
    program.set_labels(&labels).unwrap();
    program.set_learning_rate(0.01 / (1.0 + i as f64 / 100.0)).unwrap();
}

/// The state that a program carries from step to step.
fn carried(program: &Program) -> (StateDict, StateDict, Option<residuum::control::loss_scale::LossScale>) {
    (program.state().unwrap(), program.velocity().unwrap(), program.loss_scale().unwrap())
}

/// Trains for `steps` steps, setting the next batch while a step runs. Compares some steps with a program that launches
/// one by one, and with a new program that starts from this one's state.
fn replay(backend: &Arc<dyn Backend>, dtype: DType, steps: usize, size: usize) {
    const EVERY: usize = 50;
    let graph = network(size);
    let eager: Arc<dyn Backend> = Arc::new(Eager(backend.clone()));
    let mut programs = [compile(&graph, backend, dtype), compile(&graph, &eager, dtype)];
    for program in &mut programs {
        program.load(&start(&graph)).unwrap();
    }
    let [replayed, single] = &mut programs;
    feed(replayed, 0, size);
    for i in 0..steps {
        let (before, judged) = (carried(replayed), i % EVERY == EVERY - 1);
        replayed.run().unwrap();
        feed(replayed, i + 1, size);
        feed(single, i, size);
        single.run().unwrap();
        if judged {
            assert_eq!(carried(replayed), carried(single), "{dtype} on {}: after {i} steps", backend.kind());
            let mut fresh = compile(&graph, &eager, dtype);
            fresh.load(&before.0).unwrap();
            fresh.load_velocity(&before.1).unwrap();
            before.2.into_iter().for_each(|scale| fresh.load_loss_scale(scale).unwrap());
            feed(&mut fresh, i, size);
            fresh.run().unwrap();
            assert_eq!(carried(replayed), carried(&fresh), "{dtype} on {}: step {i} alone", backend.kind());
        }
    }
    let (first, last) = (start(&graph), replayed.state().unwrap());
    assert!(last.iter().all(|(name, t)| first.get(name) != Some(t)), "every tensor has changed");
}

fn simulator() -> Option<Arc<dyn Backend>> {
    match Device::sim(SimOptions::default()) {
        Ok(Device::Kernels(backend)) if machine::wanted("sim") => Some(backend),
        _ => None,
    }
}

#[test]
fn a_thousand_replays_have_the_bits_of_single_steps() {
    if let Some(backend) = simulator() {
        replay(&backend, DType::F16, 1_000, 2);
        replay(&backend, DType::F32, 100, 6);
    }
    if let Some(backend) = machine::gpu("a thousand replays on a GPU") {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            replay(&backend, dtype, 1_000, 16);
        }
    }
}

#[test]
fn steps_that_drop_blocks_have_the_bits_of_single_steps() {
    let gpu = machine::gpu("recorded steps that drop blocks");
    for (backend, steps, size) in simulator().map(|b| (b, 20, 2)).into_iter().chain(gpu.map(|b| (b, 200, 16))) {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let graph = droppable(size);
            let eager: Arc<dyn Backend> = Arc::new(Eager(backend.clone()));
            let mut programs = [compile(&graph, &backend, dtype), compile(&graph, &eager, dtype)];
            for program in &mut programs {
                program.load(&start(&graph)).unwrap();
                program.draw_gates(3, 0).unwrap();
            }
            let mut seen = std::collections::BTreeSet::new();
            for i in 0..steps {
                let [replayed, single] = programs.each_mut().map(|program| {
                    feed(program, i, size);
                    program.run().unwrap();
                    (program.gates().unwrap(), program.gradients().unwrap(), carried(program))
                });
                assert_eq!(replayed, single, "{dtype} on {}: step {i}", backend.kind());
                seen.insert(replayed.0);
            }
            assert!(seen.len() > 4, "of 8 patterns {seen:?} were drawn");
        }
    }
}

/// Inputs may be set in any order, one alone, or not at all: a run reads the last values.
#[test]
fn a_run_reads_what_was_set_last() {
    let graph = network(4);
    for backend in simulator().into_iter().chain(machine::gpu("inputs in two places")) {
        let device = Device::Kernels(backend.clone());
        let spec = Spec { momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: 0.0 };
        let mut two = Program::compile(&graph, &device, DType::F32, Some(Sgd::new(spec).unwrap())).unwrap();
        two.set_learning_rate(0.0).unwrap();
        // Without an optimizer every input has one place.
        let one = Program::compile(&graph, &device, DType::F32, None).unwrap();
        let mut programs = [two, one];
        let mut seen = Vec::new();
        // For each run, the batches whose images and labels are set before it.
        for (images, labels) in
            [(Some(0), Some(0)), (Some(1), Some(1)), (None, None), (Some(2), None), (None, Some(3)), (Some(4), Some(4))]
        {
            let losses = programs.each_mut().map(|program| {
                program.load(&start(&graph)).unwrap();
                if let Some(i) = images {
                    // The last of several counts.
                    program.set_input("input", &batch(99, 4).0).unwrap();
                    program.set_input("input", &batch(i, 4).0).unwrap();
                }
                labels.into_iter().for_each(|i| program.set_labels(&batch(i, 4).1).unwrap());
                program.run().unwrap();
                program.output("loss").unwrap()
            });
            assert_eq!(losses[0], losses[1], "images {images:?}, labels {labels:?} on {}", backend.kind());
            seen.push(losses[0].clone());
        }
        assert_eq!(seen[1], seen[2], "nothing was set");
        seen.dedup();
        assert_eq!(seen.len(), 5, "the others differ");
    }
}
