//! Device memory, allocated and freed in the order of the stream if the driver can.

use std::sync::{Arc, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::CudaStream;

use super::context::Context;
use super::faults::OUT_OF_MEMORY;
use crate::device::memory::check_range;
use crate::{Error, Result};

/// Every address is a multiple of this.
const ALIGNMENT: u64 = 256;

/// `bytes` bytes from `address` on, allocated in the context for this value alone and freed when it is dropped. Only
/// work on the context's stream uses them, or work that the stream waits for.
#[derive(Debug)]
pub(super) struct CudaMemory {
    pub address: u64,
    pub bytes: usize,
    pub context: Arc<Context>,
}

impl CudaMemory {
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.enter()?;
        // An empty buffer must have an address of its own too.
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
            let (info, faults) = (result::mem_get_info(), &context.faults);
            let free = info.map_or(String::new(), |(free, total)| format!(", {free} of {total} are free"));
            match faults.error(&format!("allocating {bytes} bytes{free}"), error) {
                Error::OutOfMemory { .. } => Error::out_of_memory(format!("{}{free}: a program", faults.device), bytes),
                other => other,
            }
        })?;
        let memory = Self { address, bytes, context: context.clone() };
        if address % ALIGNMENT != 0 {
            return Err(Error::unsupported(format!("memory at {address:#x}"), "the kernels need multiples of 256"));
        }
        Ok(memory)
    }

    /// Copies `src` to `offset` on `stream`, for which the context's stream must wait before the memory is dropped.
    pub fn copy_in(&self, offset: usize, src: &[u8], stream: &CudaStream) -> Result<()> {
        let to = self.range("write to device memory", offset, src.len())?;
        let mut staging = self.context.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `call` makes the context current; `to` is `src.len()` bytes of this memory, by `range`.
        self.context.call("copying to the device", || unsafe { staging.write(to, src, stream) })
    }

    /// The address of `len` bytes at `offset`; fails if they exceed the memory. `what` names the use in the error.
    pub fn range(&self, what: &str, offset: usize, len: usize) -> Result<u64> {
        check_range(what, offset, len, self.bytes)?;
        Ok(self.address + offset as u64)
    }
}

/// `bytes` bytes, uninitialised; the context is current.
fn allocate(context: &Context, bytes: usize) -> Result<u64, DriverError> {
    // SAFETY: the context keeps its stream alive; allocating needs no more.
    unsafe {
        if context.primary.has_async_alloc() {
            result::malloc_async(context.stream.cu_stream(), bytes)
        } else {
            result::malloc_sync(bytes)
        }
    }
}

/// Returns the driver's cached memory to the device, if it can.
fn trim(context: &Context) {
    if context.primary.has_async_alloc() {
        // SAFETY: the context keeps the device alive, and with it the pool.
        let pool = unsafe { result::device::get_mem_pool(context.primary.cu_device()) };
        // SAFETY: as above.
        let _ = pool.and_then(|pool| unsafe { result::mem_pool::trim_to(pool, 0) });
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        let context = &self.context;
        // Errors have nowhere to go; a lost context has lost its memory too.
        if context.enter().is_err() {
            return;
        }
        // SAFETY: this value owns the memory and ends here; all work on it is on the stream, which waits for the rest.
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
