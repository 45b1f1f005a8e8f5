//! The bodies of the fuzz targets, shared with a test that replays the seeds.

#[allow(dead_code)]
#[path = "../cli/src/metrics.rs"]
mod metrics;
#[allow(dead_code)]
#[path = "../cli/src/problems.rs"]
mod problems;

use std::fmt::Display;
use std::sync::LazyLock;

use residuum::data::cifar::{self, Kind};
use residuum::data::{mnist, Dataset};
use residuum::graph::{Graph, Mode};
use residuum::models::{self, weights as weights_file, BuildOptions, Model};
use residuum::ops::conv2d::Conv2d;
use residuum::tensor::StateDict;
use residuum::train::schedule::Length;
use residuum::train::{Checkpoint, Schedule, Settings};

/// The deepest network that is built here.
const DEEPEST: usize = 200;

/// A small network and its graph.
static NETWORK: LazyLock<(Model, Graph)> = LazyLock::new(|| {
    let model = models::find("resnet8_cifar").expect("a network");
    let graph = model.build(Mode::Infer, 1, [1, 8, 8], 5, BuildOptions::default()).expect("a graph");
    (model, graph)
});

/// Asserts that an error is one line of moderate length.
fn one_line(error: impl Display) {
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() < 8000, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

fn sound(state: &StateDict) {
    for (name, tensor) in state {
        assert_eq!(tensor.shape.len(), tensor.len(), "{name}");
    }
}

/// A safetensors file.
pub fn weights(data: &[u8]) {
    match weights_file::from_bytes(data) {
        Err(error) => one_line(error),
        Ok((mut state, _)) => {
            sound(&state);
            let (model, graph) = &*NETWORK;
            let names = state.len();
            model.strip_prefix(&mut state);
            assert_eq!(state.len(), names);
            for problem in [model.classes_of(&state).err(), model.channels_of(&state).err()].into_iter().flatten() {
                one_line(problem);
            }
            if let Err(error) = graph.check_state(&state) {
                one_line(error);
            }
        }
    }
}

/// A checkpoint.
pub fn checkpoint(data: &[u8]) {
    match Checkpoint::from_bytes(data) {
        Err(error) => one_line(error),
        Ok(checkpoint) => {
            sound(&checkpoint.state);
            sound(&checkpoint.velocity);
            let settings = &checkpoint.settings;
            match settings.check() {
                Err(error) => one_line(error),
                Ok(()) => assert_eq!(Settings::from_metadata(&settings.to_metadata()).ok().as_ref(), Some(settings)),
            }
            if let Err(error) = models::find(&settings.model) {
                one_line(error);
            }
        }
    }
}

/// A number of records, a kind, then a file of CIFAR.
pub fn cifar(data: &[u8]) {
    let [count, kind, file @ ..] = data else { return };
    let kind = if kind % 2 == 0 { Kind::Cifar10 } else { Kind::Cifar100 };
    match cifar::from_bytes(file, kind, usize::from(*count)) {
        Err(error) => one_line(error),
        Ok(set) => labelled(&set),
    }
}

/// The length of the first file in two bytes, a file of images, a file of labels.
pub fn idx(data: &[u8]) {
    let [low, high, files @ ..] = data else { return };
    let at = usize::from(u16::from_le_bytes([*low, *high])).min(files.len());
    let (images, labels) = files.split_at(at);
    match mnist::from_bytes(images, labels) {
        Err(error) => one_line(error),
        Ok(set) => labelled(&set),
    }
}

fn labelled(set: &Dataset) {
    assert_eq!(set.images().len(), set.len() * set.shape().iter().product::<usize>());
    assert!(set.labels().iter().all(|&label| (0..set.classes() as i32).contains(&label)));
}

/// A table of convolutions.
pub fn problems(data: &[u8]) {
    match problems::parse(&String::from_utf8_lossy(data)) {
        Err(problem) => one_line(residuum::Error::file("p.tsv", problem)),
        Ok(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                match Conv2d::new(problem.spec) {
                    Err(error) => one_line(error),
                    Ok(conv) => assert!(conv.macs() > 0 && conv.output().iter().all(|&extent| extent > 0)),
                }
            }
        }
    }
}

/// The number of epochs that a run has done, then its file of metrics.
pub fn metrics(data: &[u8]) {
    let [done, content @ ..] = data else { return };
    let done = if *done == u8::MAX { u32::MAX } else { u32::from(*done) };
    let history = metrics::History::read(content, done);
    let epochs: Vec<u32> = history.epochs.iter().map(|m| m.epoch).collect();
    assert!(epochs.windows(2).all(|pair| pair[0] < pair[1]) && epochs.iter().all(|epoch| (1..=done).contains(epoch)));
    match &history.problem {
        Some(problem) => one_line(residuum::Error::file("metrics.jsonl", problem)),
        None => assert!(epochs.into_iter().eq(1..=done)),
    }
    let again = metrics::History::read(&history.kept, done);
    // Dropped lines change the line numbers in a problem.
    assert_eq!(
        (again.kept, again.problem.is_some()),
        (history.kept, history.problem.is_some()),
        "what stays is as it was"
    );
    for epoch in &history.epochs {
        let line = metrics::line(epoch);
        assert_eq!(metrics::parse(&line).map(|read| metrics::line(&read)), Some(line), "every digit comes back");
    }
}

/// A learning-rate schedule.
pub fn schedule(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match text.parse::<Schedule>() {
        Err(error) => one_line(error),
        Ok(schedule) => {
            assert_eq!(schedule.to_string().parse::<Schedule>().ok().as_ref(), Some(&schedule));
            let length = Length { epochs: 3, steps: 5 };
            if schedule.check(length.epochs).is_ok() {
                for step in 0..length.total() {
                    let rate = schedule.rate(0.1, step, length);
                    assert!((0.0..=0.1 * (1.0 + 1e-12)).contains(&rate), "{rate} at step {step}");
                }
            }
        }
    }
}

/// A network's name.
pub fn model_name(data: &[u8]) {
    let name = String::from_utf8_lossy(data);
    match models::find(&name) {
        Err(error) => one_line(error),
        Ok(model) => {
            assert_eq!(model.name(), name);
            // Deeper networks are valid but slow to build.
            let digits: String =
                name.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
            if digits.parse::<usize>().is_ok_and(|depth| depth <= DEEPEST) || digits.is_empty() {
                match model.build(Mode::Infer, 1, model.input(), model.classes(), BuildOptions::default()) {
                    Err(error) => one_line(error),
                    Ok(graph) => assert!(graph.parameter_count() > 0 && graph.macs() > 0),
                }
            }
        }
    }
}
