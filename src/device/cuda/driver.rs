//! The CUDA driver library. cudarc panics if it is missing or too old, so this module checks first.

use std::sync::OnceLock;

use cudarc::driver::{result, sys};

use super::errors;
use super::nodes::Api;

/// The names of the driver library, in the order in which cudarc tries them.
const NAMES: &[&str] = if cfg!(windows) { &["cuda.dll", "nvcuda.dll"] } else { &["libcuda.so", "libcuda.so.1"] };

/// The functions that this library calls. The newest came with CUDA 11.4.
const SYMBOLS: &str =
    "cuCtxGetCurrent cuCtxSetCurrent cuDeviceGet cuDeviceGetAttribute cuDeviceGetCount cuDeviceGetMemPool \
    cuDeviceGetName cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain cuDeviceTotalMem_v2 \
    cuDriverGetVersion cuEventCreate cuEventDestroy_v2 cuEventElapsedTime cuEventQuery cuEventRecord \
    cuEventSynchronize cuFuncGetAttribute cuFuncSetAttribute cuGetErrorName cuGetErrorString cuGraphCreate \
    cuGraphDestroy cuGraphExecDestroy cuGraphInstantiateWithFlags cuGraphLaunch cuInit cuLaunchKernel \
    cuMemAllocAsync cuMemAlloc_v2 cuMemFreeAsync cuMemFreeHost cuMemFree_v2 cuMemGetInfo_v2 cuMemHostAlloc \
    cuMemPoolTrimTo cuMemcpyDtoHAsync_v2 cuMemcpyHtoDAsync_v2 cuMemsetD8Async cuModuleGetFunction \
    cuModuleLoadData cuModuleUnload cuStreamBeginCapture_v2 cuStreamCreate cuStreamDestroy_v2 \
    cuStreamEndCapture cuStreamGetCtx cuStreamSynchronize cuStreamWaitEvent";

/// `cuEventElapsedTime`: writes the milliseconds between two events.
pub(crate) type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;

/// `cuInit`, which may return a number that cudarc's type lacks.
type Init = unsafe extern "C" fn(u32) -> u32;

/// A driver that is initialised and never closed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Driver {
    /// The CUDA release that it is for: 13000 is 13.0.
    pub version: i32,
    /// Looked up here: cudarc asks for `cuEventElapsedTime_v2`, which drivers before CUDA 12.8 lack.
    pub elapsed: Elapsed,
    /// Absent from drivers before CUDA 12.4.
    conditional: Option<Api>,
}

#[derive(Clone, Debug)]
pub(crate) struct GpuInfo {
    pub ordinal: usize,
    pub name: String,
    /// Major and minor.
    pub capability: (i32, i32),
    pub memory_bytes: usize,
}

impl Driver {
    /// The driver, or the problem and its remedy. Later calls return the first call's answer.
    pub fn find() -> Result<Self, String> {
        static FOUND: OnceLock<Result<Driver, String>> = OnceLock::new();
        FOUND.get_or_init(load).clone()
    }

    /// Its version for people: `13.0`.
    pub fn version_text(&self) -> String {
        format!("{}.{}", self.version / 1000, self.version % 1000 / 10)
    }

    /// The functions that add conditional nodes, or the reason why there are none.
    pub fn conditional(&self) -> Result<Api, String> {
        if self.version < Api::SINCE {
            return Err(format!("the driver is for CUDA {}, they came with 12.4", self.version_text()));
        }
        self.conditional.ok_or_else(|| "the driver lacks the functions".into())
    }

    /// The GPUs that this process sees.
    pub fn gpus(&self) -> Result<Vec<GpuInfo>, String> {
        let gpus = |count| (0..count).map(|i| self.gpu(i as usize)).collect();
        result::device::get_count().and_then(gpus).map_err(|e| errors::describe(e.0 as u32))
    }

    fn gpu(&self, ordinal: usize) -> Result<GpuInfo, result::DriverError> {
        use sys::CUdevice_attribute_enum as Attribute;
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: `device` is from the driver.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) };
        Ok(GpuInfo {
            ordinal,
            name: result::device::get_name(device)?,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            // SAFETY: `device` is from the driver.
            memory_bytes: unsafe { result::device::total_mem(device)? },
        })
    }
}

/// Loads the library, looks up the functions and initialises it.
fn load() -> Result<Driver, String> {
    // SAFETY: these names are the CUDA driver's, whose initialisers may run at any time.
    let library = NAMES.iter().find_map(|name| unsafe { libloading::Library::new(*name) }.ok()).ok_or_else(|| {
        format!("there is no CUDA driver ({} cannot be loaded); install NVIDIA's driver", NAMES[NAMES.len() - 1])
    })?;
    // SAFETY: the symbol is only looked up, and the type is that of any function.
    let has = |symbol: &&str| unsafe { library.get::<unsafe extern "C" fn()>(symbol.as_bytes()) }.is_ok();
    if let Some(missing) = SYMBOLS.split_whitespace().find(|symbol| !has(symbol)) {
        return Err(format!("the CUDA driver is too old (it has no {missing}); install a newer one"));
    }
    let unusable = |e| format!("the CUDA driver cannot be used: {e}");
    // SAFETY: the symbol has this type in every driver.
    let elapsed = *unsafe { library.get::<Elapsed>(b"cuEventElapsedTime") }.map_err(unusable)?;
    // SAFETY: the symbol has this type in every driver; C returns an `int`.
    let init = *unsafe { library.get::<Init>(b"cuInit") }.map_err(unusable)?;
    // SAFETY: the library is a driver, and forgotten below without being closed.
    unsafe { errors::remember(&library) };
    // SAFETY: as above.
    let conditional = unsafe { Api::find(&library) };
    // Its functions are kept, and cudarc opens it again.
    std::mem::forget(library);

    let mut version = 0;
    // SAFETY: the call takes no flags and may be made at any time; the library stays open.
    match unsafe { init(0) } {
        0 => {}
        error => return Err(format!("the CUDA driver does not start: {}", errors::describe(error))),
    }
    // SAFETY: the call writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| errors::describe(e.0 as u32))?;
    Ok(Driver { version, elapsed, conditional })
}
