//! Invalid weights and inputs.

use std::path::Path;

use residuum::graph::Mode;
use residuum::models::{self, weights, BuildOptions};
use residuum::tensor::{HostData, HostTensor, StateDict};

use crate::{bad, folder, good, names, run};

const INFER: &str = "infer --model resnet8_cifar --weights w --input x --output y";
const STEP: &str = "step --model resnet8_cifar --weights w --input x --output y";

/// New weights of a network for grey images and 5 classes.
pub fn state() -> StateDict {
    let model = models::find("resnet8_cifar").unwrap();
    let graph = model.build(Mode::Infer, 1, [1, 8, 8], 5, BuildOptions::default()).unwrap();
    model.initialise(&graph, 1)
}

/// `n` images of 1x8x8 with labels.
pub fn images(n: usize) -> StateDict {
    let pixels = (0..n * 64).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    let labels = (0..n as i64).map(|i| i % 5).collect();
    StateDict::from([
        ("input".into(), HostTensor::f32([n, 1, 8, 8], pixels)),
        ("labels".into(), HostTensor::i64([n], labels)),
    ])
}

pub fn write(folder: &Path, name: &str, tensors: &StateDict) {
    weights::write(folder.join(name), tensors, &Default::default()).unwrap();
}

#[test]
fn logits_do_not_depend_on_the_other_images() {
    let folder = folder();
    write(folder.path(), "w", &state());
    let logits = |n: usize| {
        write(folder.path(), "x", &images(n));
        good(folder.path(), INFER);
        let mut y = weights::read(folder.path().join("y")).unwrap();
        let logits = y.remove("logits").unwrap();
        assert!(y.is_empty() && logits.shape.dims() == [n, 5]);
        logits.to_real::<f64>()
    };
    let (few, many) = (logits(3), logits(130));
    for (i, (a, b)) in few.iter().zip(&many).enumerate() {
        assert!((a - b).abs() < 1e-5, "logit {i} is {a} alone, {b} in company");
    }
    good(folder.path(), &format!("{INFER} --dtype f64"));
    let y = weights::read(folder.path().join("y")).unwrap();
    assert!(matches!(y["logits"].data, HostData::F64(_)));
}

#[test]
fn bad_weights_are_named_and_nothing_is_written() {
    let folder = folder();
    write(folder.path(), "x", &images(2));
    let refused = |change: &dyn Fn(&mut StateDict)| {
        let mut state = state();
        change(&mut state);
        write(folder.path(), "w", &state);
        let [one, two] = [INFER, STEP].map(|command| bad(folder.path(), command, 1));
        assert_eq!(one, two);
        one
    };
    let cause = refused(&|s| drop(s.remove("layer1.0.conv2.weight")));
    assert!(cause.starts_with("w: tensor `layer1.0.conv2.weight`: missing, expected shape [16, 16, 3, 3]"), "{cause}");
    let cause = refused(&|s| drop(s.insert("layer9.weight".into(), HostTensor::f32([1], vec![0.0]))));
    assert!(cause.starts_with("w: tensor `layer9.weight`: not a tensor of this network"), "{cause}");
    let cause = refused(&|s| drop(s.insert("bn1.bias".into(), HostTensor::f32([4], vec![0.0; 4]))));
    assert_eq!(cause, "w: tensor `bn1.bias`: shape [4], expected [16]");
    let cause = refused(&|s| drop(s.remove("fc.weight")));
    assert!(cause.starts_with("w: tensor `fc.weight`: missing"), "{cause}");
    let cause = refused(&|s| drop(s.insert("fc.weight".into(), HostTensor::f32([], vec![0.0]))));
    assert!(cause.starts_with("w: tensor `fc.weight`: shape []"), "{cause}");

    let whole = std::fs::read(folder.path().join("w")).unwrap();
    for len in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(folder.path().join("w"), &whole[..len]).unwrap();
        let cause = bad(folder.path(), INFER, 1);
        assert!(cause.starts_with("w: "), "{len} bytes: {cause}");
    }
    std::fs::remove_file(folder.path().join("w")).unwrap();
    assert!(bad(folder.path(), INFER, 1).starts_with("w: No such file"));
    assert_eq!(names(folder.path()), ["x"]);
}

