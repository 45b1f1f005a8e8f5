//! Launches that are replayed as one.

use std::sync::Arc;

use super::backend::{Backend, Replay};
use super::launch::Launch;
use crate::Result;

/// Launches to repeat with the same parameters and memory, both of which it keeps alive. On CUDA it is a graph.
///
/// ```
/// use residuum::device::{Arch, Device, Recording};
///
/// let Device::Kernels(backend) = Device::blueprint(Arch::Sm80) else { unreachable!() };
/// let step = Recording::new(backend, Vec::new())?;
/// step.replay()?;
/// assert!(step.launches().is_empty());
/// # Ok::<(), residuum::Error>(())
/// ```
#[derive(Debug)]
pub struct Recording {
    replay: Option<Box<dyn Replay>>,
    launches: Arc<[Launch]>,
    backend: Arc<dyn Backend>,
}

impl Recording {
    /// Records `launches` without running them.
    ///
    /// No launch may write a gate after the first gated launch, where a device may read all gates to skip launches.
    pub fn new(backend: Arc<dyn Backend>, launches: Vec<Launch>) -> Result<Self> {
        let launches = launches.into();
        let replay = backend.record(&launches)?;
        Ok(Self { replay, launches, backend })
    }

    /// Puts every launch on the device's queue, in order; returns before they end.
    pub fn replay(&self) -> Result<()> {
        match &self.replay {
            Some(replay) => replay.replay(),
            None => self.launches.iter().try_for_each(|launch| self.backend.launch(launch)),
        }
    }

    /// The recorded launches.
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }
}
