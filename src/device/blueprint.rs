//! A device to plan for.

use std::sync::Arc;

use super::backend::Backend;
use super::launch::Launch;
use super::memory::{DeviceId, Memory};
use super::Arch;
use crate::{Error, Result};

/// A device of `arch` that runs nothing.
pub(super) fn open(arch: Arch) -> Arc<dyn Backend> {
    Arc::new(Blueprint { arch, id: DeviceId::unique() })
}

#[derive(Debug)]
struct Blueprint {
    arch: Arch,
    id: DeviceId,
}

// SAFETY: it runs nothing, and its memory names it as its device, so that no other device runs a launch on it.
unsafe impl Backend for Blueprint {
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
        Ok(Arc::new(Reserved { bytes, device: self.id }))
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

/// A range of addresses without memory.
#[derive(Debug)]
struct Reserved {
    bytes: usize,
    device: DeviceId,
}

// SAFETY: no kernel uses the addresses, as their device runs none.
unsafe impl Memory for Reserved {
    fn device(&self) -> Option<DeviceId> {
        Some(self.device)
    }

    fn address(&self) -> u64 {
        ADDRESS
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    /// Does nothing: a program writes its initial state when it is compiled.
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
