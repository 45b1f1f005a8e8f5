//! How a training step's launches lie behind their gates: the runs that a GPU may skip as one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use residuum::device::{Arch, Backend, Device, Launch, Memory, Replay, View};
use residuum::graph::{Mode, Program};
use residuum::models::{self, BuildOptions};
use residuum::tensor::DType;
use residuum::train::Settings;
use residuum::Result;

/// A device on which nothing runs, and the gates of what is recorded.
#[derive(Debug)]
struct Recorder {
    inner: Arc<dyn Backend>,
    gates: Mutex<Vec<Vec<Option<u64>>>>,
}

impl Backend for Recorder {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn name(&self) -> String {
        self.inner.name()
    }

    fn arch(&self) -> Arch {
        self.inner.arch()
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Memory>> {
        self.inner.allocate(bytes)
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        self.inner.launch(launch)
    }

    fn record(&self, launches: &[Launch]) -> Result<Option<Box<dyn Replay>>> {
        self.gates.lock().unwrap().push(launches.iter().map(|launch| launch.gate().map(View::address)).collect());
        Ok(None)
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }
}

/// A block is one run of launches forward and one backward; what stands in for the latter where the block is dropped,
/// behind the opposite gate, is a third.
#[test]
fn a_block_is_two_runs_of_launches_and_its_opposite_one() {
    for (name, opposites) in
        [("resnet20_cifar_survival05", 9), ("preact_resnet110_cifar_survival05", 1), ("resnet50_survival05", 15)]
    {
        let model = models::find(name).unwrap();
        let options = BuildOptions { loss: true, ..Default::default() };
        let mut graph = model.build(Mode::Train, 128, model.input(), model.classes(), options).unwrap();
        graph.differentiate().unwrap();
        let Device::Kernels(inner) = Device::blueprint(Arch::Sm90) else { panic!("a device with kernels") };
        let recorder = Arc::new(Recorder { inner, gates: Mutex::default() });
        let optimizer = Settings::default().optimizer().unwrap();
        Program::compile(&graph, &Device::Kernels(recorder.clone()), DType::BF16, Some(optimizer)).unwrap();

        let recorded = recorder.gates.lock().unwrap();
        // What runs once, and the step for either place of its inputs.
        let [_, steps @ ..] = &recorded[..] else { panic!("{name} records nothing") };
        assert_eq!(steps.len(), 2);
        for step in steps {
            let runs: Vec<_> = step.chunk_by(|a, b| a == b).filter(|run| run[0].is_some()).collect();
            let mut of_gate: BTreeMap<u64, usize> = BTreeMap::new();
            runs.iter().filter_map(|run| run[0]).for_each(|gate| *of_gate.entry(gate).or_default() += 1);
            let gates_with = |count: usize| of_gate.values().filter(|&&runs| runs == count).count();
            let blocks = graph.survival().len();
            assert_eq!([gates_with(2), gates_with(1)], [blocks, opposites], "gates of {name} with so many runs");
            assert_eq!(of_gate.len(), blocks + opposites, "{name}: {of_gate:?}");
            // The gates are set before the first launch that is behind one, and never again.
            assert!(step[0].is_none() && runs.iter().map(|run| run.len()).sum::<usize>() > 8 * graph.survival().len());
        }
    }
}
