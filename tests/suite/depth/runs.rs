//! The order of a training step's gated launches: the runs that a GPU may skip as one.

use residuum::device::{Arch, Device};
use residuum::graph::{Mode, Program, Runs};
use residuum::models::{self, BuildOptions};
use residuum::tensor::DType;
use residuum::train::Settings;

/// A block is one run of launches forward and one backward; the launches that replace the latter in a dropped block,
/// behind the inverse gate, are a third.
#[test]
fn a_block_is_two_runs_of_launches_and_its_inverse_one() {
    for (name, inverses) in
        [("resnet20_cifar_survival05", 9), ("preact_resnet110_cifar_survival05", 1), ("resnet50_survival05", 15)]
    {
        let model = models::find(name).unwrap();
        let options = BuildOptions { loss: true, ..Default::default() };
        let mut graph = model.build(Mode::Train, 128, model.input(), model.classes(), options).unwrap();
        graph.differentiate().unwrap();
        let optimizer = Settings::default().optimizer().unwrap();
        let program = Program::compile(&graph, &Device::blueprint(Arch::Sm90), DType::BF16, Some(optimizer)).unwrap();

        let launches: Vec<Runs> = program.steps().iter().map(|step| step.runs).collect();
        let runs: Vec<&[Runs]> = launches.chunk_by(|a, b| a == b).filter(|run| run[0] != Runs::Always).collect();
        for block in 0..graph.survival().len() {
            let of = |behind: Runs| runs.iter().filter(|run| run[0] == behind).count();
            assert_eq!(of(Runs::With(block)), 2, "{name}, block {block}");
            assert!(of(Runs::Without(block)) <= 1, "{name}, block {block}");
        }
        let without = runs.iter().filter(|run| matches!(run[0], Runs::Without(_))).count();
        assert_eq!(without, inverses, "{name}");
        // The gates are drawn before the first gated launch.
        assert_eq!(launches[0], Runs::Always, "{name}");
        assert!(runs.iter().map(|run| run.len()).sum::<usize>() > 8 * graph.survival().len(), "{name}");
    }
}
