//! The CUDA device without a driver, and on a mock, `tests/mock_driver/cuda.c`.
//!
//! A process loads the driver once, so every case runs in a process of its own: this test binary again, with the
//! mock driver first on the library path.

mod failures;
mod gates;
mod queue;
mod start;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use super::context::Context;
use super::*;
use crate::device::{Cost, Device, Kernel, Recording, View};

/// Tells the child process which case to run.
const CASE: &str = "RESIDUUM_MOCK_CASE";

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    y: u64,
    count: u64,
    value: u32,
    unused: u32,
}

static FILL: Kernel = Kernel::new::<Params>("mock_fill", 128, 0);
static SHIFT: Kernel = Kernel::new::<Params>("mock_shift", 128, 0);
static TRAP: Kernel = Kernel::new::<Params>("mock_trap", 128, 0);
static LARGE: Kernel = Kernel::new::<Params>("mock_large", 128, 100 << 10);
static TOO_LARGE: Kernel = Kernel::new::<Params>("mock_too_large", 128, 300 << 10);
static TOO_WIDE: Kernel = Kernel::new::<Params>("mock_too_wide", 2048, 0);
static ABSENT: Kernel = Kernel::new::<Params>("mock_absent", 128, 0);

#[repr(align(8))]
struct Image([u8; 8]);
static IMAGE: Image = Image(*b"mockmock");
static BROKEN: Image = Image(*b"not mock");

const IMAGES: Images = Images {
    entries: &[
        ("gate_conditions_f32", 0),
        ("mock_fill", 0),
        ("mock_large", 0),
        ("mock_shift", 0),
        ("mock_too_large", 0),
        ("mock_too_wide", 0),
        ("mock_trap", 0),
    ],
    fatbins: &[("mock", &IMAGE.0)],
    targets: &["sm_80", "sm_90a", "compute_80"],
    toolkit: Some("12.2.140"),
};

fn open(images: Images, stream: Option<u64>) -> Result<Arc<Context>> {
    // SAFETY: every stream is the mock's, which are valid and never freed.
    unsafe { Context::open(0, stream, images) }
}

fn backend() -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(Cuda(open(IMAGES, None)?)))
}

/// A launch of `kernel` that fills `view` with `value`. SHIFT copies the bytes that follow the view into it.
fn launch(kernel: &'static Kernel, view: &View, value: u32) -> Launch {
    let params = Params { y: view.address(), count: view.bytes() as u64 / 4, value, unused: 0 };
    // SAFETY: the parameters are the mock's, and the view is all that it writes.
    unsafe { Launch::new(kernel, [2, 3, 4], &params, Cost::default(), vec![view.clone()]) }
}

/// Symbols of the mock driver.
struct Mock(libloading::Library);

impl Mock {
    fn new() -> Self {
        // SAFETY: the library is loaded already and has no initialisers.
        Self(unsafe { libloading::Library::new("libcuda.so") }.expect("the mock is on the path"))
    }

    /// The function `name`.
    ///
    /// # Safety
    /// `T` is its type.
    unsafe fn symbol<T: Copy>(&self, name: &str) -> T {
        // SAFETY: by the contract.
        *unsafe { self.0.get::<T>(name.as_bytes()) }.expect(name)
    }

    fn count(&self, name: &str, what: i32) -> i64 {
        // SAFETY: the mock's counters have this type, and no other effect.
        unsafe { self.symbol::<unsafe extern "C" fn(i32) -> i64>(name)(what) }
    }

    /// The number of live objects: memory, streams, events, modules, graphs, pinned, contexts.
    fn live(&self) -> Vec<i64> {
        (0..7).map(|what| self.count("mock_live", what)).collect()
    }

    /// Counts since the start: allocations of device and of pinned memory, launches of graphs and of kernels.
    fn counts(&self) -> [i64; 4] {
        [0, 1, 2, 3].map(|what| self.count("mock_count", what))
    }

    /// Kernels started on the device since the start, including the ones that returned at once.
    fn kernels_run(&self) -> i64 {
        self.count("mock_count", 4)
    }

    /// The nodes of the last executable graph: the value of a fill, `set` and the number of conditions, `if( ... )`.
    fn shape(&self) -> String {
        // SAFETY: it has this type and returns text that ends with a zero and stays until the next graph.
        let text = unsafe {
            std::ffi::CStr::from_ptr(self.symbol::<unsafe extern "C" fn() -> *const std::ffi::c_char>("mock_shape")())
        };
        text.to_string_lossy().trim_end().to_string()
    }

