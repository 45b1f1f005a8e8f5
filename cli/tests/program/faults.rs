//! Faults at the n-th file operation, for every n of a short run with checkpoints: errors, short writes, interrupts and
//! kills. The program ends cleanly, and a resumed run ends with the bytes of an undisturbed one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use residuum::train::Checkpoint;

use crate::runs::end;
use crate::train::timeless;
use crate::{folder, program};

const FILES: [&str; 4] = ["checkpoint.safetensors", "curves.png", "curves.svg", "metrics.jsonl"];
const TRAIN: &str = "train --model resnet8_cifar --epochs 2 --batch 128 --checkpoint-every 4 --device cpu --out out";

/// Compiles the layer into `folder`; `None`, after a message, on systems that it does not support.
fn layer(folder: &Path) -> Option<PathBuf> {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        eprintln!("skipped: the file layer with faults needs Linux and glibc");
        return None;
    }
    let (source, library) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/program/faults.cpp"), folder.join("f.so"));
    // A path may be null, though the headers declare it nonnull.
    let options = ["-std=c++17", "-O1", "-fno-delete-null-pointer-checks", "-shared", "-fPIC", "-o"];
    let compiler = std::env::var("CXX").unwrap_or("c++".into());
    let output = Command::new(compiler).args(options).arg(&library).arg(source).arg("-ldl").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(library)
}

/// The program with `arguments` in `folder`, over `layer`, which injects `kind` at call `at`.
fn meet(folder: &Path, layer: &Path, arguments: &str, kind: &str, at: usize) -> Output {
    let mut command = program(folder);
    command.args(arguments.split_whitespace()).env("LD_PRELOAD", layer).env("FAULT_INSIDE", "out");
    command.env("FAULT_KIND", kind).env("FAULT_AT", at.to_string());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    end(command.spawn().unwrap())
}

/// The calls of an undisturbed run with `arguments`.
fn calls(folder: &Path, layer: &Path, arguments: &str) -> Vec<String> {
    let log = folder.join("log");
    fs::remove_file(&log).ok();
    let mut command = program(folder);
    command
        .args(arguments.split_whitespace())
        .env("LD_PRELOAD", layer)
        .env("FAULT_INSIDE", "out")
        .env("FAULT_LOG", &log);
    assert!(command.output().unwrap().status.success());
    fs::read_to_string(&log).unwrap().lines().map(String::from).collect()
}

/// Asserts that the program ended cleanly after fault `kind` at call `at` of `name`: with success or one error, and
/// without a partial file.
fn check(kind: &str, at: usize, name: &str, output: &Output, out: &Path) {
    let (what, errors) = (format!("{kind} at call {at}, {name}"), String::from_utf8_lossy(&output.stderr));
    assert!(!errors.contains("panicked"), "{what}: {errors}");
    let causes = errors.lines().filter(|line| line.starts_with("error: ")).count();
    match (kind, output.status.code()) {
        ("kill" | "int", None) => {}
        ("short", Some(0)) | ("once" | "on", Some(0)) => assert_eq!(causes, 0, "{what}: {errors}"),
        ("once" | "on", Some(1)) => assert_eq!(causes, 1, "{what}: {errors}"),
        (_, code) => panic!("{what}: {code:?}, {errors}"),
    }
    let path = out.join("checkpoint.safetensors");
    if path.exists() {
        Checkpoint::read(path).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    // If a removal fails or the process is killed, a partial file may stay under a name that the next run removes.
    if ["once", "short", "int"].contains(&kind) && !["unlink", "rmdir"].contains(&name) && out.exists() {
        let mut left = crate::names(out);
        // An early interrupt, or a failed `statx`, may leave the lock, since its owner is not known.
        let unknown = (kind == "int" && at < 12) || name == "statx";
        left.retain(|left| !(unknown && left == ".residuum-lock"));
        assert!(left.iter().all(|name| FILES.contains(&&**name)), "{what}: {left:?}");
    }
}

/// A run that meets `kind` at call `at`, and is resumed without faults.
fn trial(layer: &Path, whole: &Path, kind: &str, at: usize, name: &str) {
    let folder = folder();
    let out = folder.path().join("out");
    check(kind, at, name, &meet(folder.path(), layer, TRAIN, kind, at), &out);
    let output = program(folder.path()).args(TRAIN.split(' ')).arg("--resume").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "resumed after {kind} at call {at}, {name}: {errors}");
    assert_eq!(crate::names(&out), FILES, "after {kind} at call {at}, {name}");
    assert_eq!(timeless(&out), timeless(whole), "after {kind} at call {at}, {name}");
    let read = |run: &Path| fs::read(run.join("checkpoint.safetensors")).unwrap();
    assert!(read(&out) == read(whole), "other bytes after {kind} at call {at}, {name}");
}

/// Each call meets one kind of fault, with RESIDUUM_LONG=1 every kind.
#[test]
fn a_run_survives_any_fault_of_any_call() {
    let folder = folder();
    let Some(layer) = layer(folder.path()) else { return };
    let long = std::env::var_os("RESIDUUM_LONG").is_some_and(|v| v == "1");
    let calls = calls(folder.path(), &layer, TRAIN);
    assert!(calls.len() > 40 && calls.iter().any(|c| c == "rename") && calls.iter().any(|c| c == "fsync"), "{calls:?}");
    let whole = folder.path().join("out");
    let kinds = ["once", "on", "int", "kill", "short"];
    let trials: Vec<_> = (0..calls.len() * kinds.len())
        .map(|i| (i / kinds.len(), kinds[i % kinds.len()]))
        .filter(|(at, kind)| long || kinds[at % kinds.len()] == *kind)
        .collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(&(at, kind)) = trials.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    trial(&layer, &whole, kind, at + 1, &calls[at]);
                }
            });
        }
    });
}

/// A resumption that meets a fault keeps its checkpoint: an unreadable checkpoint does not count as missing.
#[test]
fn a_resume_survives_any_fault_of_any_call() {
    let folder = folder();
    let Some(layer) = layer(folder.path()) else { return };
    let once = TRAIN.replace("--epochs 2", "--schedule constant --epochs 1");
    let run = |arguments: &str| drop(crate::good(folder.path(), arguments));
    run(&once);
    let resume = once.replace("--epochs 1", "--epochs 2 --resume");
    let (out, kept) = (folder.path().join("out"), folder.path().join("kept"));
    let restore = |from: &Path, to: &Path| {
        fs::remove_dir_all(to).ok();
        fs::create_dir(to).unwrap();
        for name in FILES {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    };
    restore(&out, &kept);
    let calls = calls(folder.path(), &layer, &resume);
    let whole = timeless(&out);
    let first = timeless(&kept);
    for (at, name) in
        calls.iter().enumerate().filter(|(at, name)| at % 7 == 0 || ["statx", "read", "flock"].contains(&&***name))
    {
        restore(&kept, &out);
        let output = meet(folder.path(), &layer, &resume, "once", at + 1);
        check("once", at + 1, name, &output, &out);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!errors.contains("starting anew"), "after {name}, call {at}: {errors}");
        let found = Checkpoint::read(out.join("checkpoint.safetensors")).unwrap();
        assert!(found.step >= 11, "after {name}, call {at}, the checkpoint is of step {}", found.step);
        assert_eq!(timeless(&out)[0], first[0], "after {name}, call {at}");
        run(&resume);
        assert_eq!(timeless(&out), whole, "after {name}, call {at}");
    }
}
