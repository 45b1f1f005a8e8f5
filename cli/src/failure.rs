//! Failures: one line on standard error and an exit code.

use std::io::Write;
use std::process::ExitCode;

use crate::signals;

/// Why a command ended early.
#[derive(Debug)]
pub enum Failure {
    /// Invalid arguments: exit code 2.
    Arguments(String),
    /// The work failed: exit code 1.
    Work(String),
    /// The reader of standard output has gone, which is no failure.
    Closed,
}

impl Failure {
    /// Prints the cause and returns the exit code.
    pub fn report(self) -> ExitCode {
        signals::give_way();
        match self {
            Self::Arguments(cause) => {
                note("error", &cause);
                ExitCode::from(2)
            }
            Self::Work(cause) => {
                note("error", &cause);
                ExitCode::FAILURE
            }
            Self::Closed => ExitCode::SUCCESS,
        }
    }
}

impl From<residuum::Error> for Failure {
    fn from(error: residuum::Error) -> Self {
        Self::Work(error.to_string())
    }
}

/// Prints `kind: text` as one line on standard error.
pub fn note(kind: &str, text: &str) {
    // If standard error is closed, nothing can be reported.
    let _ = writeln!(std::io::stderr(), "{kind}: {}", plain(text));
}

/// `text` as one line without control characters, which names in it may have.
fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => " ".into(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// Prints `text` as a line on standard output.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(unprinted)
}

/// The failure of standard output with `error`.
fn unprinted(error: std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Work(format!("standard output: {error}")),
    }
}

/// Prints the help, the version or the error of the arguments in one line, and returns the exit code.
pub fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            match error.print().and_then(|()| std::io::stdout().flush()) {
                // A missing subcommand prints to standard error, whose failure cannot be reported.
                Err(e) if !error.use_stderr() => unprinted(e).report(),
                _ => ExitCode::from(error.exit_code() as u8),
            }
        }
        _ => Failure::Arguments(one_line(&error.render().to_string())).report(),
    }
}

/// The cause and the tips of clap's message, without the usage, in one line.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let cause: Vec<&str> =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information")).collect();
    let cause = cause.join(" ");
    cause.strip_prefix("error: ").unwrap_or(&cause).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_no_control_characters() {
        assert_eq!(plain("a\nb \u{1b}[2J\r\u{e9}"), "a b \\u{1b}[2J\\r\u{e9}");
    }

    #[test]
    fn claps_messages_become_one_line() {
        let text = "error: the following required arguments were not provided:\n  --weights <FILE>\n\nUsage: residuum \
                    infer\n\nFor more information, try '--help'.\n";
        assert_eq!(one_line(text), "the following required arguments were not provided: --weights <FILE>");
        let text =
            "error: unexpected argument '--ephocs' found\n\n  tip: a similar argument exists: '--epochs'\n\nUsage: x";
        assert_eq!(one_line(text), "unexpected argument '--ephocs' found tip: a similar argument exists: '--epochs'");
    }
}
