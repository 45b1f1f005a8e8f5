//! One device's context, stream, modules and functions, which everything else of the device keeps alive.

use std::collections::HashMap;
use std::ffi::{c_void, CString};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{sys, CudaContext, CudaStream};

use super::driver::{Driver, Elapsed, GpuInfo};
use super::faults::{self, Faults};
use super::images::{arch_of, oldest_driver, Images};
use super::nodes::Api;
use super::staging::Staging;
use crate::device::{embedded, Arch, DeviceId, Kernel, Launch, View};
use crate::{Error, Result};

/// Dynamic shared memory that a kernel may use by default.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

#[derive(Debug)]
pub(super) struct Context {
    /// Names this context's memory: two contexts of one GPU have different streams.
    pub id: DeviceId,
    pub gpu: GpuInfo,
    pub arch: Arch,
    pub faults: Faults,
    pub staging: Mutex<Staging>,
    /// True to wait for every launch, so that an error names the one that failed.
    pub synchronous: bool,
    /// True if the stream is another library's.
    pub foreign: bool,
    pub elapsed: Elapsed,
    /// The functions that add conditional nodes, or the reason why there are none.
    pub conditional: Result<Api, String>,
    images: Images,
    functions: RwLock<HashMap<&'static str, Function>>,
    modules: Mutex<Vec<Option<Module>>>,
    pub stream: Arc<CudaStream>,
    pub primary: Arc<CudaContext>,
}

/// An entry point of a module that the context has loaded, and unloads when it is dropped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(sys::CUfunction);

// SAFETY: the driver lets any thread use a function.
unsafe impl Send for Function {}
// SAFETY: as above, also concurrently.
unsafe impl Sync for Function {}

#[derive(Debug)]
struct Module(sys::CUmodule);

// SAFETY: the driver lets any thread use a module.
unsafe impl Send for Module {}

/// A launch on memory of a context, with the function of its kernel, which stays loaded during the borrow.
#[derive(Debug)]
pub(super) struct Loaded<'a> {
    pub launch: &'a Launch,
    function: Function,
    context: &'a Context,
}

impl Context {
    /// Opens `ordinal` on a new stream, or on `stream`.
    ///
    /// # Safety
    /// `stream`, if given, is a valid stream that outlives the context.
    pub unsafe fn open(ordinal: usize, stream: Option<u64>, images: Images) -> Result<Arc<Self>> {
        let (driver, gpu, arch) = find(ordinal, &images)?;
        let device = format!("cuda:{ordinal} {}", gpu.name);
        let faults = Faults::new(device, images.describe(&gpu, &driver));
        let failed = |error| faults.error("opening the device", error);
        let primary = CudaContext::new(ordinal).map_err(failed)?;
        // SAFETY: nothing else has this wrapper of the context, and all its memory is used on one stream.
        unsafe { primary.disable_event_tracking() };
        let foreign = stream.is_some();
        let stream = match stream {
            None => primary.new_stream().map_err(failed)?,
            Some(raw) => {
                let raw = raw as sys::CUstream;
                // SAFETY: this function's contract says that the stream is valid.
                unsafe { check_stream(raw, &primary) }.map_err(failed)?;
                // SAFETY: the stream belongs to this context, and by the contract outlives it.
                unsafe { primary.wrap_borrowed_stream(raw) }
            }
        };
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let unwanted = variable("RESIDUUM_CONDITIONAL").is_some_and(|value| value == *"0");
        Ok(Arc::new(Self {
            id: DeviceId::unique(),
            gpu,
            arch,
            faults,
            staging: Mutex::default(),
            synchronous: variable("RESIDUUM_SYNC").is_some_and(|value| value != *"0"),
            foreign,
            elapsed: driver.elapsed,
            conditional: if unwanted { Err("RESIDUUM_CONDITIONAL is 0".into()) } else { driver.conditional() },
            functions: RwLock::default(),
            modules: Mutex::new(images.fatbins.iter().map(|_| None).collect()),
            images,
            stream,
            primary,
        }))
    }

    /// Makes the context current on this thread; fails if the context is lost.
    pub fn enter(&self) -> Result<()> {
        self.faults.fatal.get().cloned().map_or(Ok(()), Err)?;
        self.primary.bind_to_thread().map_err(|e| self.faults.error("entering the context", e))
    }

