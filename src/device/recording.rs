//! A list of launches that is replayed as one.

use std::fmt;
use std::sync::Arc;

use super::{Backend, Launch};
use crate::Result;

/// What a backend made of a list of launches to repeat it faster: a CUDA graph.
pub trait Replay: fmt::Debug + Send + Sync {
    /// Puts all launches on the device's queue, in order.
    fn replay(&self) -> Result<()>;
}

/// Launches that are replayed with the same parameters and memory, which it keeps alive.
#[derive(Debug)]
pub struct Recording {
    // Dropped before the launches, whose memory it uses.
    replay: Option<Box<dyn Replay>>,
    launches: Vec<Launch>,
    backend: Arc<dyn Backend>,
}

impl Recording {
    /// Records `launches` once, without running them.
    ///
    /// From the first launch on that is behind a gate none may change a gate: a device may read all of them there, and not
    /// start what is behind the closed ones.
    pub fn new(backend: Arc<dyn Backend>, launches: Vec<Launch>) -> Result<Self> {
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

    /// What is replayed.
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }
}
