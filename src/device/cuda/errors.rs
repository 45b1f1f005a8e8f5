//! Names driver errors: the driver's own text if it has one, else the text of `cuda.h`.

use std::ffi::{c_char, CStr};
use std::sync::OnceLock;

/// `cuGetErrorName` and `cuGetErrorString`, declared with an integer: cudarc's enum lacks the codes of other drivers.
type TextFunction = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;

/// These two functions, of a driver that is never closed.
static TEXTS: OnceLock<[TextFunction; 2]> = OnceLock::new();

const UNKNOWN: &str = "unknown to this driver and this library; see `cuda.h` of a newer CUDA";
const STUB: &str = "the library is the toolkit's stub of the driver, which runs nothing; install NVIDIA's driver, or \
                    take the folder `stubs` out of LD_LIBRARY_PATH";
const MISMATCH: &str = "the kernel driver and libcuda are of different releases; restart the machine, or in a \
                        container take the compatibility library out of LD_LIBRARY_PATH";
const NO_COMPAT: &str = "the compatibility library was loaded, and this GPU does not support it; take it out of \
                         LD_LIBRARY_PATH";

/// Errors that a driver may have no text for: a stub has none, an old driver none for later errors.
const KNOWN: &[(u32, &str, &str)] = &[
    (1, "CUDA_ERROR_INVALID_VALUE", "an argument is not allowed"),
    (2, "CUDA_ERROR_OUT_OF_MEMORY", "no memory is left"),
    (3, "CUDA_ERROR_NOT_INITIALIZED", "the driver was not initialized"),
    (4, "CUDA_ERROR_DEINITIALIZED", "the driver is shutting down"),
    (34, "CUDA_ERROR_STUB_LIBRARY", STUB),
    (35, "CUDA_ERROR_INSUFFICIENT_DRIVER", "the driver is older than the CUDA runtime needs; install a newer one"),
    (46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "the device is busy, or its compute mode allows no further process"),
    (100, "CUDA_ERROR_NO_DEVICE", "there is no GPU that CUDA can use; CUDA_VISIBLE_DEVICES may hide it"),
    (101, "CUDA_ERROR_INVALID_DEVICE", "there is no device of that number"),
    (102, "CUDA_ERROR_DEVICE_NOT_LICENSED", "the device has no licence for compute work"),
    (200, "CUDA_ERROR_INVALID_IMAGE", "the kernels' image is not valid"),
    (201, "CUDA_ERROR_INVALID_CONTEXT", "the context is not valid"),
    (209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "there is no kernel image for this GPU"),
    (214, "CUDA_ERROR_ECC_UNCORRECTABLE", "an uncorrectable memory error was found; the GPU needs a reset"),
    (218, "CUDA_ERROR_INVALID_PTX", "the kernels' PTX is not valid"),
    (220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", "an uncorrectable NVLink error was found"),
    (221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "the driver's compiler of PTX is missing"),
    (222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the kernels' PTX is newer than the driver; install a newer driver"),
    (223, "CUDA_ERROR_JIT_COMPILATION_DISABLED", "compiling PTX is switched off"),
    (226, "CUDA_ERROR_CONTAINED", "an error was contained on the device; its work is lost"),
    (304, "CUDA_ERROR_OPERATING_SYSTEM", "a call of the operating system failed"),
    (500, "CUDA_ERROR_NOT_FOUND", "a named symbol was not found"),
    (700, "CUDA_ERROR_ILLEGAL_ADDRESS", "a kernel accessed an invalid address"),
    (701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "a launch needs more resources than the device has"),
    (702, "CUDA_ERROR_LAUNCH_TIMEOUT", "a kernel ran for too long"),
    (709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "the context was destroyed"),
    (714, "CUDA_ERROR_HARDWARE_STACK_ERROR", "a kernel's stack was corrupted"),
    (715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", "a kernel met an illegal instruction"),
    (716, "CUDA_ERROR_MISALIGNED_ADDRESS", "a kernel accessed a misaligned address"),
    (717, "CUDA_ERROR_INVALID_ADDRESS_SPACE", "a kernel accessed an address in the wrong address space"),
    (718, "CUDA_ERROR_INVALID_PC", "a kernel's program counter left its program"),
    (719, "CUDA_ERROR_LAUNCH_FAILED", "a kernel failed"),
    (800, "CUDA_ERROR_NOT_PERMITTED", "the call is not permitted"),
    (801, "CUDA_ERROR_NOT_SUPPORTED", "the call is not supported on this system"),
    (802, "CUDA_ERROR_SYSTEM_NOT_READY", "the system is not ready; with NVSwitch, start nvidia-fabricmanager"),
    (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", MISMATCH),
    (804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", NO_COMPAT),
    (805, "CUDA_ERROR_MPS_CONNECTION_FAILED", "the MPS server does not answer"),
    (999, "CUDA_ERROR_UNKNOWN", "the driver gives no details; see `dmesg`, or restart the machine"),
];

/// Keeps the functions of `library` for [`describe`].
///
/// # Safety
/// `library` is a CUDA driver that is never closed.
pub(super) unsafe fn remember(library: &libloading::Library) {
    let find = |name: &[u8]| {
        // SAFETY: by the contract it is a driver; the symbols have this type in each, where C takes an `int`.
        unsafe { library.get::<TextFunction>(name) }.ok().map(|symbol| *symbol)
    };
    if let (Some(name), Some(string)) = (find(b"cuGetErrorName"), find(b"cuGetErrorString")) {
        TEXTS.get_or_init(|| [name, string]);
    }
}

/// Name, number and meaning of an error.
pub(super) fn describe(number: u32) -> String {
    let [name, text] = [0, 1].map(|which| own_words(which, number));
    let known = KNOWN.iter().find(|(known, ..)| *known == number);
    let name = name.or_else(|| known.map(|(_, name, _)| name.to_string()));
    let text = text.or_else(|| known.map(|(.., text)| text.to_string()));
    match (name, text) {
        (Some(name), Some(text)) => format!("{name} ({number}): {text}"),
        (Some(name), None) => format!("{name} ({number})"),
        (None, Some(text)) => format!("CUDA error {number}: {text}"),
        (None, None) => format!("CUDA error {number}: {UNKNOWN}"),
    }
}

/// The driver's name (0) or meaning (1) of error `number`, if it has one.
fn own_words(which: usize, number: u32) -> Option<String> {
    let (function, mut text) = (TEXTS.get()?[which], std::ptr::null());
    // SAFETY: by `TEXTS` it is the driver's and still there; it writes one pointer, null or to a static text.
    let found = unsafe { function(number, &mut text) } == 0 && !text.is_null();
    // SAFETY: it is not null, and the driver's texts end with a zero.
    let text = found.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_string());
    text.filter(|text| !text.is_empty())
}
