//! Arguments, help, and the commands that only print.

use std::process::Stdio;

use crate::{bad, folder, good, names, program, run};

#[test]
fn bad_arguments_are_one_line_and_code_2() {
    let folder = folder();
    for (arguments, parts) in [
        ("train --model resnet20_cifr", &["--model", "unknown model `resnet20_cifr`; did you mean resnet20_cifar"][..]),
        ("train --model zzzzzzzzz", &["unknown model `zzzzzzzzz`", "residuum models"]),
        ("train --batch 0", &["'0'", "--batch", "at least 1"]),
        ("train --batch -3", &["-3"]),
        ("train --batch many", &["'many'", "--batch"]),
        ("train --epochs 0", &["'0'", "--epochs", "not in 1.."]),
        ("train --lr 0", &["--lr", "above 0"]),
        ("train --lr nan", &["--lr", "above 0"]),
        ("train --dtype f64", &["'f64'", "--dtype", "f32, f16 or bf16"]),
        ("train --data imagenet:/x", &["--data", "`imagenet:/x`", "cifar10:DIR"]),
        ("train --device gpu", &["'gpu'", "--device", "auto, cpu, cuda, cuda:N or sim"]),
        ("train --schedule steps:3", &["--schedule", "`steps:3`", "onecycle"]),
        ("train --schedule cosine+warmup:15", &["a warm-up of 15 epochs in a run of 15"]),
        ("train --momentum 2", &["momentum", "2, expected 0..=1"]),
        ("train --lr -1", &["--lr", "above 0"]),
        ("train --batch -3", &["--batch", "-3"]),
        ("train --weight-decay -1", &["weight decay", "at least 0"]),
        ("train --model RESNET20_CIFAR", &["RESNET20_CIFAR", "did you mean resnet20_cifar"]),
        ("train --smoothing 1", &["smoothing"]),
        ("train --ephocs 3", &["--ephocs", "--epochs"]),
        ("train --seed -1", &["-1"]),
        ("eval", &["required", "--checkpoint"]),
        ("eval --checkpoint x --batch 0", &["--batch", "at least 1"]),
        ("infer --model resnet18", &["required", "--weights", "--input", "--output"]),
        ("infer --model resnet18 --weights w --input x --output y --dtype f8", &["'f8'", "f32, f64, f16 or bf16"]),
        ("step --model resnet18 --weights w --input x --output y --stochastic 3", &["--stochastic", "resnet18"]),
        ("frobnicate", &["frobnicate"]),
    ] {
        let cause = bad(folder.path(), arguments, 2);
        for part in parts {
            assert!(cause.contains(part), "`{part}` in the answer to `{arguments}`: {cause}");
        }
    }
    assert_eq!(names(folder.path()), [""; 0], "nothing was written");
}

#[test]
fn every_command_has_help_with_an_example() {
    let folder = folder();
    for command in ["train", "eval", "infer", "step", "models", "plan", "check", "doctor"] {
        let help = good(folder.path(), &format!("{command} --help"));
        assert!(help.contains("Example") && help.contains(&format!("residuum {command}")), "{help}");
        // The help does not wrap examples, so that they can be copied to a shell.
        for pair in help.lines().collect::<Vec<_>>().windows(2).filter(|pair| pair[0].starts_with("  residuum ")) {
            let ends = pair[1].is_empty() || pair[1].starts_with("  residuum ");
            assert!(ends || pair[0].ends_with('\\'), "{}\n{}", pair[0], pair[1]);
        }
    }
    assert!(good(folder.path(), "--help").contains("Exit codes"));
    assert!(good(folder.path(), "--version").starts_with("residuum 0."));
    assert_eq!(run(folder.path(), "").status.code(), Some(2));
}

#[test]
fn models_are_listed_for_people_and_for_programs() {
    let folder = folder();
    let text = good(folder.path(), "models");
    assert!(text.lines().any(|l| l.starts_with("resnet50 ") && l.contains("25,557,032")), "{text}");
    let json: serde_json::Value = serde_json::from_str(&good(folder.path(), "models --json")).unwrap();
    let list = json.as_array().unwrap();
    assert_eq!(list.len() + 1, text.lines().count());
    let model = list.iter().find(|m| m["name"] == "resnet20_cifar").unwrap();
    assert_eq!((&model["parameters"], &model["classes"]), (&269_722.into(), &10.into()));
    assert_eq!(model["input"], serde_json::json!([3, 32, 32]));
    assert!(
        model["multiply_adds"].as_u64().unwrap() == 40_551_040
            && model["source"].as_str().unwrap().contains("1512.03385")
    );
}

#[test]
fn the_doctor_names_every_device() {
    let text = good(folder().path(), "doctor");
    for part in ["cpu", "driver", "simulator", "auto"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let folder = folder();
    let mut child = program(folder.path()).arg("models").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
}

#[test]
fn cuda_without_a_driver_is_one_line() {
    if residuum::device::Device::cuda(0).is_ok() {
        eprintln!("skipped: there is a CUDA device");
        return;
    }
    let folder = folder();
    let cause = bad(folder.path(), "train --device cuda", 1);
    assert!(cause.starts_with("cuda device: "), "{cause}");
    assert_eq!(names(folder.path()), [""; 0], "nothing was written");
}