    /// Runs `call` with the context current. Errors name the call `what`.
    pub fn call<T>(&self, what: &str, call: impl FnOnce() -> Result<T, DriverError>) -> Result<T> {
        self.enter()?;
        call().map_err(|e| self.faults.error(what, e))
    }

    /// Waits for the stream. Errors name the call `what`.
    pub fn synchronize(&self, what: &str) -> Result<()> {
        self.call(what, || {
            // SAFETY: the context keeps its stream alive.
            unsafe { result::stream::synchronize(self.stream.cu_stream()) }
        })?;
        self.faults.synchronized();
        Ok(())
    }

    /// `launch` ready to run; fails if it is on another device's memory or its kernel cannot be loaded.
    pub fn loaded<'a>(&'a self, launch: &'a Launch) -> Result<Loaded<'a>> {
        launch.check_device(self.id)?;
        Ok(Loaded { launch, function: self.function(launch.kernel())?, context: self })
    }

    /// The function of `kernel`, loaded at the first call.
    pub fn function(&self, kernel: &'static Kernel) -> Result<Function> {
        if let Some(&function) = self.functions.read().unwrap_or_else(PoisonError::into_inner).get(kernel.name) {
            return Ok(function);
        }
        self.enter()?;
        let function = self.load(kernel)?;
        self.functions.write().unwrap_or_else(PoisonError::into_inner).insert(kernel.name, function);
        Ok(function)
    }

    /// Loads the module of `kernel`, unless it is loaded, finds the function and raises its limit of shared memory.
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
        let (file, bytes) = self.images.fatbins[image];
        // SAFETY: by `Images`, `bytes` is a fatbin or does not begin like one; they are static.
        let load = || unsafe { result::module::load_data(bytes.as_ptr().cast()) };
        let module = match modules[image] {
            Some(Module(module)) => module,
            None => {
                let failed = |e| self.faults.error(&format!("loading the kernels of {file}"), e);
                modules[image].insert(Module(load().map_err(failed)?)).0
            }
        };
        let what = format!("loading the kernel {}", kernel.name);
        let failed = |e| self.faults.error(&what, e);
        let name = CString::new(kernel.name).map_err(|e| Error::invalid("kernel name", e.to_string()))?;
        // SAFETY: the module was loaded above or earlier, and only `drop` unloads it.
        let function = unsafe { result::module::get_function(module, name) }.map_err(failed)?;
        // SAFETY: the function was found above.
        unsafe { self.check_limits(kernel, function)? };
        if kernel.shared_bytes > PLAIN_SHARED_BYTES {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = kernel.shared_bytes as i32;
            // SAFETY: the function was found above.
            unsafe { result::function::set_function_attribute(function, attribute, bytes) }.map_err(failed)?;
        }
        Ok(Function(function))
    }

    /// Refuses a kernel that this device cannot launch, with a better message than the driver's.
    ///
    /// # Safety
    /// `function` is loaded.
    unsafe fn check_limits(&self, kernel: &Kernel, function: sys::CUfunction) -> Result<()> {
        use sys::{CUdevice_attribute_enum as Device, CUfunction_attribute_enum as Func};
        let failed = |e| self.faults.error(&format!("asking for the limits of {}", kernel.name), e);
        let shared = self.primary.attribute(Device::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
        let (shared, most) = (shared.map_err(failed)?, Func::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
        // SAFETY: by the contract it is loaded.
        let threads = unsafe { result::function::get_function_attribute(function, most) }.map_err(failed)?;
        let Kernel { name, threads: wanted, shared_bytes: bytes, .. } = kernel;
        if i64::from(*bytes) > i64::from(shared) || i64::from(*wanted) > i64::from(threads) {
            let what = format!("{name} with {wanted} threads and {bytes} bytes of shared memory");
            let limits = format!("{} allows {threads} threads and {shared} bytes in a block", self.gpu.name);
            return Err(Error::unsupported(what, limits));
        }
        Ok(())
    }
}

impl Loaded<'_> {
    /// Calls `call` with the function and the pointers to its two arguments, valid during the call. Every kernel takes
    /// its parameter struct and the address of its gate, or null.
    pub fn with<R>(&self, call: impl FnOnce(sys::CUfunction, &mut [*mut c_void; 2]) -> R) -> R {
        let mut gate = self.launch.gate().map_or(0, View::address);
        let params = self.launch.params().as_ptr().cast::<c_void>().cast_mut();
        call(self.function.0, &mut [params, std::ptr::from_mut(&mut gate).cast()])
    }

    /// Puts the launch on `stream`, which may be capturing.
    pub fn enqueue(&self, stream: &CudaStream) -> Result<()> {
        let kernel = self.launch.kernel();
        let [x, y, z] = self.launch.grid();
        let queued = self.with(|function, arguments| {
            let (grid, block) = ((x, y, z), (kernel.threads, 1, 1));
            // SAFETY: `with` gives the kernel's function and arguments, which the driver copies. By `Launch`'s contract
            // they fit the kernel and point into its views, which are this context's memory by `Context::loaded`.
            unsafe { result::launch_kernel(function, grid, block, kernel.shared_bytes, stream.cu_stream(), arguments) }
        });
        queued.map_err(|error| self.context.faults.error(&faults::label(self.launch), error))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Errors have nowhere to go. Objects that cannot be freed safely here end with the process.
        if self.primary.bind_to_thread().is_err() {
            return;
        }
        // SAFETY: the stream is dropped after this.
        if unsafe { result::stream::synchronize(self.stream.cu_stream()) }.is_err() {
            return;
        }
        for Module(module) in self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).iter().flatten() {
            // SAFETY: the stream is idle, and every `Loaded`, graph and memory that could use it has kept this alive.
            let _ = unsafe { result::module::unload(*module) };
        }
        // SAFETY: the stream was waited for above, and it waits for the copies of every side queue.
        unsafe { self.staging.get_mut().unwrap_or_else(PoisonError::into_inner).free() };
    }
}

