//! The program as its users run it.

#![allow(clippy::unwrap_used)]

mod arguments;
mod check;
mod data;
mod faults;
mod files;
mod fuzz;
mod identity;
#[cfg(target_os = "linux")]
mod limits;
mod plan;
mod runs;
mod step;
mod train;
mod weights;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Makes the programs started from now on take interrupts. A shell starts its background jobs with SIGINT ignored;
/// programs inherit that and keep it, and the tests may be such a job.
fn take_interrupts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // A handled signal has its default action in a new program. Here it keeps its default action, too.
            let always = Arc::new(AtomicBool::new(true));
            signal_hook::flag::register_conditional_default(signal, always).unwrap();
        }
    });
}

/// The program in `folder`.
fn program(folder: &Path) -> Command {
    take_interrupts();
    let mut command = Command::new(env!("CARGO_BIN_EXE_residuum"));
    command.current_dir(folder);
    command
}

/// What the program with `arguments`, which are cut at spaces, does in `folder`.
fn run(folder: &Path, arguments: &str) -> Output {
    program(folder).args(arguments.split_whitespace()).output().unwrap()
}

/// Asserts success; standard output.
fn good(folder: &Path, arguments: &str) -> String {
    let output = run(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Asserts that the program fails with `code` and one line `error: ...` on standard error; that line's text.
fn bad(folder: &Path, arguments: &str, code: i32) -> String {
    cause(arguments, &run(folder, arguments), code)
}

/// Asserts that `output` is a failure with `code` and that the last line of standard error is its cause; the cause.
fn cause(what: &str, output: &Output, code: i32) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{what}: {errors}");
    assert!(!errors.contains("panicked"), "{what}: {errors}");
    let causes: Vec<&str> = errors.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(causes.len(), 1, "{what}: one cause in {errors:?}");
    assert_eq!(errors.lines().last(), Some(causes[0]), "{what}: the cause comes last");
    causes[0]["error: ".len()..].to_string()
}

/// A folder that goes away.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// The names in `folder`, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
