//! Memory that another library owns.

use std::sync::Arc;

use super::{Memory, View};
use crate::{Error, Result};

#[derive(Debug)]
struct Foreign {
    address: u64,
    bytes: usize,
}

impl Foreign {
    fn refuse(&self, what: &str) -> Error {
        Error::unsupported(
            format!("{what} foreign memory at {:#x}", self.address),
            "its owner copies; this library only runs kernels on it",
        )
    }
}

impl Memory for Foreign {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn write(&self, _offset: usize, _src: &[u8]) -> Result<()> {
        Err(self.refuse("writing"))
    }

    fn zero(&self, _offset: usize, _bytes: usize) -> Result<()> {
        Err(self.refuse("zeroing"))
    }

    fn read(&self, _offset: usize, _dst: &mut [u8]) -> Result<()> {
        Err(self.refuse("reading"))
    }
}

impl View {
    /// `bytes` bytes at the device address `address` that another library owns, for its tensors as inputs, outputs and
    /// scratch of launches. The library neither frees nor copies them.
    ///
    /// # Safety
    /// The memory is of the device that runs the launches, `address` is aligned as the tensor needs (256 bytes always
    /// suffice), and it lives until the last launch that uses the view or a clone of it has ended.
    pub unsafe fn foreign(address: u64, bytes: usize) -> Self {
        Self::whole(Arc::new(Foreign { address, bytes }))
    }
}
