//! Runs that fail, are interrupted, or meet another run: each ends with one line, and none loses or mixes files.

use std::fs;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use residuum::tensor::HostTensor;
use residuum::train::Checkpoint;

use crate::train::timeless;
use crate::{cause, folder, good, names, program, run};

const FILES: [&str; 4] = ["checkpoint.safetensors", "curves.png", "curves.svg", "metrics.jsonl"];

/// Starts the program with `arguments` in `folder`.
fn start(folder: &Path, arguments: &str) -> Child {
    let mut command = program(folder);
    command.args(arguments.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// The output of `child`. Fails if it does not end within a minute.
pub fn end(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("it hangs: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

#[cfg(unix)]
fn send(signal: &str, child: &Child) {
    let sent = std::process::Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success(), "{signal}");
}

/// Stops `child` while a file in `out` is half written.
#[cfg(unix)]
fn stop_in_a_write(child: &Child, out: &Path) {
    let start = Instant::now();
    loop {
        send("STOP", child);
        if names(out).iter().any(|name| name.ends_with(".tmp")) {
            return;
        }
        send("CONT", child);
        assert!(start.elapsed() < Duration::from_secs(60), "it never writes");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_step_that_fails_ends_the_run_with_one_line() {
    let folder = folder();
    let train = "train --device cpu --model resnet8_cifar --epochs 1 --batch 16 --out out";
    let diverges = format!("{train} --schedule constant --lr 1e30");
    let said = cause(&diverges, &end(start(folder.path(), &diverges)), 1);
    assert!(said.starts_with("the loss became ") && said.contains(", learning rate 1e30 (the first layer "), "{said}");
    assert_eq!(names(folder.path()), [""; 0], "a run that leaves nothing leaves no folder");

    // Files may not grow beyond a block: the first checkpoint fails, in the second of 89 steps.
    let script = format!("trap '' XFSZ; ulimit -f 1; exec \"$0\" {train} --checkpoint-every 2");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_residuum")]).current_dir(folder.path());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let said = cause(&script, &end(child), 1);
    assert!(said.starts_with("out/checkpoint.safetensors: File too large"), "{said}");
    assert_eq!(names(folder.path()), [""; 0]);

    // The folder vanishes while the run is in it.
    let vanishing = format!("{train} --epochs 1000 --checkpoint-every 2").replace("--epochs 1 ", "");
    let child = start(folder.path(), &vanishing);
    while !folder.path().join("out/checkpoint.safetensors").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    fs::rename(folder.path().join("out"), folder.path().join("gone")).unwrap();
    let said = cause(&vanishing, &end(child), 1);
    assert!(said.starts_with("out: no longer this run's folder") || said.contains("No such file"), "{said}");
}

/// The layer is found with the weights of the forward pass: the updated weights would hide it.
#[test]
fn a_loss_that_is_not_finite_is_blamed_on_the_layer_that_it_comes_from() {
    let folder = folder();
    let train = "train --model resnet8_cifar --batch 512 --schedule constant --device cpu --out out";
    good(folder.path(), &format!("{train} --epochs 1"));
    let path = folder.path().join("out/checkpoint.safetensors");
    let sound = Checkpoint::read(&path).unwrap();
    for (tensor, blamed) in [
        ("conv1.weight", "conv1"),
        ("layer2.0.bn1.weight", "layer2.0.bn1"),
        ("layer2.0.conv2.weight", "layer2.0.conv2"),
        ("fc.weight", "fc"),
    ] {
        let mut checkpoint = sound.clone();
        let weight = checkpoint.state.get_mut(tensor).unwrap();
        *weight = HostTensor::f32(weight.shape.clone(), vec![3e38; weight.len()]);
        checkpoint.write(&path).unwrap();
        let resume = format!("{train} --epochs 2 --resume");
        let said = cause(&resume, &run(folder.path(), &resume), 1);
        assert!(
            said.starts_with("the loss became ") && said.contains(&format!("not finite: {blamed})")),
            "{tensor}: {said}"
        );
    }
}

#[cfg(unix)]
#[test]
fn a_lock_is_a_runs_own_and_links_are_not_followed() {
    let folder = folder();
    let (victim, out) = (folder.path().join("victim"), folder.path().join("out"));
    fs::write(&victim, "precious").unwrap();
    fs::create_dir(&out).unwrap();
    let train = "train --model resnet8_cifar --epochs 1 --batch 512 --device cpu --out out";
    std::os::unix::fs::symlink("../victim", out.join(".residuum-lock")).unwrap();
    let said = cause(train, &run(folder.path(), train), 1);
    assert_eq!(said, "out/.residuum-lock: not a regular file, expected a run's lock");
    fs::remove_file(out.join(".residuum-lock")).unwrap();
    fs::write(out.join(".residuum-lock"), "somebody's").unwrap();
    let said = cause(train, &run(folder.path(), train), 1);
    assert_eq!(said, "out/.residuum-lock: not a run's lock; rename it, or choose another --out");
    assert_eq!(fs::read_to_string(out.join(".residuum-lock")).unwrap(), "somebody's");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    // A killed run's lock stops nobody.
    fs::write(out.join(".residuum-lock"), "12345\n").unwrap();
    good(folder.path(), train);
    assert_eq!(names(&out), FILES);
}

#[cfg(unix)]
#[test]
fn a_resume_whose_checkpoint_is_gone_deletes_nothing() {
    let folder = folder();
    let train = "train --model resnet8_cifar --epochs 2 --batch 512 --device cpu --out out";
    good(folder.path(), train);
    let out = folder.path().join("out");
    let metrics = fs::read(out.join("metrics.jsonl")).unwrap();
    let resume = format!("{train} --resume");
    fs::rename(out.join("checkpoint.safetensors"), out.join("best.safetensors")).unwrap();
    let said = cause(&resume, &run(folder.path(), &resume), 1);
    assert!(said.starts_with("out/metrics.jsonl: it has epochs whose checkpoint is missing"), "{said}");
    std::os::unix::fs::symlink("nowhere", out.join("checkpoint.safetensors")).unwrap();
    let said = cause(&resume, &run(folder.path(), &resume), 1);
    assert!(said.starts_with("out/checkpoint.safetensors: No such file"), "{said}");
    assert_eq!(fs::read(out.join("metrics.jsonl")).unwrap(), metrics);
}

/// A folder is moved away and another run takes its place: each run keeps its own lines.
#[cfg(unix)]
#[test]
fn a_run_whose_folder_is_another_runs_ends() {
    let folder = folder();
    let train = "train --model resnet8_cifar --epochs 100000 --batch 512 --device cpu --out out";
    let first = start(folder.path(), train);
    // The last file of an epoch: the next write is some steps away.
    let checkpoint = folder.path().join("out/checkpoint.safetensors");
    while !checkpoint.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // It must not end before the other run has created its folder.
    send("STOP", &first);
    fs::rename(folder.path().join("out"), folder.path().join("moved")).unwrap();
    let second = "train --model resnet8_cifar --epochs 2 --batch 512 --device cpu --out out";
    let said = good(folder.path(), second);
    assert!(said.starts_with("test accuracy "));
    send("CONT", &first);
    let ended = cause(train, &end(first), 1);
    // If the folder is moved between the check and the write, the write fails.
    assert!(ended.starts_with("out: no longer this run's folder") || ended.contains("No such file"), "{ended}");
    assert_eq!(timeless(&folder.path().join("out")).len(), 2);
    assert_eq!(names(&folder.path().join("out")), FILES);
}

#[test]
fn a_destroyed_network_does_not_replace_a_checkpoint() {
    let folder = folder();
    let train = "train --model resnet8_cifar --batch 1437 --schedule constant --lr 1e20 --out out";
    let said = cause(train, &run(folder.path(), &format!("{train} --epochs 1")), 1);
    assert!(said.starts_with("the logits of 360 of 360 test images are not finite at step 1, "), "{said}");
    assert!(said.contains("learning rate 1e20 (the first layer whose output is not finite: "), "{said}");
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn an_evaluation_of_a_destroyed_network_says_so() {
    let folder = folder();
    good(folder.path(), "train --model resnet8_cifar --epochs 1 --batch 512 --out out");
    let path = folder.path().join("out/checkpoint.safetensors");
    let mut checkpoint = Checkpoint::read(&path).unwrap();
    let weight = checkpoint.state.get_mut("layer2.0.conv2.weight").unwrap();
    *weight = HostTensor::f32(weight.shape.clone(), vec![3e38; weight.len()]);
    checkpoint.write(&path).unwrap();
    let output = run(folder.path(), "eval --checkpoint out/checkpoint.safetensors");
    assert!(output.status.success());
    let expected =
        "warning: out/checkpoint.safetensors: the logits of 360 of 360 images are not finite (the first layer \
                    whose output is not finite: layer2.0.conv2)\n";
    assert_eq!(stderr(&output), expected);
}

#[test]
fn two_runs_at_once_have_a_folder_each_or_one_is_refused() {
    let folder = folder();
    let train = "train --model resnet8_cifar --epochs 2 --batch 256 --device cpu";
    let both = |arguments: &str| {
        let children = [0; 2].map(|_| start(folder.path(), arguments));
        children.map(end)
    };
    let outputs = both(train);
    assert!(outputs.iter().all(|o| o.status.success()), "{outputs:?}");
    let runs = folder.path().join("runs");
    let base = "resnet8_cifar-digits-seed0";
    assert_eq!(names(&runs), [base.to_string(), format!("{base}-2")]);
    let [one, two] = [base.to_string(), format!("{base}-2")].map(|name| runs.join(name));
    assert_eq!((names(&one), names(&two)), (FILES.map(String::from).to_vec(), FILES.map(String::from).to_vec()));
    assert_eq!(timeless(&one), timeless(&two));

    let refused = |arguments: &str, epochs: usize| {
        let outputs = both(arguments);
        let (good, bad): (Vec<_>, Vec<_>) = outputs.iter().partition(|o| o.status.success());
        assert_eq!((good.len(), bad.len()), (1, 1), "{outputs:?}");
        let said = cause(arguments, bad[0], 1);
        let late = arguments.contains("--resume") || said.starts_with("--out out: a run exists already");
        assert!(said.starts_with("out: in use by another run (process ") || late, "{said}");
        assert_eq!(names(&folder.path().join("out")), FILES);
        let told: Vec<_> = timeless(&folder.path().join("out")).iter().map(|m| m["epoch"].as_u64()).collect();
        assert_eq!(told, (1..=epochs as u64).map(Some).collect::<Vec<_>>());
    };
    refused(&format!("{train} --out out --schedule constant"), 2);
    refused("train --resume --out out --epochs 12 --device cpu", 12);
    assert_eq!(names(folder.path()), ["out", "runs"]);
}

#[test]
fn a_resume_takes_the_newest_folder_that_was_claimed() {
    let folder = folder();
    let train = "train --model resnet8_cifar --epochs 1 --batch 512 --seed 3";
    good(folder.path(), train);
    let child = start(folder.path(), &train.replace("--epochs 1", "--epochs 100000"));
    let claimed = folder.path().join("runs/resnet8_cifar-digits-seed3-2");
    while !claimed.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut child = child;
    child.kill().unwrap();
    child.wait().unwrap();
    // Usually nothing; it may have had time for an epoch.
    let before = names(&claimed);
    fs::remove_file(claimed.join("checkpoint.safetensors")).ok();
    let output = run(folder.path(), &format!("{train} --resume"));
    let errors = stderr(&output);
    assert!(output.status.success() && errors.contains("seed3-2"), "{before:?}: {errors}");
    assert!(errors.contains("no checkpoint yet: starting anew"), "{errors}");
    // A gap is not filled: the new run has the highest number.
    fs::remove_dir_all(folder.path().join("runs/resnet8_cifar-digits-seed3")).unwrap();
    good(folder.path(), train);
    assert!(folder.path().join("runs/resnet8_cifar-digits-seed3-3").exists());
}

#[test]
fn a_resumed_run_tells_what_its_metrics_do_not() {
    let folder = folder();
    let train = "train --model resnet8_cifar --batch 256 --schedule constant --device cpu --out out";
    let said = good(folder.path(), &format!("{train} --epochs 3"));
    let out = folder.path().join("out");
    let path = out.join("metrics.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let curves = fs::read(out.join("curves.svg")).unwrap();
    let resume = format!("{train} --epochs 3 --resume");
    // Unchanged, without a line, with a damaged line, with a repeated one, and empty.
    for (content, problem) in [
        (whole.clone(), ""),
        (format!("{}\n{}\n", lines[0], lines[2]), "missing epoch 2"),
        (format!("{}\n{}\n", lines[0], lines[1]), "missing epoch 3"),
        (format!("{}\n{}\n{{}}\n", lines[0], lines[1]), "missing epoch 3, unreadable line 3"),
        (whole.clone() + lines[1] + "\n", "duplicate epoch 2"),
        (String::new(), "missing epochs 1 to 3"),
    ] {
        fs::write(&path, &content).unwrap();
        let output = run(folder.path(), &resume);
        let errors = stderr(&output);
        assert!(output.status.success(), "{errors}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), said, "the result is the checkpoint's");
        let warning =
            format!("warning: out/metrics.jsonl: {problem}; the checkpoint is complete, and the run continues");
        assert_eq!(errors.lines().find(|l| l.starts_with("warning")), (!problem.is_empty()).then_some(&*warning));
        assert_eq!(fs::read_to_string(&path).unwrap(), content, "{problem}: nothing is deleted");
        assert!(content == whole || fs::read(out.join("curves.svg")).unwrap() == curves, "{problem}: the curves stay");
    }
    fs::write(&path, format!("{}\ndamaged\n{}\n", lines[0], lines[2])).unwrap();
    good(folder.path(), &format!("{train} --epochs 4 --resume"));
    assert!(fs::read(out.join("curves.svg")).unwrap() == curves, "curves without a point replace none");
    let after = fs::read_to_string(&path).unwrap();
    assert_eq!(after.lines().take(3).collect::<Vec<_>>(), [lines[0], "damaged", lines[2]]);
    assert!(after.lines().nth(3).unwrap().starts_with("{\"epoch\":4,"));
}

#[test]
fn curves_that_cannot_be_drawn_do_not_end_a_run() {
    let folder = folder();
    fs::create_dir_all(folder.path().join("out/curves.png/inside")).unwrap();
    let train = "train --model resnet8_cifar --epochs 1 --batch 512 --out out";
    let output = run(folder.path(), train);
    let errors = stderr(&output);
    assert!(output.status.success(), "{errors}");
    let warnings: Vec<_> = errors.lines().filter(|l| l.starts_with("warning: ")).collect();
    assert!(warnings.len() == 1 && warnings[0].starts_with("warning: the curves are not drawn: out/curves.png: "));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("test accuracy ") && said.ends_with("out: checkpoint.safetensors, metrics.jsonl\n"));
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_whole_files_only() {
    let folder = folder();
    let train = "train --model resnet8_cifar --epochs 100000 --batch 512 --checkpoint-every 1 --device cpu --out out";
    let out = folder.path().join("out");
    let rounds = 8;
    for round in 0..rounds {
        let child = start(folder.path(), &format!("{train} --resume"));
        // Before its first line, later in its steps, then inside a write.
        std::thread::sleep(Duration::from_millis(37 * round + round % 3));
        if round > 2 {
            while !out.join("metrics.jsonl").exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            stop_in_a_write(&child, &out);
        }
        let signal = ["INT", "TERM"][round as usize % 2];
        send(signal, &child);
        send("CONT", &child);
        let output = end(child);
        assert!(!output.status.success());
        let left = if out.exists() { names(&out) } else { Vec::new() };
        let whole = left.iter().all(|name| FILES.contains(&name.as_str()));
        // Before the handler is installed, the default action leaves the lock.
        assert!(whole || (round == 0 && left == [".residuum-lock"]), "after {signal} in round {round}: {left:?}");
        if out.join("checkpoint.safetensors").exists() {
            good(folder.path(), "eval --checkpoint out/checkpoint.safetensors");
        }
    }
}