/// The driver, the GPU `ordinal` and the generation whose kernels it runs; fails if one is missing or too old.
fn find(ordinal: usize, images: &Images) -> Result<(Driver, GpuInfo, Arch)> {
    let missing = |reason: String| Error::NoDevice { device: "cuda", reason };
    let no_kernels = format!("this build has no CUDA kernels, as it found no nvcc: {}", embedded::REMEDY);
    let has_kernels = !images.fatbins.is_empty();
    let all = |reason| if has_kernels { reason } else { format!("{reason}; moreover {no_kernels}") };
    let driver = Driver::find().map_err(|reason| missing(all(reason)))?;
    let gpus = driver.gpus().map_err(missing)?;
    let Some(gpu) = gpus.get(ordinal).cloned() else {
        return Err(missing(format!("there is no device {ordinal}, the driver shows {}", gpus.len())));
    };
    if !has_kernels {
        return Err(missing(no_kernels));
    }
    let (arch, code) = arch_of(gpu.capability, images.targets).ok_or_else(|| {
        let ((major, minor), targets) = (gpu.capability, images.targets.join(", "));
        missing(format!("{} has compute capability {major}.{minor}, the kernels are for {targets}", gpu.name))
    })?;
    if let Some(nvcc) = images.toolkit.filter(|nvcc| oldest_driver(nvcc, code) > driver.version) {
        let remedy = "install a newer driver, or an older toolkit and build again";
        let problem = format!("cannot load kernels that nvcc {nvcc} made for {}", gpu.name);
        return Err(missing(format!("the driver is for CUDA {} and {problem}: {remedy}", driver.version_text())));
    }
    Ok((driver, gpu, arch))
}

/// Fails if `stream` is of another context.
///
/// # Safety
/// `stream` is valid.
unsafe fn check_stream(stream: sys::CUstream, context: &CudaContext) -> Result<(), DriverError> {
    let mut owner = std::ptr::null_mut();
    // SAFETY: by the contract the stream is valid; the call writes one handle.
    unsafe { sys::cuStreamGetCtx(stream, &mut owner) }.result()?;
    let owned = (owner == context.cu_ctx()).then_some(());
    owned.ok_or(DriverError(sys::cudaError_enum::CUDA_ERROR_INVALID_CONTEXT))
}
