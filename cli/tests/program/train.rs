//! Training runs: the files that they leave, resumption, and how they are stopped.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use residuum::train::Checkpoint;
use serde_json::Value;

use crate::{bad, cause, folder, good, names, program, run};

/// A run of a second or two.
const SHORT: &str = "train --model resnet8_cifar --epochs 3 --batch 128 --device cpu --out out";

/// The lines of `metrics.jsonl` in `run`, without times.
pub fn timeless(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let strip = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let fields = value.as_object_mut().unwrap();
        assert!(fields.remove("seconds").unwrap().as_f64().unwrap() > 0.0);
        assert!(fields.remove("images_per_second").unwrap().as_f64().unwrap() > 0.0);
        value
    };
    text.lines().map(strip).collect()
}

#[test]
fn a_run_leaves_its_files_and_is_not_overwritten() {
    let folder = folder();
    let out = folder.path().join("out");
    let said = good(folder.path(), SHORT);
    assert!(
        said.starts_with("test accuracy ") && said.contains("out: checkpoint.safetensors, metrics.jsonl"),
        "{said}"
    );
    assert_eq!(names(&out), ["checkpoint.safetensors", "curves.png", "curves.svg", "metrics.jsonl"]);
    assert!(fs::read(out.join("curves.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(fs::read_to_string(out.join("curves.svg")).unwrap().contains("resnet8_cifar on digits, seed 0"));
    let metrics = timeless(&out);
    let epochs: Vec<_> = metrics.iter().map(|m| m["epoch"].as_u64().unwrap()).collect();
    assert_eq!(epochs, [1, 2, 3]);
    for line in &metrics {
        let fields: BTreeSet<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = ["epoch", "learning_rate", "test_accuracy", "test_loss", "train_accuracy", "train_loss"];
        assert_eq!(fields, expected.into());
        assert!((0.0..=1.0).contains(&line["test_accuracy"].as_f64().unwrap()));
    }

    let json = good(folder.path(), "eval --checkpoint out/checkpoint.safetensors --json");
    let found: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["accuracy"], metrics[2]["test_accuracy"]);
    let (loss, expected) = (found["loss"].as_f64().unwrap(), metrics[2]["test_loss"].as_f64().unwrap());
    assert!((loss - expected).abs() < 1e-5 * expected, "{loss}, expected {expected}");
    let text = good(folder.path(), "eval --checkpoint out/checkpoint.safetensors --data digits --dtype f64");
    assert!(text.starts_with("loss ") && text.contains("of 360 test images of digits"), "{text}");

    let before = fs::read(out.join("checkpoint.safetensors")).unwrap();
    let cause = bad(folder.path(), SHORT, 1);
    assert_eq!(cause, "--out out: a run exists already; --resume continues it");
    let said = good(folder.path(), &format!("{SHORT} --resume"));
    assert!(said.starts_with("test accuracy "), "{said}");
    assert_eq!(fs::read(out.join("checkpoint.safetensors")).unwrap(), before);
    assert_eq!(timeless(&out), metrics);
}

#[test]
fn runs_without_a_folder_get_one_each() {
    let folder = folder();
    let train = "train --model resnet8_cifar --epochs 1 --batch 512 --seed 3";
    good(folder.path(), train);
    good(folder.path(), train);
    let base = "resnet8_cifar-digits-seed3";
    assert_eq!(names(&folder.path().join("runs")), [base.to_string(), format!("{base}-2")]);
    let runs = [base.to_string(), format!("{base}-2")].map(|name| folder.path().join("runs").join(name));
    let [one, two] = runs.each_ref().map(|run| fs::read(run.join("checkpoint.safetensors")).unwrap());
    assert_eq!(one, two, "the same settings give the same bytes");
    let output = run(folder.path(), "train --resume --model resnet8_cifar --seed 3");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && errors.contains(&format!("{base}-2")), "{errors}");
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let folder = folder();
    good(folder.path(), SHORT);
    let whole = folder.path().join("out");
    let killed = folder.path().join("killed");
    // A fixed seed is enough: the timing varies with the machine.
    let mut random = 12345u32;
    let (mut kills, mut finished) = (0, false);
    while !finished {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Later runs wait longer, so that the loop ends on any machine.
        let wait = Duration::from_millis(u64::from(random >> 24) * (1 + kills / 4));
        let mut child = program(folder.path())
            .args("train --model resnet8_cifar --epochs 3 --batch 128 --device cpu --out killed".split(' '))
            .args(["--resume", "--checkpoint-every", "2"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(wait);
        finished = child.try_wait().unwrap().is_some_and(|status| status.success());
        if !finished {
            child.kill().unwrap();
            finished = child.wait().unwrap().success();
            kills += 1;
        }
        assert!(kills < 400, "the run never ends");
    }
    assert!(kills > 0, "the run was never killed");
    let read = |run: &Path| fs::read(run.join("checkpoint.safetensors")).unwrap();
    assert!(read(&whole) == read(&killed), "the checkpoints differ after {kills} kills");
    assert_eq!(timeless(&whole), timeless(&killed), "the metrics after {kills} kills");
}

#[test]
fn a_resume_must_agree_with_the_run() {
    let folder = folder();
    let train = "train --epochs 1 --batch 512 --out out --model resnet8_cifar";
    good(folder.path(), &format!("{train} --schedule constant"));
    let path = folder.path().join("out/checkpoint.safetensors");
    let before = fs::read(&path).unwrap();
    for (option, expected) in [
        (
            "--model resnet14_cifar",
            "model resnet14_cifar: the run of out/checkpoint.safetensors has model resnet8_cifar",
        ),
        ("--seed 9", "seed 9: the run of out/checkpoint.safetensors has seed 0"),
        ("--batch 64", "batch 64: the run of out/checkpoint.safetensors has batch 512"),
        ("--lr 0.2", "learning_rate 0.2: the run of out/checkpoint.safetensors has learning_rate 0.1"),
        ("--schedule cosine", "schedule cosine: the run of out/checkpoint.safetensors has schedule constant"),
    ] {
        let cause = bad(folder.path(), &format!("train --resume --out out {option}"), 1);
        assert_eq!(cause, format!("--resume with {expected}"));
    }
    assert_eq!(fs::read(&path).unwrap(), before, "nothing was overwritten");
    good(folder.path(), "train --resume --out out --epochs 2");
    assert_eq!(timeless(&folder.path().join("out")).len(), 2, "a constant rate can go on for longer");
    let cause = bad(folder.path(), "train --resume --out out --epochs 1", 1);
    assert!(cause.contains("epochs 1: the run of out/checkpoint.safetensors has epochs 2"), "{cause}");

    fs::write(&path, &before[..before.len() / 2]).unwrap();
    let cause = bad(folder.path(), "train --resume --out out", 1);
    assert!(cause.starts_with("out/checkpoint.safetensors: truncated: "), "{cause}");
}

#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    let folder = folder();
    let train = "train --model resnet8_cifar --epochs 1 --batch 512 --schedule constant --out out";
    good(folder.path(), train);
    let out = folder.path().join("out");
    let before = fs::read(out.join("checkpoint.safetensors")).unwrap();
    // Files may not grow beyond 100 blocks. SIGXFSZ is ignored, so that the write fails.
    let script = "trap '' XFSZ; ulimit -f 100; exec \"$0\" train --resume --out out --epochs 2";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_residuum")])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let cause = cause(script, &output, 1);
    assert!(cause.starts_with("out/checkpoint.safetensors: File too large"), "{cause}");
    assert_eq!(fs::read(out.join("checkpoint.safetensors")).unwrap(), before);
    assert_eq!(names(&out), ["checkpoint.safetensors", "curves.png", "curves.svg", "metrics.jsonl"]);
    good(folder.path(), "train --resume --out out --epochs 2");
    assert_eq!(timeless(&out).len(), 2, "the line without a checkpoint is not there twice");
}

#[test]
fn an_evaluation_needs_the_networks_classes_and_images() {
    let folder = folder();
    good(folder.path(), "train --model resnet8_cifar --epochs 1 --batch 512 --out out");
    let path = folder.path().join("out/checkpoint.safetensors");
    let good = Checkpoint::read(&path).unwrap();
    let eval = "eval --checkpoint out/checkpoint.safetensors --data digits";
    Checkpoint { classes: 12, ..good.clone() }.write(&path).unwrap();
    let cause = bad(folder.path(), eval, 1);
    assert_eq!(cause, "--data digits: classes 10, but out/checkpoint.safetensors has 12");
    Checkpoint { input: [3, 32, 32], ..good.clone() }.write(&path).unwrap();
    let cause = bad(folder.path(), eval, 1);
    assert!(cause.contains("images of shape [1, 8, 8], but out/checkpoint.safetensors has [3, 32, 32]"), "{cause}");
    let mut other = good;
    other.state.remove("fc.bias");
    other.write(&path).unwrap();
    let cause = bad(folder.path(), eval, 1);
    assert!(cause.starts_with("out/checkpoint.safetensors: tensor `fc.bias`: missing"), "{cause}");
    assert!(bad(folder.path(), "eval --checkpoint nowhere", 1).starts_with("nowhere: No such file"));
}

#[test]
fn a_batch_beyond_the_images_is_refused() {
    let folder = folder();
    let cause = bad(folder.path(), "train --batch 1438", 1);
    assert_eq!(cause, "batch: 1438, expected 1..=1437 (the number of training images)");
    assert_eq!(names(folder.path()), [""; 0]);
}
