//! One device's context, stream, modules and functions: what everything else of the device keeps alive.

use std::collections::HashMap;
use std::ffi::{c_void, CString};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{sys, CudaContext, CudaStream};

use super::conditional::Api;
use super::driver::{Driver, Elapsed, Gpu};
use super::faults::{self, Faults};
use super::staging::Staging;
use crate::device::{Arch, Kernel, Launch, View};
use crate::{Error, Result};

/// Kernels to load: [`embedded`](crate::device::embedded), or a test's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Images {
    /// Every entry point and its place in `fatbins`, in order of name.
    pub entries: &'static [(&'static str, usize)],
    pub fatbins: &'static [(&'static str, &'static [u8])],
    pub targets: &'static [&'static str],
    /// What made them.
    pub toolkit: Option<&'static str>,
}

/// Dynamic shared memory that a kernel may use without asking.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

#[derive(Debug)]
pub(super) struct Context {
    pub gpu: Gpu,
    pub arch: Arch,
    pub faults: Faults,
    pub staging: Mutex<Staging>,
    /// Whether every launch is waited for, so that a failing one is named.
    pub synchronous: bool,
    /// Whether the stream is another library's.
    pub foreign: bool,
    pub elapsed: Elapsed,
    /// What makes graphs with conditional nodes, or why none are made.
    pub conditional: Result<Api, String>,
    images: Images,
    functions: RwLock<HashMap<&'static str, Function>>,
    modules: Mutex<Vec<Option<Module>>>,
    pub stream: Arc<CudaStream>,
    pub primary: Arc<CudaContext>,
}

/// A loaded entry point; valid as long as its module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(sys::CUfunction);

impl Function {
    pub fn raw(self) -> sys::CUfunction {
        self.0
    }
}

// SAFETY: a function handle is a name for something in the context; the driver allows its use from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

#[derive(Debug)]
struct Module(sys::CUmodule);

// SAFETY: a module handle is a name for something in the context; the driver allows its use from any thread.
unsafe impl Send for Module {}

impl Context {
    /// Opens `ordinal` on a new stream, or on `stream`.
    ///
    /// # Safety
    /// `stream`, where given, is a valid stream that outlives the context.
    pub unsafe fn open(ordinal: usize, stream: Option<u64>, images: Images) -> Result<Arc<Self>> {
        let missing = |reason: String| Error::NoDevice { device: "cuda", reason };
        let no_kernels = images.fatbins.is_empty();
        let driver = Driver::find().map_err(|reason| missing(with_remedy(reason, no_kernels)))?;
        let gpus = driver.gpus().map_err(missing)?;
        let Some(gpu) = gpus.get(ordinal).cloned() else {
            return Err(missing(format!("there is no device {ordinal}, the driver shows {}", gpus.len())));
        };
        if no_kernels {
            return Err(missing(with_remedy(String::new(), true)));
        }
        let (arch, code) = arch_of(gpu.capability, images.targets).ok_or_else(|| {
            let ((major, minor), targets) = (gpu.capability, images.targets.join(", "));
            missing(format!("{} has compute capability {major}.{minor}, the kernels are for {targets}", gpu.name))
        })?;
        if let Some(nvcc) = images.toolkit.filter(|nvcc| oldest_driver(nvcc, code) > driver.version) {
            let remedy = "install a newer driver, or an older toolkit and build again";
            let (gpu, version) = (&gpu.name, driver.version_text());
            return Err(missing(format!(
                "the driver is for CUDA {version} and cannot load what nvcc {nvcc} made for {gpu}: {remedy}"
            )));
        }

        let device = format!("cuda:{ordinal} {}", gpu.name);
        let faults = Faults::new(device, describe_images(&images, &gpu, &driver));
        let failed = |error| faults.error("opening the device", error);
        let primary = CudaContext::new(ordinal).map_err(failed)?;
        // SAFETY: this wrapper of the context is ours alone, and all its memory is used on one stream.
        unsafe { primary.disable_event_tracking() };
        let foreign = stream.is_some();
        let stream = match stream {
            None => primary.new_stream().map_err(failed)?,
            Some(raw) => {
                let raw = raw as sys::CUstream;
                // SAFETY: the caller's promise.
                unsafe { check_stream(raw, &primary) }.map_err(failed)?;
                // SAFETY: the caller's promise; the stream belongs to this context.
                unsafe { primary.wrap_borrowed_stream(raw) }
            }
        };
        let synchronous = std::env::var_os("RESIDUUM_SYNC").is_some_and(|v| !v.is_empty() && v != *"0");
        let unwanted = std::env::var_os("RESIDUUM_CONDITIONAL").is_some_and(|v| v == *"0");
        let conditional = if unwanted { Err("RESIDUUM_CONDITIONAL is 0".into()) } else { driver.conditional() };
        let modules = Mutex::new(images.fatbins.iter().map(|_| None).collect());
        let staging = Mutex::default();
        Ok(Arc::new(Self {
            gpu,
            arch,
            faults,
            staging,
            synchronous,
            foreign,
            elapsed: driver.elapsed,
            conditional,
            images,
            functions: RwLock::default(),
            modules,
            stream,
            primary,
        }))
    }

