//! Device memory, allocated and freed in the order of the stream where the driver can.

use std::sync::{Arc, PoisonError};

use cudarc::driver::result::{self, DriverError};

use super::context::Context;
use super::faults::OUT_OF_MEMORY;
use super::side::Side;
use crate::device::{Memory, SideQueue};
use crate::{Error, Result};

/// What every address is a multiple of.
const ALIGNMENT: u64 = 256;

#[derive(Debug)]
pub(super) struct CudaMemory {
    address: u64,
    bytes: usize,
    context: Arc<Context>,
}

impl CudaMemory {
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.enter()?;
        // A pointer to nothing must still be one that no other buffer has.
        let asked = bytes.max(1);
        let address = match allocate(context, asked) {
            Err(error) if error.0 as u32 == OUT_OF_MEMORY => {
                context.synchronize("freeing memory")?;
                trim(context);
                allocate(context, asked)
            }
            other => other,
        };
        let address = address.map_err(|error| {
            let free =
                result::mem_get_info().map_or(String::new(), |(free, total)| format!(", {free} of {total} are free"));
            match context.faults.error(&format!("allocating {bytes} bytes{free}"), error) {
                Error::OutOfMemory { .. } => {
                    Error::out_of_memory(format!("{}{free}: a program", context.faults.device()), bytes)
                }
                other => other,
            }
        })?;
        let memory = Self { address, bytes, context: context.clone() };
        if address % ALIGNMENT != 0 {
            return Err(Error::unsupported(format!("memory at {address:#x}"), "the kernels need multiples of 256"));
        }
        Ok(memory)
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Fails where the range leaves the memory; `what` is the use that the error names.
    pub fn check(&self, what: &str, offset: usize, len: usize) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(Error::invalid(what, format!("bytes {offset}..+{len} of a buffer of {}", self.bytes))),
        }
    }
}

fn allocate(context: &Context, bytes: usize) -> Result<u64, DriverError> {
    // SAFETY: the context is current and its stream alive; the memory is uninitialised, as the trait says.
    unsafe {
        if context.primary.has_async_alloc() {
            result::malloc_async(context.stream.cu_stream(), bytes)
        } else {
            result::malloc_sync(bytes)
        }
    }
}

/// Gives memory that the driver keeps for later back to the device. Failing to is no failure.
fn trim(context: &Context) {
    if context.primary.has_async_alloc() {
        // SAFETY: the device and its pool are alive.
        let _ = unsafe {
            result::device::get_mem_pool(context.primary.cu_device())
                .and_then(|pool| result::mem_pool::trim_to(pool, 0))
        };
    }
}

impl Memory for CudaMemory {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn write(&self, offset: usize, src: &[u8]) -> Result<()> {
        self.check("write to device memory", offset, src.len())?;
        let mut staging = self.context.staging.lock().unwrap_or_else(PoisonError::into_inner);
        self.context.call("copying to the device", || {
            // SAFETY: the context is current, and the range is inside this buffer.
            unsafe { staging.write(self.address + offset as u64, src, self.context.stream.cu_stream()) }
        })
    }

    fn zero(&self, offset: usize, bytes: usize) -> Result<()> {
        self.check("zeroing device memory", offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        self.context.call("zeroing device memory", || {
            // SAFETY: the context is current, and the range is inside this buffer.
            unsafe { result::memset_d8_async(self.address + offset as u64, 0, bytes, self.context.stream.cu_stream()) }
        })
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()> {
        self.check("read of device memory", offset, dst.len())?;
        let mut staging = self.context.staging.lock().unwrap_or_else(PoisonError::into_inner);
        self.context.call("copying from the device", || {
            // SAFETY: the context is current, and the range is inside this buffer.
            unsafe { staging.read(dst, self.address + offset as u64, self.context.stream.cu_stream()) }
        })
    }

    fn side_queue(self: Arc<Self>) -> Result<Option<Box<dyn SideQueue>>> {
        // A caller's stream is promised all work; a synchronous device does one thing at a time.
        if self.context.foreign || self.context.synchronous {
            return Ok(None);
        }
        Ok(Some(Box::new(Side::new(self)?)))
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        let context = &self.context;
        // Errors have nowhere to go from here; a lost context has lost its memory too.
        if context.enter().is_err() {
            return;
        }
        // SAFETY: the address was allocated like this and is freed once; work on it is ordered before.
        unsafe {
            if context.primary.has_async_alloc() {
                let _ = result::free_async(self.address, context.stream.cu_stream());
            } else {
                let _ = result::stream::synchronize(context.stream.cu_stream());
                let _ = result::free_sync(self.address);
            }
        }
    }
}
