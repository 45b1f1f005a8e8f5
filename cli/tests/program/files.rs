//! Writing files: concurrently, on a full disk, under interruption.

use std::fs::{self, File};
use std::os::unix::fs::{symlink, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use residuum::models::weights;

use crate::weights::{images, state, write};
use crate::{cause, folder, good, names, program};

const INFER: &str = "infer --model resnet8_cifar --weights w --input x --output";

/// A folder with weights `w` and `n` images `x`.
fn prepared(n: usize) -> tempfile::TempDir {
    let folder = folder();
    write(folder.path(), "w", &state());
    write(folder.path(), "x", &images(n));
    folder
}

#[test]
fn programs_that_write_one_output_at_once_leave_it_whole() {
    let folder = prepared(40);
    good(folder.path(), &format!("{INFER} out"));
    let expected = fs::read(folder.path().join("out")).unwrap();
    for _ in 0..3 {
        let start = || program(folder.path()).args(INFER.split(' ')).arg("out").stderr(Stdio::null()).spawn().unwrap();
        let mut children: Vec<_> = (0..6).map(|_| start()).collect();
        let mut running = true;
        while running {
            running = children.iter_mut().any(|child| child.try_wait().unwrap().is_none());
            assert!(fs::read(folder.path().join("out")).unwrap() == expected, "a torn file");
        }
        let codes: Vec<_> = children.iter_mut().map(|child| child.wait().unwrap().code()).collect();
        assert_eq!(codes, [Some(0); 6]);
    }
    assert_eq!(names(folder.path()), ["out", "w", "x"]);
}

#[test]
fn an_output_keeps_its_permissions_and_follows_no_planted_link() {
    let folder = prepared(1);
    let at = |name: &str| folder.path().join(name);
    fs::write(at("victim"), "precious").unwrap();
    symlink("victim", at(".y.tmp")).unwrap();
    fs::write(at("y"), "").unwrap();
    fs::set_permissions(at("y"), fs::Permissions::from_mode(0o600)).unwrap();
    good(folder.path(), &format!("{INFER} y"));
    assert_eq!(fs::read_to_string(at("victim")).unwrap(), "precious");
    assert_eq!(fs::metadata(at("y")).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(weights::read(at("y")).unwrap().contains_key("logits"));
    let long = "n".repeat(255);
    good(folder.path(), &format!("{INFER} {long}"));
    assert!(weights::read(at(&long)).unwrap().contains_key("logits"));
}

#[test]
fn a_full_disk_fails_with_one_line() {
    let folder = prepared(1);
    if Path::new("/dev/full").exists() {
        let output = program(folder.path()).args(INFER.split(' ')).arg("/dev/full").output().unwrap();
        assert!(cause("infer", &output, 1).starts_with("/dev/full: No space left on device"));
    }
    // Files may not grow at all. By default, SIGXFSZ would end the program without a message.
    let script = format!("ulimit -f 0; exec \"$0\" {INFER} y");
    let output =
        Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_residuum")]).current_dir(folder.path()).output();
    assert!(cause(&script, &output.unwrap(), 1).starts_with("y: File too large"));
    assert_eq!(names(folder.path()), ["w", "x"]);
}

#[test]
fn a_full_standard_output_is_a_failure_of_every_command() {
    if !Path::new("/dev/full").exists() {
        return eprintln!("skipped: there is no /dev/full");
    }
    let folder = prepared(1);
    fs::write(folder.path().join("p.tsv"), crate::check::table()).unwrap();
    good(folder.path(), "train --model resnet8_cifar --epochs 1 --batch 1000 --out run");
    for arguments in [
        "--help",
        "--version",
        "train --help",
        "models --version",
        "models",
        "models --json",
        "plan resnet8_cifar --batch 2",
        "plan resnet8_cifar --batch 2 --json",
        "check conv2d --problems p.tsv --pass fwd",
        "doctor",
        "eval --checkpoint run/checkpoint.safetensors",
        "eval --checkpoint run/checkpoint.safetensors --json",
        "train --resume --out run",
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = program(folder.path()).args(arguments.split(' ')).stdout(full).output().unwrap();
        assert!(cause(arguments, &output, 1).starts_with("standard output: No space left on device"), "{arguments}");
    }
    // A reader that has gone is no failure.
    for arguments in ["--help", "models"] {
        let mut child =
            program(folder.path()).arg(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        assert!(child.wait().unwrap().success(), "{arguments}");
    }
}

#[test]
fn an_interrupt_ends_a_program_that_writes_unless_it_is_ignored() {
    if !Path::new("/proc/self/task").exists() {
        return eprintln!("skipped: the system does not show a program's threads");
    }
    let folder = prepared(1);
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let send = |child: &Child, name: &str| {
        let kill = Command::new("kill").args(["-s", name, &child.id().to_string()]).status();
        assert!(kill.unwrap().success());
    };
    // As `nohup` and scripts start programs in the background.
    let script = format!("trap '' INT; exec \"$0\" {INFER} pipe");
    let mut child = Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_residuum")])
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    // It waits for a reader that never comes.
    wait_for_writer(&child);
    send(&child, "INT");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "an interrupt that is ignored");
    send(&child, "TERM");
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > Duration::from_secs(20) => {
                child.kill().unwrap();
                panic!("SIGTERM did not end it");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    assert_eq!(status.signal(), Some(15));
    assert_eq!(names(folder.path()), ["pipe", "w", "x"]);
}

/// Waits for the program's signal thread, which starts just before the program writes.
fn wait_for_writer(child: &Child) {
    let start = Instant::now();
    let threads = || fs::read_dir(format!("/proc/{}/task", child.id()));
    let is_it =
        |path: std::path::PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "signals");
    while !threads().is_ok_and(|tasks| tasks.flatten().any(|task| is_it(task.path()))) {
        assert!(start.elapsed() < Duration::from_secs(20), "it never writes");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(100));
}