    /// Makes the context current on this thread; fails if it is lost.
    pub fn enter(&self) -> Result<()> {
        self.faults.check()?;
        self.primary.bind_to_thread().map_err(|e| self.faults.error("entering the context", e))
    }

    /// Runs `call`, a use of the driver that is called `what` in errors.
    pub fn call<T>(&self, what: &str, call: impl FnOnce() -> Result<T, DriverError>) -> Result<T> {
        self.enter()?;
        call().map_err(|e| self.faults.error(what, e))
    }

    /// Waits for the stream; `what` is the call that errors name.
    pub fn synchronize(&self, what: &str) -> Result<()> {
        self.call(what, || {
            // SAFETY: the stream is alive.
            unsafe { result::stream::synchronize(self.stream.cu_stream()) }
        })?;
        self.faults.synchronized();
        Ok(())
    }

    /// The loaded function of `kernel`.
    pub fn function(&self, kernel: &'static Kernel) -> Result<Function> {
        if let Some(&function) = self.functions.read().unwrap_or_else(PoisonError::into_inner).get(kernel.name) {
            return Ok(function);
        }
        self.enter()?;
        let function = self.load(kernel)?;
        self.functions.write().unwrap_or_else(PoisonError::into_inner).insert(kernel.name, function);
        Ok(function)
    }

    /// Loads the module of `kernel` if it is not, looks the function up and allows it its shared memory.
    fn load(&self, kernel: &'static Kernel) -> Result<Function> {
        let entries = self.images.entries;
        let Ok(place) = entries.binary_search_by_key(&kernel.name, |(name, _)| name) else {
            let nearest = entries.iter().map(|(name, _)| name.to_string());
            let op = kernel.name.split('_').next().unwrap_or_default();
            let nearest = nearest.filter(|name| name.starts_with(op)).take(3).collect();
            return Err(Error::Unknown { kind: "embedded kernel", name: kernel.name.to_string(), nearest });
        };
        let image = entries[place].1;
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if modules[image].is_none() {
            let (name, bytes) = self.images.fatbins[image];
            let what = format!("loading the kernels of {name}");
            // SAFETY: `bytes` is a fatbin that nvcc made, and lives for ever.
            let module = unsafe { result::module::load_data(bytes.as_ptr().cast()) };
            modules[image] = Some(Module(module.map_err(|e| self.faults.error(&what, e))?));
        }
        let Some(Module(module)) = modules[image] else {
            return Err(Error::Unknown { kind: "module", name: kernel.name.to_string(), nearest: Vec::new() });
        };
        let what = format!("loading the kernel {}", kernel.name);
        let failed = |e| self.faults.error(&what, e);
        let name = CString::new(kernel.name).map_err(|e| Error::invalid("kernel name", e.to_string()))?;
        // SAFETY: the module is loaded, and unloaded only when the context is dropped.
        let function = unsafe { result::module::get_function(module, name) }.map_err(failed)?;
        self.check_limits(kernel, function)?;
        if kernel.shared_bytes > PLAIN_SHARED_BYTES {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = kernel.shared_bytes as i32;
            // SAFETY: the function has just been loaded.
            unsafe { result::function::set_function_attribute(function, attribute, bytes) }.map_err(failed)?;
        }
        Ok(Function(function))
    }

