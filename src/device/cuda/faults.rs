//! The errors of a device, and the launches that may have caused them.
//!
//! Kernels run after their launch returns, so an error shows at a later call. Some errors end the context; every later
//! call returns the first of them.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::result::DriverError;

use super::errors::describe;
use crate::device::Launch;
use crate::Error;

/// Errors after which the driver runs nothing more in this process, from the text of `cuda.h`: deinitialized,
/// uncorrectable ECC and NVLink errors, contained, illegal address, launch timeout, destroyed context, assert, hardware
/// stack error, illegal instruction, misaligned address, invalid address space, invalid PC, launch failed, tensor
/// memory leak, MPS client terminated, external device.
const FATAL: &[u32] = &[4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911];

/// Out of memory.
pub(super) const OUT_OF_MEMORY: u32 = 2;
/// No kernel image, invalid PTX, no PTX compiler, PTX of a newer release, invalid image.
const IMAGE: &[u32] = &[200, 209, 218, 221, 222, 223];

/// The number of launches since a synchronisation that are remembered by name.
const REMEMBERED: usize = 8;

/// The errors of one device.
#[derive(Debug)]
pub(super) struct Faults {
    /// The device's name in messages.
    pub device: String,
    /// The build's kernels, for messages about images.
    embedded: String,
    /// The error that ended the context, if one has.
    pub fatal: OnceLock<Error>,
    in_flight: Mutex<InFlight>,
}

/// Launches since the last synchronisation.
#[derive(Debug, Default)]
struct InFlight {
    count: usize,
    last: std::collections::VecDeque<Label>,
}

/// A launch, cheap to keep.
#[derive(Clone, Copy, Debug)]
struct Label {
    kernel: &'static str,
    grid: [u32; 3],
    threads: u32,
    /// The number of launches: more than 1 for a replayed graph.
    launches: usize,
}

impl Faults {
    pub fn new(device: String, embedded: String) -> Self {
        Self { device, embedded, fatal: OnceLock::new(), in_flight: Mutex::default() }
    }

    /// Remembers that `launch`, or a graph of `launches` launches that starts with it, is under way.
    pub fn launched(&self, launch: &Launch, launches: usize) {
        let mut in_flight = self.in_flight();
        in_flight.count += launches;
        if in_flight.last.len() == REMEMBERED {
            in_flight.last.pop_front();
        }
        in_flight.last.push_back(Label::new(launch, launches));
    }

    /// Forgets the launches so far: they have ended without an error.
    pub fn synchronized(&self) {
        *self.in_flight() = InFlight::default();
    }

    /// The library's error for the driver's `error` in `call`. Keeps the first fatal one.
    pub fn error(&self, call: &str, error: DriverError) -> Error {
        let code = error.0 as u32;
        let fatal = FATAL.contains(&code);
        let what = if fatal { format!("{call}{}", self.suspects()) } else { call.to_string() };
        let mut problem = describe(code);
        if code == OUT_OF_MEMORY {
            return Error::OutOfMemory { what: format!("{}: {what}: {problem}", self.device), bytes: None };
        }
        if fatal {
            problem += "; the CUDA context is lost, restart the process";
        }
        if IMAGE.contains(&code) {
            problem = format!("{problem}; {}", self.embedded);
        }
        let error = Error::Device { device: self.device.clone(), what, problem };
        match fatal {
            true => self.fatal.get_or_init(|| error).clone(),
            false => error,
        }
    }

    /// The launches that may have failed, newest last.
    fn suspects(&self) -> String {
        let in_flight = self.in_flight();
        if in_flight.count == 0 {
            return String::new();
        }
        let labels: Vec<String> = in_flight.last.iter().map(Label::to_string).collect();
        let shown: usize = in_flight.last.iter().map(|label| label.launches).sum();
        let others = in_flight.count - shown;
        let more = if others > 0 { format!("{others} others, ") } else { String::new() };
        let hint = if in_flight.count > 1 { "; RESIDUUM_SYNC=1 finds the one that failed" } else { "" };
        format!(" after launching {more}{}{hint}", labels.join(", "))
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Label {
    fn new(launch: &Launch, launches: usize) -> Self {
        let kernel = launch.kernel();
        Self { kernel: kernel.name, grid: launch.grid(), threads: kernel.threads, launches }
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kernel, grid: [x, y, z], threads, launches } = self;
        match launches {
            1 => write!(f, "{kernel} on {x}x{y}x{z} blocks of {threads}"),
            _ => write!(f, "a graph of {launches} launches from {kernel} on"),
        }
    }
}

/// A launch with its sizes, for messages.
pub(super) fn label(launch: &Launch) -> String {
    let (short, shared) = (Label::new(launch, 1), launch.kernel().shared_bytes);
    let bytes: Vec<String> = launch.views().iter().map(|view| view.bytes().to_string()).collect();
    format!("{short} threads with {shared} bytes of shared memory, tensors of {} bytes", bytes.join(", "))
}