#[test]
fn a_nan_in_the_weights_is_accepted_and_reported() {
    let folder = folder();
    let mut state = state();
    let HostData::F32(values) = &mut state.get_mut("layer2.0.bn1.weight").unwrap().data else { panic!("f32") };
    values[3] = f32::NAN;
    write(folder.path(), "w", &state);
    write(folder.path(), "x", &images(2));
    for command in [INFER, STEP] {
        let output = run(folder.path(), command);
        assert!(output.status.success());
        let errors = String::from_utf8(output.stderr).unwrap();
        let (first, then) = errors.split_once('\n').unwrap();
        assert_eq!(first, "warning: w: tensor `layer2.0.bn1.weight` is NaN or infinite at element 3");
        let expected = match command {
            INFER => {
                "warning: w: the logits of 2 of 2 images are not finite (the first layer whose output is not finite: \
                 layer2.0.bn1)\n"
            }
            _ => "warning: w: the loss is NaN\n",
        };
        assert_eq!(then, expected);
    }
}

#[test]
fn bad_inputs_are_named_and_nothing_is_written() {
    let folder = folder();
    write(folder.path(), "w", &state());
    let refused = |command: &str, change: &dyn Fn(&mut StateDict)| {
        let mut images = images(2);
        change(&mut images);
        write(folder.path(), "x", &images);
        bad(folder.path(), command, 1)
    };
    let set = |name: &str, tensor: HostTensor| {
        let name = name.to_string();
        move |s: &mut StateDict| drop(s.insert(name.clone(), tensor.clone()))
    };
    for command in [INFER, STEP] {
        let cause = refused(command, &|s| drop(s.remove("input")));
        assert_eq!(cause, "x: tensor `input`: missing; the file holds `labels`");
        let cause = refused(command, &set("input", HostTensor::f32([64], vec![0.0; 64])));
        assert_eq!(cause, "x: tensor `input`: shape [64], expected N, C, H, W");
        let cause = refused(command, &set("input", HostTensor::f32([0, 1, 8, 8], vec![])));
        assert_eq!(cause, "x: tensor `input`: shape [0, 1, 8, 8], expected no 0 in it");
        let cause = refused(command, &set("input", HostTensor::f32([2, 3, 4, 4], vec![0.0; 96])));
        assert_eq!(cause, "x: tensor `input`: 3 channels, expected 1 as in w");
        let cause = refused(command, &set("input", HostTensor::i64([2, 1, 8, 8], vec![0; 128])));
        assert_eq!(cause, "x: tensor `input`: integers, expected floating-point numbers");
    }
    let cause = refused(STEP, &|s| drop(s.remove("labels")));
    assert_eq!(cause, "x: tensor `labels`: missing");
    let cause = refused(STEP, &set("labels", HostTensor::i64([3], vec![0; 3])));
    assert_eq!(cause, "x: tensor `labels`: shape [3], expected [2], one for each image of `input`");
    let cause = refused(STEP, &set("labels", HostTensor::f32([2], vec![0.0; 2])));
    assert_eq!(cause, "x: tensor `labels`: floating-point numbers, expected int64");
    let cause = refused(STEP, &set("labels", HostTensor::i64([2], vec![0, 5])));
    assert_eq!(cause, "x: tensor `labels`: 5 at element 1, expected 0..5, the classes of w");
    let cause = refused(STEP, &set("labels", HostTensor::i64([2], vec![-1, 4])));
    assert_eq!(cause, "x: tensor `labels`: -1 at element 0, expected 0..5, the classes of w");
    assert_eq!(names(folder.path()), ["w", "x"]);

    write(folder.path(), "x", &images(2));
    let cause = bad(folder.path(), &INFER.replace("--output y", "--output no/y"), 1);
    assert!(cause.starts_with("no/y: No such file"), "{cause}");
}

#[test]
fn an_image_that_is_too_small_is_refused() {
    let folder = folder();
    let model = models::find("alexnet").unwrap();
    let graph = model.build(Mode::Infer, 1, [3, 224, 224], 2, BuildOptions::default()).unwrap();
    write(folder.path(), "w", &model.initialise(&graph, 0));
    write(folder.path(), "x", &StateDict::from([("input".into(), HostTensor::f32([1, 3, 9, 9], vec![0.0; 243]))]));
    let cause = bad(folder.path(), "infer --model alexnet --weights w --input x --output y", 1);
    assert!(cause.contains("pool") || cause.contains("conv"), "{cause}");
}
