//! The simulator as a [`Backend`].

use std::ffi::{c_void, CString};
use std::sync::{Arc, Mutex, PoisonError};

use super::ffi;
use super::options::{Schedule, SimOptions};
use crate::device::memory::check_range;
use crate::device::{Arch, Backend, DeviceId, Launch, Memory, View};
use crate::{Error, Result};

/// The prefix of the simulator's out-of-memory errors.
const NO_MEMORY: &str = "out of memory: ";

/// A simulated device. A launch runs synchronously.
#[derive(Debug)]
struct Sim {
    handle: Arc<Handle>,
    options: SimOptions,
}

/// The simulator's own object: `raw` is from `residuum_sim_new`, and alive until this is dropped.
#[derive(Debug)]
struct Handle {
    raw: *mut c_void,
    /// Serialises copies and launches.
    queue: Mutex<()>,
    id: DeviceId,
}

// SAFETY: `ffi` lets any thread use a device.
unsafe impl Send for Handle {}
// SAFETY: `ffi` lets threads allocate and release concurrently; launches and copies hold `queue`.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: `raw` is alive and freed here alone; every `SimMemory` holds an Arc of this, so none is left.
        unsafe { ffi::residuum_sim_free(self.raw) }
    }
}

pub(super) fn new(options: SimOptions) -> Result<Arc<dyn Backend>> {
    #[cfg(target_arch = "x86_64")]
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")) {
        let reason = "the simulator is compiled for AVX2, FMA and F16C, which this CPU lacks".into();
        return Err(Error::NoDevice { device: "sim", reason });
    }
    let (schedule, depth) = match options.schedule {
        Schedule::InOrder => (0, 0),
        Schedule::Reverse => (1, 0),
        Schedule::Random => (2, 0),
        Schedule::Priority { depth } => (3, depth),
    };
    let raw = ffi::Options {
        schedule,
        depth,
        copies: options.copies as u32,
        arithmetic: options.arithmetic as u32,
        alignment: options.alignment.clamp(16, 4096).next_power_of_two() as u32,
        shared_limit: options.arch.shared_limit(),
        approximate: u32::from(options.approximate),
        traffic: options.traffic.into(),
        seed: options.seed,
    };
    let mut problem = std::ptr::null_mut();
    // SAFETY: both are references to values of this function.
    let device = unsafe { ffi::residuum_sim_new(&raw, &mut problem) };
    // SAFETY: `problem` is null or the text that the call left.
    if let Some(reason) = unsafe { ffi::take_text(problem) } {
        return Err(match reason.strip_prefix(NO_MEMORY) {
            Some(of) => Error::OutOfMemory { what: of.into(), bytes: None },
            None => Error::NoDevice { device: "sim", reason },
        });
    }
    let handle = Handle { raw: device, queue: Mutex::new(()), id: DeviceId::unique() };
    Ok(Arc::new(Sim { handle: Arc::new(handle), options }))
}

// SAFETY: `SimMemory` names this device, `launch` checks that and runs the kernel before it returns.
unsafe impl Backend for Sim {
    fn kind(&self) -> &'static str {
        "sim"
    }

    fn name(&self) -> String {
        format!("simulator ({})", self.options)
    }

    fn arch(&self) -> Arch {
        self.options.arch
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Memory>> {
        // SAFETY: a `Handle`'s device is alive.
        let address = unsafe { ffi::residuum_sim_allocate(self.handle.raw, bytes) };
        if address.is_null() {
            return Err(Error::out_of_memory("a buffer of the simulator", bytes));
        }
        Ok(Arc::new(SimMemory { device: self.handle.clone(), address, bytes }))
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        launch.check_device(self.handle.id)?;
        let kernel = launch.kernel();
        let what = || format!("{} on a grid of {:?}", kernel.name, launch.grid());
        let name = CString::new(kernel.name).map_err(|_| self.error(what(), "the name holds a zero byte"))?;
        let (params, grid) = (launch.params(), launch.grid());
        let gate = launch.gate().map_or(0, View::address) as *const f32;
        let _queue = self.handle.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a `Handle`'s device is alive, the name ends with a zero and `grid` has three numbers. By `Launch`'s
        // contract the parameters are the kernel's and point into its views, memory of this device by the check above;
        // `gate` is null or holds an f32. `launch` keeps the memory alive.
        let text = unsafe {
            ffi::residuum_sim_launch(
                self.handle.raw,
                name.as_ptr(),
                params.as_ptr(),
                params.len(),
                gate,
                kernel.threads,
                grid.as_ptr(),
                kernel.shared_bytes,
            )
        };
        // SAFETY: the text is null or the launch's, which is ours to free.
        let Some(problem) = (unsafe { ffi::take_text(text) }) else { return Ok(()) };
        Err(match problem.strip_prefix(NO_MEMORY) {
            Some(of) => Error::OutOfMemory { what: of.into(), bytes: None },
            None => self.error(what(), problem),
        })
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

impl Sim {
    fn error(&self, what: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Device { device: format!("sim ({})", self.options), what: what.into(), problem: problem.into() }
    }
}

/// A guarded buffer: `bytes` bytes from `address` on, which `device` allocated for it alone.
#[derive(Debug)]
struct SimMemory {
    device: Arc<Handle>,
    address: *mut u8,
    bytes: usize,
}

// SAFETY: the bytes are touched only under the device's queue.
unsafe impl Send for SimMemory {}
// SAFETY: as above.
unsafe impl Sync for SimMemory {}

impl SimMemory {
    /// Calls `copy` with the address of `bytes` bytes at `offset`, while nothing else uses them; fails beyond the end.
    fn with(&self, offset: usize, bytes: usize, copy: impl FnOnce(*mut u8)) -> Result<()> {
        check_range("memory", offset, bytes, self.bytes)?;
        let _queue = self.device.queue.lock().unwrap_or_else(PoisonError::into_inner);
        copy(self.address.wrapping_add(offset));
        Ok(())
    }
}

// SAFETY: the buffer is `device`'s and this value's alone, and `with` checks every range.
unsafe impl Memory for SimMemory {
    fn device(&self) -> Option<DeviceId> {
        Some(self.device.id)
    }

    fn address(&self) -> u64 {
        self.address as u64
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn write(&self, offset: usize, src: &[u8]) -> Result<()> {
        // SAFETY: `with` gives `src.len()` bytes of the buffer that nothing else uses.
        self.with(offset, src.len(), |p| unsafe { p.copy_from_nonoverlapping(src.as_ptr(), src.len()) })
    }

    fn zero(&self, offset: usize, bytes: usize) -> Result<()> {
        // SAFETY: `with` gives `bytes` bytes of the buffer that nothing else uses.
        self.with(offset, bytes, |p| unsafe { p.write_bytes(0, bytes) })
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()> {
        // SAFETY: `with` gives `dst.len()` bytes of the buffer that nothing else uses.
        self.with(offset, dst.len(), |p| unsafe { p.copy_to_nonoverlapping(dst.as_mut_ptr(), dst.len()) })
    }
}

impl Drop for SimMemory {
    fn drop(&mut self) {
        // SAFETY: a `Handle`'s device is alive; it allocated the buffer, which is released here alone.
        unsafe { ffi::residuum_sim_release(self.device.raw, self.address) }
    }
}
