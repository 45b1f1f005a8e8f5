//! A device that is only planned for.

use std::sync::Arc;

use super::{Arch, Backend, Device, Launch, Memory};
use crate::{Error, Result};

impl Device {
    /// A device of `arch` on which programs are compiled as for a GPU, to see their launches, memory and costs, but
    /// cannot run: its memory has addresses and sizes and no bytes, so that a program of any size fits.
    pub fn blueprint(arch: Arch) -> Self {
        Self::Kernels(Arc::new(Blueprint { arch }))
    }
}

/// Binds launches and runs none.
#[derive(Debug)]
struct Blueprint {
    arch: Arch,
}

impl Backend for Blueprint {
    fn kind(&self) -> &'static str {
        "blueprint"
    }

    fn name(&self) -> String {
        format!("blueprint for {}", self.arch)
    }

    fn arch(&self) -> Arch {
        self.arch
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Memory>> {
        Ok(Arc::new(Reserved { bytes }))
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        Err(refuse(&format!("launching {}", launch.kernel().name)))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

/// The first address of every memory: aligned as a GPU's, and not null.
const ADDRESS: u64 = 1 << 20;

/// A range of addresses with nothing behind them.
#[derive(Debug)]
struct Reserved {
    bytes: usize,
}

impl Memory for Reserved {
    fn address(&self) -> u64 {
        ADDRESS
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    /// Does nothing: compiling a program sets its first state.
    fn write(&self, _offset: usize, _src: &[u8]) -> Result<()> {
        Ok(())
    }

    fn zero(&self, _offset: usize, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn read(&self, _offset: usize, _dst: &mut [u8]) -> Result<()> {
        Err(refuse("reading memory"))
    }
}

fn refuse(what: &str) -> Error {
    Error::unsupported(format!("{what} on a blueprint"), "it has no memory and runs nothing; it only plans")
}