    /// Refuses a kernel that this device cannot launch, before the driver does with less to say.
    fn check_limits(&self, kernel: &Kernel, function: sys::CUfunction) -> Result<()> {
        use sys::{CUdevice_attribute_enum as Device, CUfunction_attribute_enum as Func};
        let failed = |e| self.faults.error(&format!("asking for the limits of {}", kernel.name), e);
        let shared = self.primary.attribute(Device::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
        let shared = shared.map_err(failed)?;
        // SAFETY: the function has just been loaded.
        let threads = unsafe {
            result::function::get_function_attribute(function, Func::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)
        };
        let threads = threads.map_err(failed)?;
        if i64::from(kernel.shared_bytes) > i64::from(shared) || i64::from(kernel.threads) > i64::from(threads) {
            return Err(Error::unsupported(
                format!(
                    "{} with {} threads and {} bytes of shared memory",
                    kernel.name, kernel.threads, kernel.shared_bytes
                ),
                format!("{} allows it {threads} threads and {shared} bytes in a block", self.gpu.name),
            ));
        }
        Ok(())
    }

    /// Puts `launch` on `stream`, which may be capturing.
    pub fn enqueue(&self, function: Function, launch: &Launch, stream: &CudaStream) -> Result<(), DriverError> {
        let kernel = launch.kernel();
        let [x, y, z] = launch.grid();
        let mut gate = 0;
        let mut params = parameters(launch, &mut gate);
        // SAFETY: who made the launch promised that the parameters are the kernel's and its pointers valid; every kernel
        // takes that struct and the gate, a pointer that may be null. The driver copies both before it returns.
        unsafe {
            result::launch_kernel(
                function.0,
                (x, y, z),
                (kernel.threads, 1, 1),
                kernel.shared_bytes,
                stream.cu_stream(),
                &mut params,
            )
        }
    }

    /// The message for a launch that failed.
    pub fn launch_failed(&self, launch: &Launch, error: DriverError) -> Error {
        self.faults.error(&faults::label(launch), error)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Errors have nowhere to go from here. What cannot be freed safely the driver frees with the process.
        if self.primary.bind_to_thread().is_err() {
            return;
        }
        // SAFETY: the stream is alive.
        if unsafe { result::stream::synchronize(self.stream.cu_stream()) }.is_err() {
            return;
        }
        for Module(module) in self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).iter().flatten() {
            // SAFETY: nothing runs and nothing is launched any more, so the functions are not used after this.
            let _ = unsafe { result::module::unload(*module) };
        }
        self.staging.get_mut().unwrap_or_else(PoisonError::into_inner).free();
    }
}

/// Where the driver finds a launch's parameters: the struct, and the address of its gate or null, for which `gate` is the
/// place.
pub(super) fn parameters(launch: &Launch, gate: &mut u64) -> [*mut c_void; 2] {
    *gate = launch.gate().map_or(0, View::address);
    [launch.params().as_ptr().cast::<c_void>().cast_mut(), std::ptr::from_mut(gate).cast::<c_void>()]
}

/// Fails where `stream` is of another context.
///
/// # Safety
/// `stream` is valid.
unsafe fn check_stream(stream: sys::CUstream, context: &CudaContext) -> Result<(), DriverError> {
    let mut owner = std::ptr::null_mut();
    // SAFETY: the caller's promise; the call writes one handle.
    unsafe { sys::cuStreamGetCtx(stream, &mut owner) }.result()?;
    if owner == context.cu_ctx() {
        Ok(())
    } else {
        Err(DriverError(sys::cudaError_enum::CUDA_ERROR_INVALID_CONTEXT))
    }
}

/// What of an image a GPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Machine,
    Ptx,
}

