//! Steps of a network: forward, or forward, backward and SGD with momentum and weight decay.

use std::sync::Arc;
use std::time::{Duration, Instant};

use residuum::control::sgd;
use residuum::device::{Arch, Backend, Device, Launch, Memory};
use residuum::graph::{Mode, Program};
use residuum::models::{self, BuildOptions};
use residuum::tensor::philox::Philox;
use residuum::tensor::{DType, HostTensor};
use residuum::train::grad_scale;
use residuum::{Error, Result};

/// The usual settings; the learning rate is small, so that random labels do not lead to infinities.
const SGD: sgd::Spec = sgd::Spec { momentum: 0.9, dampening: 0.0, nesterov: false, weight_decay: 1e-4 };
const LEARNING_RATE: f64 = 0.01;
const SEED: u64 = 0;

/// How the launches of a step are submitted to a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// As one recorded graph.
    Graph,
    /// One by one.
    Launches,
}

/// The workload to measure.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The network, by the name in the table of models.
    pub model: String,
    /// A training step or inference.
    pub mode: Mode,
    /// The batch size.
    pub batch: usize,
    /// The storage type.
    pub dtype: DType,
    /// How the launches are submitted.
    pub replay: Replay,
}

/// A network that is ready to run steps on one batch in device memory.
pub struct Step {
    program: Program,
    device: Device,
    batch: usize,
}

impl Step {
    /// Compiles the workload for `device` and runs a first step. Fails if the network is unknown.
    pub fn new(work: &Workload, device: &Device) -> Result<Self> {
        let device = match (device, work.replay) {
            (Device::Kernels(backend), Replay::Launches) => Device::Kernels(Arc::new(OneByOne(backend.clone()))),
            _ => device.clone(),
        };
        let model = models::find(&work.model)?;
        let training = work.mode == Mode::Train;
        let scale = if training { grad_scale(work.dtype) } else { 1.0 };
        let options = BuildOptions { loss: training, grad_scale: scale, ..Default::default() };
        let mut graph = model.build(work.mode, work.batch, model.input(), model.classes(), options)?;
        let optimizer = if training {
            graph.differentiate()?;
            Some(sgd::Sgd::new(SGD)?)
        } else {
            None
        };
        let state = model.initialise(&graph, SEED);
        let mut program = Program::compile(&graph, &device, work.dtype, optimizer)?;
        program.load(&state)?;
        let [c, h, w] = model.input();
        let images = Philox::new(SEED, 0).normals(work.batch * c * h * w);
        let images = images.into_iter().map(|v| v as f32).collect();
        program.set_input("input", &HostTensor::f32([work.batch, c, h, w], images))?;
        if training {
            let labels: Vec<i32> = (0..work.batch).map(|i| (i * 7919 % model.classes()) as i32).collect();
            program.set_labels(&labels)?;
            program.set_learning_rate(LEARNING_RATE)?;
        }
        let mut step = Self { program, device, batch: work.batch };
        step.time(1)?;
        Ok(step)
    }

    /// The batch size of a step.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The time of `count` steps, by the device's clock if it has one.
    pub fn time(&mut self, count: u64) -> Result<Duration> {
        let program = &mut self.program;
        let mut work = || (0..count).try_for_each(|_| program.run());
        match &self.device {
            Device::Kernels(backend) => backend.time(&mut work),
            Device::Cpu => {
                let start = Instant::now();
                work()?;
                Ok(start.elapsed())
            }
        }
    }
}

/// A device that does not record, so that every launch is submitted alone.
#[derive(Debug)]
struct OneByOne(Arc<dyn Backend>);

// SAFETY: every call is forwarded to one backend.
unsafe impl Backend for OneByOne {
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

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.0.time(work)
    }

    fn failure(&self) -> Option<Error> {
        self.0.failure()
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        self.0.free_bytes()
    }
}
