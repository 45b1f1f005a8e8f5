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

/// Lets programs started from now on receive interrupts: they inherit an ignored SIGINT if the tests are a background
/// job of a shell.
fn take_interrupts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // A handled signal is reset to its default in a new program; this handler keeps the default here, too.
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

/// Runs the program in `folder` with `arguments`, which are split at spaces.
fn run(folder: &Path, arguments: &str) -> Output {
    program(folder).args(arguments.split_whitespace()).output().unwrap()
}

/// Asserts success and returns standard output.
fn good(folder: &Path, arguments: &str) -> String {
    let output = run(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Asserts that the program fails with `code` and one line `error: ...` on standard error; returns that line's text.
fn bad(folder: &Path, arguments: &str, code: i32) -> String {
    cause(arguments, &run(folder, arguments), code)
}

/// Asserts that `output` is a failure with `code` and a cause in the last line of standard error; returns the cause.
fn cause(what: &str, output: &Output, code: i32) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{what}: {errors}");
    assert!(!errors.contains("panicked"), "{what}: {errors}");
    let causes: Vec<&str> = errors.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(causes.len(), 1, "{what}: one cause in {errors:?}");
    assert_eq!(errors.lines().last(), Some(causes[0]), "{what}: the cause comes last");
    causes[0]["error: ".len()..].to_string()
}

/// A temporary folder.
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
