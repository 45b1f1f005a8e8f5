//! The one error type of the library.

use std::path::PathBuf;

use crate::tensor::Shape;

/// One line that names the op, tensor, file or option, what was found and what was expected.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An invalid descriptor, option or argument.
    #[error("{what}: {problem}")]
    Invalid {
        /// The op, option or tensor.
        what: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// A tensor whose shape is not the descriptor's.
    #[error("{what}: shape {found}, expected {expected}")]
    Shape {
        /// The op and tensor.
        what: String,
        /// The shape that the descriptor needs.
        expected: Shape,
        /// The shape that was given.
        found: Shape,
    },
    /// A request that this library, build or device does not support.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// The request.
        what: String,
        /// Why, and what is supported instead.
        reason: String,
    },
    /// An unknown name of a model, tensor or kernel.
    #[error("unknown {kind} `{name}`{}", suggestion(.nearest))]
    Unknown {
        /// What kind of name it is.
        kind: &'static str,
        /// The name that was given.
        name: String,
        /// The nearest names that exist.
        nearest: Vec<String>,
    },
    /// The operating system refused a file operation.
    #[error("{}: {problem}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's text.
        problem: String,
    },
    /// A file with invalid content.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found, where, and what was expected.
        problem: String,
    },
    /// A run whose numbers are no longer finite. Its last checkpoint is still good.
    #[error("{what} at step {step}, learning rate {learning_rate:?}{}; try a lower rate", first_layer(.layer))]
    Diverged {
        /// The quantity that is not finite, and its value.
        what: String,
        /// Steps done, the last one included.
        step: usize,
        /// The learning rate of that step.
        learning_rate: f64,
        /// The first layer whose output is not finite, if one was found.
        layer: Option<String>,
    },
    /// The host or the device has no memory for a program or a tensor. A smaller batch or freed memory helps.
    #[error("out of memory: {what}{}", needs(*.bytes))]
    OutOfMemory {
        /// What the memory was for, and on which device.
        what: String,
        /// The bytes requested, `usize::MAX` if they exceed it; `None` if the driver does not say.
        bytes: Option<usize>,
    },
    /// No usable device of that kind.
    #[error("{device} device: {reason}")]
    NoDevice {
        /// The kind of device.
        device: &'static str,
        /// What is missing and how to get it.
        reason: String,
    },
    /// The device failed; its context may be lost.
    #[error("{device}: {what}: {problem}")]
    Device {
        /// The device.
        device: String,
        /// The kernel and its shapes, or the call.
        what: String,
        /// The device's own text.
        problem: String,
    },
}

/// A result with the library's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { what: line(what.into()), problem: line(problem.into()) }
    }

    /// Fails with an [`Error::Invalid`] unless `holds`.
    pub(crate) fn check(holds: bool, what: impl Into<String>, problem: impl FnOnce() -> String) -> Result<()> {
        holds.then_some(()).ok_or_else(|| Self::invalid(what, problem()))
    }

    /// An [`Error::OutOfMemory`].
    pub fn out_of_memory(what: impl Into<String>, bytes: usize) -> Self {
        Self::OutOfMemory { what: what.into(), bytes: Some(bytes) }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), reason: reason.into() }
    }

    /// An [`Error::Io`] of `path`.
    pub fn io(path: impl Into<PathBuf>, source: &std::io::Error) -> Self {
        Self::Io { path: path.into(), problem: source.to_string() }
    }

    /// An [`Error::File`] of `path`.
    pub fn file(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::File { path: path.into(), problem: line(problem.into()) }
    }
}

fn first_layer(layer: &Option<String>) -> String {
    layer.as_ref().map_or(String::new(), |layer| format!(" (the first layer whose output is not finite: {layer})"))
}

/// The most bytes of a text that an error repeats, from its start and from its end.
const SHOWN: usize = 600;

/// `text` as one line of bounded length: control characters are escaped, the middle of a long text is left out.
pub(crate) fn line(text: String) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().collect() } else { String::from(c) };
    let text = if text.contains(char::is_control) { text.chars().map(escaped).collect() } else { text };
    if text.len() <= 2 * SHOWN {
        return text;
    }
    let near = |at: usize| (at..text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len());
    format!("{} ... {}", &text[..near(SHOWN)], &text[near(text.len() - SHOWN)..])
}

fn needs(bytes: Option<usize>) -> String {
    match bytes {
        Some(usize::MAX) => format!(" needs {} bytes or more", usize::MAX),
        Some(bytes) => format!(" needs {bytes} bytes"),
        None => String::new(),
    }
}

fn suggestion(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        names => format!("; did you mean {}?", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_short_line() {
        let name = format!("a\nb\u{1b}[2J{}", "\u{e9}".repeat(100_000));
        for error in [Error::invalid(format!("tensor `{name}`"), "missing"), Error::file("w", format!("`{name}`"))] {
            let text = error.to_string();
            assert!(text.len() < 2000 && !text.chars().any(char::is_control), "{text}");
            assert!(text.contains("a\\nb\\u{1b}[2J"), "{text}");
        }
        assert_eq!(Error::file("w", "quotes \" and \u{e9} stay").to_string(), "w: quotes \" and \u{e9} stay");
    }
}
