//! The simulator as a [`Backend`].

use std::ffi::{c_char, c_void, CStr, CString};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{ffi, Arithmetic, Copies, Schedule, SimOptions};
use crate::device::{Arch, Backend, Launch, Memory, View};
use crate::{Error, Result};

/// How the simulator's texts begin where there is no memory.
const NO_MEMORY: &str = "out of memory: ";

/// A simulated device. Launches run at once, one after the other.
struct Sim {
    device: Arc<Handle>,
    options: SimOptions,
}

/// The simulator's own object.
struct Handle {
    device: *mut c_void,
    /// Held while memory is copied or a launch runs, so that both keep their order.
    queue: Mutex<()>,
}

// SAFETY: the C++ object locks what it shares; launches and copies hold `queue`.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by residuum_sim_new and freed once; every buffer holds an Arc of it.
        unsafe { ffi::residuum_sim_free(self.device) }
    }
}

pub(super) fn new(options: SimOptions) -> Result<Arc<dyn Backend>> {
    #[cfg(target_arch = "x86_64")]
    if !["avx2", "fma", "f16c"].iter().all(|&f| has_feature(f)) {
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
        copies: match options.copies {
            Copies::Early => 0,
            Copies::Late => 1,
            Copies::Random => 2,
        },
        arithmetic: arithmetic(options.arithmetic),
        alignment: options.alignment.clamp(16, 4096).next_power_of_two() as u32,
        shared_limit: options.arch.shared_limit(),
        approximate: u32::from(options.approximate),
        traffic: options.traffic.into(),
        seed: options.seed,
    };
    let mut problem = std::ptr::null_mut();
    // SAFETY: `raw` has the layout that the function expects and is copied; `problem` is ours.
    let device = unsafe { ffi::residuum_sim_new(&raw, &mut problem) };
    if let Some(reason) = take_text(problem) {
        return Err(match reason.strip_prefix(NO_MEMORY) {
            Some(of) => Error::OutOfMemory { what: of.into(), bytes: None },
            None => Error::NoDevice { device: "sim", reason },
        });
    }
    Ok(Arc::new(Sim { device: Arc::new(Handle { device, queue: Mutex::new(()) }), options }))
}

/// A text of the simulator, if there is one; frees it.
fn take_text(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the simulator's texts end with a zero; it is freed below and not used after.
    let owned = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: as above.
    unsafe { ffi::residuum_sim_free_text(text) };
    Some(owned)
}

#[cfg(target_arch = "x86_64")]
fn has_feature(name: &str) -> bool {
    match name {
        "avx2" => is_x86_feature_detected!("avx2"),
        "fma" => is_x86_feature_detected!("fma"),
        _ => is_x86_feature_detected!("f16c"),
    }
}

fn arithmetic(mode: Arithmetic) -> u32 {
    match mode {
        Arithmetic::Sm80 => 0,
        Arithmetic::Sm90 => 1,
        Arithmetic::Exact => 2,
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Backend for Sim {
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
        // SAFETY: the device lives.
        let address = unsafe { ffi::residuum_sim_allocate(self.device.device, bytes) };
        if address.is_null() {
            return Err(Error::out_of_memory("a buffer of the simulator", bytes));
        }
        Ok(Arc::new(Buffer { device: self.device.clone(), address, bytes }))
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let kernel = launch.kernel();
        let what = || format!("{} on a grid of {:?}", kernel.name, launch.grid());
        let Ok(name) = CString::new(kernel.name) else {
            return Err(self.error(what(), "the name holds a zero byte"));
        };
        let (params, grid) = (launch.params(), launch.grid());
        let gate = launch.gate().map_or(0, View::address) as *const f32;
        let _queue = self.device.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `Launch::new`'s caller has promised that the parameters fit the kernel and point into live views; the
        // launch keeps those alive, and the gate's, which is null or holds an f32. Stray accesses inside the kernel are caught or stay within this process.
        let text = unsafe {
            ffi::residuum_sim_launch(
                self.device.device,
                name.as_ptr(),
                params.as_ptr(),
                params.len(),
                gate,
                kernel.threads,
                grid.as_ptr(),
                kernel.shared_bytes,
            )
        };
        let Some(problem) = take_text(text) else { return Ok(()) };
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

/// A guarded buffer.
struct Buffer {
    device: Arc<Handle>,
    address: *mut u8,
    bytes: usize,
}

// SAFETY: the bytes are touched only under the device's queue.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:?}", self.bytes, self.address)
    }
}

impl Buffer {
    fn check(&self, offset: usize, bytes: usize) -> Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(Error::invalid("memory", format!("bytes {offset}..+{bytes} of a buffer of {}", self.bytes))),
        }
    }
}