/// The generation whose kernels a GPU runs, and as what: the newest of machine code, else of PTX; `None` where no target
/// fits. Machine code runs on its own major version from its minor version on, `sm_NNa` on NN alone, PTX on everything
/// from its version on.
fn arch_of((major, minor): (i32, i32), targets: &[&str]) -> Option<(Arch, Code)> {
    let capability = major * 10 + minor;
    let fit = |target: &&str| -> Option<(Arch, Code)> {
        let (kind, version) = target.split_once('_')?;
        let arch = Arch::ALL.into_iter().find(|arch| version.trim_end_matches('a') == (*arch as i32).to_string())?;
        let oldest = arch as i32;
        match (kind, version.ends_with('a')) {
            ("sm", true) => (oldest == capability).then_some((arch, Code::Machine)),
            ("sm", false) => (oldest / 10 == major && oldest <= capability).then_some((arch, Code::Machine)),
            _ => (oldest <= capability).then_some((arch, Code::Ptx)),
        }
    };
    targets.iter().filter_map(fit).max_by_key(|&(arch, code)| (code == Code::Machine, arch))
}

/// The oldest driver, as `Driver::version` counts, that loads what nvcc of release `nvcc` (`13.0.88`) made: one of the same
/// major release for machine code (NVIDIA calls it minor version compatibility), of the same release for PTX, which the
/// driver compiles itself. 0 where the release cannot be read.
fn oldest_driver(nvcc: &str, code: Code) -> i32 {
    let mut parts = nvcc.split('.').map(|part| part.parse::<i32>().unwrap_or(0));
    let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    1000 * major + if code == Code::Ptx { 10 * minor } else { 0 }
}

fn with_remedy(reason: String, no_kernels: bool) -> String {
    if !no_kernels {
        return reason;
    }
    let joint = if reason.is_empty() { "" } else { "; moreover " };
    format!("{reason}{joint}this build has no CUDA kernels, as it found no nvcc: {}", crate::device::embedded::REMEDY)
}

fn describe_images(images: &Images, gpu: &Gpu, driver: &Driver) -> String {
    format!(
        "the kernels were made by nvcc {} for {}, the device has compute capability {}.{} and a driver for CUDA {}",
        images.toolkit.unwrap_or("of an unknown release"),
        images.targets.join(", "),
        gpu.capability.0,
        gpu.capability.1,
        driver.version_text()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_takes_the_images_that_run_on_it() {
        let all = ["sm_80", "sm_90a", "compute_80"];
        for (capability, targets, expected) in [
            ((7, 5), &all[..], None),
            ((8, 0), &all[..], Some((Arch::Sm80, Code::Machine))),
            ((8, 6), &all[..1], Some((Arch::Sm80, Code::Machine))),
            ((8, 9), &all[..1], Some((Arch::Sm80, Code::Machine))),
            ((8, 9), &all[2..], Some((Arch::Sm80, Code::Ptx))),
            ((9, 0), &all[..], Some((Arch::Sm90, Code::Machine))),
            ((9, 0), &all[..1], None),
            ((9, 0), &all[2..], Some((Arch::Sm80, Code::Ptx))),
            ((10, 0), &all[..2], None),
            ((10, 0), &all[..], Some((Arch::Sm80, Code::Ptx))),
            ((12, 1), &all[2..], Some((Arch::Sm80, Code::Ptx))),
            ((9, 0), &all[..0], None),
        ] {
            assert_eq!(arch_of(capability, targets), expected, "{capability:?} {targets:?}");
        }
    }

    #[test]
    fn a_driver_loads_machine_code_of_its_major_release_and_ptx_of_its_own() {
        for (nvcc, code, oldest) in [
            ("12.8.93", Code::Machine, 12_000),
            ("12.8.93", Code::Ptx, 12_080),
            ("13.0.88", Code::Machine, 13_000),
            ("13.5", Code::Ptx, 13_050),
            ("of an unknown release", Code::Ptx, 0),
        ] {
            assert_eq!(oldest_driver(nvcc, code), oldest, "nvcc {nvcc}, {code:?}");
        }
    }
}