    fn set(&self, name: &str, value: i64) {
        // SAFETY: the mock's setters have this type, and only write a setting.
        unsafe { self.symbol::<unsafe extern "C" fn(i64)>(name)(value) };
    }

    fn calls(&self) -> i64 {
        // SAFETY: it has this type and reads a counter.
        unsafe { self.symbol::<unsafe extern "C" fn() -> i64>("mock_calls")() }
    }

    /// A new stream, never freed, of the device's context or of another one.
    fn stream(&self, of_the_device: bool) -> u64 {
        // SAFETY: it has this type.
        unsafe { self.symbol::<unsafe extern "C" fn(i32) -> u64>("mock_stream")(of_the_device.into()) }
    }
}

/// A case: its name, the mock's settings, and what runs in the child.
type Case = (&'static str, &'static [(&'static str, &'static str)], fn());

/// Every case, with the flags that its driver is compiled with.
fn cases() -> impl Iterator<Item = (&'static [&'static str], &'static Case)> {
    let usual = [queue::CASES, failures::CASES, start::CASES, gates::CASES].into_iter().flatten();
    let plain = (&["-DMOCK_PLAIN"][..], &gates::ON_PLAIN);
    usual.map(|case| (&[][..], case)).chain([plain, (&["-DMOCK_OLD"], &start::ON_OLD)])
}

#[test]
fn without_a_driver_every_entry_answers() {
    if std::env::var_os(CASE).is_some() || Driver::find().is_ok() {
        return;
    }
    let text = super::open(0).expect_err("no driver").to_string();
    assert!(text.contains("driver") && text.starts_with("cuda device: "), "{text}");
    if embedded::FATBINS.is_empty() {
        assert!(text.contains("toolkit") && text.contains("pip install"), "{text}");
    }
    // SAFETY: there is no driver, so nothing uses the stream.
    assert!(unsafe { Device::cuda_on_stream(0, 1) }.is_err());
    assert_eq!(Device::best().kind(), "cpu");
    assert!(matches!(Device::parse("cuda:1"), Err(Error::NoDevice { .. })));
    assert!(matches!(Device::parse("gpu"), Err(Error::Unknown { .. })));
    assert_eq!(Device::parse("auto").expect("the CPU").kind(), "cpu");
}

#[test]
fn every_case_on_the_mock_driver() {
    if std::env::var_os(CASE).is_some() {
        return;
    }
    for (flags, (name, settings, _)) in cases() {
        let Some(folder) = build_mock(flags) else { return };
        run_child(&folder, name, settings);
    }
}

/// Not a test of its own: the body of a child process.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let (_, (.., run)) = cases().find(|(_, (name, ..))| *name == case).expect("a case");
    run();
    println!("case {case} done");
}

fn run_child(folder: &Path, case: &str, settings: &[(&str, &str)]) {
    let output = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "device::cuda::tests::child", "--nocapture", "--test-threads=1"])
        .env("LD_LIBRARY_PATH", folder)
        .env(CASE, case)
        .env_remove("RESIDUUM_SYNC")
        .env_remove("RESIDUUM_CONDITIONAL")
        .envs(settings.iter().copied())
        .output()
        .expect("the test binary runs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let status = output.status;
    assert!(status.success() && text.contains(&format!("case {case} done")), "{case}: {status}\n{text}");
}

/// Builds the mock driver, once for each `flags`; `None` if there is no C compiler.
fn build_mock(flags: &[&str]) -> Option<PathBuf> {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder")).path().join(flags.concat());
    if folder.join("libcuda.so.1").is_file() {
        return Some(folder);
    }
    let root = std::env::var_os("RESIDUUM_ROOT").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let source = Path::new(&root).join("tests/mock_driver/cuda.c");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    if !cfg!(target_os = "linux") || !source.is_file() || Command::new(&compiler).arg("--version").output().is_err() {
        eprintln!("tests on the mock CUDA driver skipped: they need Linux, their source and a C compiler");
        return None;
    }
    std::fs::create_dir_all(&folder).expect("a folder");
    for name in ["libcuda.so", "libcuda.so.1"] {
        let built = Command::new(&compiler)
            .args(["-shared", "-fPIC", "-O1", "-g"])
            .args(flags)
            .arg("-o")
            .arg(folder.join(name))
            .arg(&source)
            .status();
        assert!(built.expect("the compiler runs").success());
    }
    Some(folder)
}