impl Memory for Buffer {
    fn address(&self) -> u64 {
        self.address as u64
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn write(&self, offset: usize, src: &[u8]) -> Result<()> {
        self.check(offset, src.len())?;
        let _queue = self.device.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: in bounds by the check; no launch or other copy runs.
        unsafe { self.address.add(offset).copy_from_nonoverlapping(src.as_ptr(), src.len()) };
        Ok(())
    }

    fn zero(&self, offset: usize, bytes: usize) -> Result<()> {
        self.check(offset, bytes)?;
        let _queue = self.device.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: in bounds by the check; no launch or other copy runs.
        unsafe { self.address.add(offset).write_bytes(0, bytes) };
        Ok(())
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()> {
        self.check(offset, dst.len())?;
        let _queue = self.device.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: in bounds by the check; no launch or other copy runs.
        unsafe { self.address.add(offset).copy_to_nonoverlapping(dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated by this device and released once.
        unsafe { ffi::residuum_sim_release(self.device.device, self.address) }
    }
}

pub(super) fn load_counted(library: &Path) -> Result<()> {
    let what = || format!("loading {}", library.display());
    let path =
        CString::new(library.as_os_str().as_encoded_bytes()).map_err(|_| Error::invalid(what(), "a zero byte"))?;
    // SAFETY: the path ends with a zero; what the library's initialisers do is the caller's promise to have compiled.
    let text = unsafe { ffi::residuum_sim_load_counted(path.as_ptr()) };
    take_text(text).map_or(Ok(()), |problem| Err(Error::Device { device: "sim".into(), what: what(), problem }))
}

pub(super) fn next_counted() -> Option<(u64, u64)> {
    let (mut bytes_read, mut bytes_written) = (0, 0);
    // SAFETY: the two places are ours.
    unsafe { ffi::residuum_sim_next_counted(&mut bytes_read, &mut bytes_written) }
        .then_some((bytes_read, bytes_written))
}

pub(super) fn kernels() -> Vec<(String, usize, u32)> {
    // SAFETY: the table is filled before main and never changes.
    (0..unsafe { ffi::residuum_sim_kernels() })
        .map(|i| {
            let (mut name, mut bytes, mut threads) = (std::ptr::null(), 0, 0);
            // SAFETY: `i` is below the number of kernels; the three places are ours.
            unsafe { ffi::residuum_sim_kernel(i, &mut name, &mut bytes, &mut threads) };
            // SAFETY: names are string literals.
            (unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(), bytes, threads)
        })
        .collect()
}

pub(super) fn dot(bf16: bool, mode: Arithmetic, a: &[u16], b: &[u16], c: f32) -> f32 {
    assert_eq!(a.len(), b.len(), "operands of a dot product");
    // SAFETY: both slices have the length that is passed.
    unsafe { ffi::residuum_sim_dot(u32::from(bf16), arithmetic(mode), a.len() as u32, a.as_ptr(), b.as_ptr(), c) }
}

pub(super) fn from_f16(bits: u16) -> f32 {
    // SAFETY: a pure function.
    unsafe { ffi::residuum_sim_from_f16(bits) }
}

pub(super) fn to_f16(v: f32) -> u16 {
    // SAFETY: a pure function.
    unsafe { ffi::residuum_sim_to_f16(v) }
}

pub(super) fn to_bf16(v: f32) -> u16 {
    // SAFETY: a pure function.
    unsafe { ffi::residuum_sim_to_bf16(v) }
}
