//! The CUDA device over a driver that is not there, and over a pretended one, `tests/mock_driver/cuda.c`.
//!
//! The driver is loaded once in a process, so every case runs in a process of its own: this test binary again, with the
//! pretended driver first on the library path.

mod gates;
mod start;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use super::context::Context;
use super::*;
use crate::device::{Cost, Kernel, Recording, View};

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

fn backend() -> Result<Arc<dyn Backend>> {
    // SAFETY: no stream is given.
    Ok(Arc::new(Cuda(unsafe { Context::open(0, None, IMAGES)? })))
}

/// A launch of `kernel` that fills `view` with `value`; SHIFT reads as much right behind it instead.
fn launch(kernel: &'static Kernel, view: &View, value: u32) -> Launch {
    let params = Params { y: view.address(), count: view.bytes() as u64 / 4, value, unused: 0 };
    // SAFETY: the parameters are the mock's, and the view is all that it writes.
    unsafe { Launch::new(kernel, [2, 3, 4], &params, Cost::default(), vec![view.clone()]) }
}

/// Symbols of the pretended driver.
struct Mock(libloading::Library);

impl Mock {
    fn new() -> Self {
        // SAFETY: the library is loaded already and has no initialisers.
        Self(unsafe { libloading::Library::new("libcuda.so") }.expect("the mock is on the path"))
    }

    /// How many of each kind exist: memory, streams, events, modules, graphs, pinned, contexts.
    fn live(&self) -> Vec<i64> {
        // SAFETY: the symbol has this type.
        let live = unsafe { self.0.get::<unsafe extern "C" fn(i32) -> i64>(b"mock_live") }.expect("mock_live");
        // SAFETY: it reads a counter.
        (0..7).map(|what| unsafe { live(what) }).collect()
    }

    /// How often so far: device memory and pinned memory allocated, graphs and kernels launched.
    fn counts(&self) -> [i64; 4] {
        // SAFETY: the symbol has this type.
        let count = unsafe { self.0.get::<unsafe extern "C" fn(i32) -> i64>(b"mock_count") }.expect("mock_count");
        // SAFETY: it reads a counter.
        [0, 1, 2, 3].map(|what| unsafe { count(what) })
    }

    /// How many kernels have been started on the device so far, those that returned at once included.
    fn kernels_run(&self) -> i64 {
        // SAFETY: the symbol has this type.
        let count = unsafe { self.0.get::<unsafe extern "C" fn(i32) -> i64>(b"mock_count") }.expect("mock_count");
        // SAFETY: it reads a counter.
        unsafe { count(4) }
    }

    /// The nodes of the graph that was made executable last: the value of a fill, `set` and the number of conditions,
    /// `if( ... )`.
    fn shape(&self) -> String {
        // SAFETY: the symbol has this type.
        let shape = unsafe { self.0.get::<unsafe extern "C" fn() -> *const std::ffi::c_char>(b"mock_shape") };
        // SAFETY: it returns text that ends in a zero and stays until the next graph.
        let text = unsafe { std::ffi::CStr::from_ptr(shape.expect("mock_shape")()) };
        text.to_string_lossy().trim_end().to_string()
    }

    fn set(&self, name: &str, value: i64) {
        // SAFETY: every setter of the mock takes one long.
        let set = unsafe { self.0.get::<unsafe extern "C" fn(i64)>(name.as_bytes()) }.expect("a setter");
        // SAFETY: it writes a setting.
        unsafe { set(value) };
    }

    fn calls(&self) -> i64 {
        // SAFETY: the symbol has this type.
        let calls = unsafe { self.0.get::<unsafe extern "C" fn() -> i64>(b"mock_calls") }.expect("mock_calls");
        // SAFETY: it reads a counter.
        unsafe { calls() }
    }
}

/// A case: its name, the mock's settings, and what runs in the child.
type Case = (&'static str, &'static [(&'static str, &'static str)], fn());

const CASES: &[Case] = &[
    ("copies_and_launches_keep_their_order", &[], order),
    ("copies_and_launches_keep_their_order_without_pools", &[("MOCK_POOLS", "0")], order),
    ("long_copies_go_in_pieces", &[], pieces),
    ("a_recording_owns_its_memory", &[], recording),
    ("copies_beside_a_run_touch_no_place_in_use", &[], side),
    ("a_thousand_replays_take_nothing", &[], thousand_replays),
    ("a_thousand_replays_take_nothing_without_pools", &[("MOCK_POOLS", "0")], thousand_replays),
    ("time_is_the_devices", &[], time),
    ("a_fault_is_told_for_ever", &[], fault),
    ("a_synchronous_device_names_the_launch", &[("RESIDUUM_SYNC", "1")], synchronous),
    ("memory_that_runs_out_is_no_end", &[], out_of_memory),
    ("limits_are_checked_before_the_launch", &[], limits),
    ("a_foreign_stream_is_used_and_kept", &[], foreign_stream),
    ("a_failure_of_any_call_is_an_error", &[], any_failure),
];

#[test]
fn without_a_driver_every_entry_answers() {
    if std::env::var_os(CASE).is_some() || driver::Driver::find().is_ok() {
        return;
    }
    let text = super::open(0).expect_err("no driver").to_string();
    assert!(text.contains("driver") && text.starts_with("cuda device: "), "{text}");
    if embedded::FATBINS.is_empty() {
        assert!(text.contains("toolkit") && text.contains("pip install"), "{text}");
    }
    // SAFETY: the stream is refused before it is looked at.
    assert!(unsafe { Device::cuda_on_stream(0, 1) }.is_err());
    assert_eq!(Device::best().kind(), "cpu");
    assert!(matches!(Device::parse("cuda:1"), Err(Error::NoDevice { .. })));
    assert!(matches!(Device::parse("gpu"), Err(Error::Unknown { .. })));
    assert_eq!(Device::parse("auto").expect("the CPU").kind(), "cpu");
}

#[test]
fn every_case_on_the_pretended_driver() {
    if std::env::var_os(CASE).is_some() {
        return;
    }
    let Some(folder) = build_mock(&[]) else { return };
    for (name, settings, _) in CASES.iter().chain(start::CASES).chain(gates::CASES) {
        run_child(&folder, name, settings);
    }
    let plain = build_mock(&["-DMOCK_PLAIN"]).expect("it was built before");
    run_child(&plain, gates::ON_PLAIN.0, gates::ON_PLAIN.1);
    let old = build_mock(&["-DMOCK_OLD"]).expect("it was built before");
    run_child(&old, "old_driver", &[]);
}

/// Not a test of its own: the body of a child process.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    match CASES
        .iter()
        .chain(start::CASES)
        .chain(gates::CASES)
        .chain([&gates::ON_PLAIN])
        .find(|(name, ..)| *name == case)
    {
        Some((.., run)) => run(),
        None => start::old_driver(),
    }
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
    assert!(
        output.status.success() && text.contains(&format!("case {case} done")),
        "{case}: {}\n{text}",
        output.status
    );
}

/// Builds the pretended driver; `None` where there is no C compiler.
fn build_mock(flags: &[&str]) -> Option<PathBuf> {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder")).path().join(flags.concat());
    let root = std::env::var_os("RESIDUUM_ROOT").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let source = Path::new(&root).join("tests/mock_driver/cuda.c");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    if !cfg!(target_os = "linux") || !source.is_file() || Command::new(&compiler).arg("--version").output().is_err() {
        eprintln!("tests on the pretended CUDA driver skipped: they need Linux, their source and a C compiler");
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

fn order() {
    let device = backend().expect("a device");
    assert_eq!((device.kind(), device.arch(), &*device.name()), ("cuda", Arch::Sm90, "Mock 0"));
    let memory = device.allocate(4096).expect("memory");
    assert_eq!(memory.address() % 256, 0);
    let view = View::whole(memory.clone());
    // The source changes before the device has read it.
    let mut bytes = vec![7u8; 4096];
    for round in 0..20u8 {
        bytes.fill(round);
        memory.write(0, &bytes).expect("a copy");
        bytes.fill(0xFF);
        if round % 3 == 0 {
            device
                .launch(&launch(&FILL, &View::new(memory.clone(), 1024, 1024).expect("a view"), 9))
                .expect("a launch");
            let got = view.read().expect("a copy");
            assert!(got[..1024].iter().chain(&got[2048..]).all(|&b| b == round));
            assert!(got[1024..2048].chunks(4).all(|word| word == 9u32.to_le_bytes()));
        }
    }
    assert!(view.read().expect("a copy").iter().all(|&b| b == 19));
    let tail = View::new(memory.clone(), 4000, 96).expect("a view");
    tail.write(&[1; 96]).expect("a copy");
    memory.zero(4064, 16).expect("zeros");
    assert_eq!(tail.read().expect("a copy"), [&[1; 64][..], &[0; 16], &[1; 16]].concat());
    assert!(memory.zero(4095, 2).is_err() && memory.zero(usize::MAX, 2).is_err() && memory.zero(4096, 0).is_ok());
    assert!(memory.write(4095, &[0; 2]).is_err() && memory.read(0, &mut vec![0; 4097]).is_err());
    assert!(memory.write(usize::MAX, &[0; 2]).is_err());
    assert_eq!(device.allocate(0).expect("nothing").bytes(), 0);
    device.synchronize().expect("all well");

    // Launched, not waited for, and dropped.
    device.launch(&launch(&FILL, &view, 3)).expect("a launch");
    drop((view, tail, memory, device));
    assert_eq!(Mock::new().live(), [0; 7]);
}

fn pieces() {
    let device = backend().expect("a device");
    let bytes: Vec<u8> = (0..21 << 20).map(|i: u32| (i % 251) as u8).collect();
    let memory = device.allocate(bytes.len()).expect("memory");
    for _ in 0..3 {
        memory.write(0, &bytes).expect("a copy");
        memory.write(5, &bytes[5..700]).expect("a copy");
    }
    assert!(View::whole(memory).read().expect("a copy") == bytes);
    drop(device);
    assert_eq!(Mock::new().live(), [0; 7]);
}

fn recording() {
    let device = backend().expect("a device");
    let view = View::whole(device.allocate(1024).expect("memory"));
    let half = View::new(device.allocate(64).expect("memory"), 0, 64).expect("a view");
    let launches = vec![launch(&FILL, &view, 1), launch(&FILL, &half, 2), launch(&FILL, &view, 5)];
    let recording = Recording::new(device.clone(), launches).expect("a graph");
    assert_eq!(Mock::new().live()[4], 1, "one executable graph");
    view.write(&[0; 1024]).expect("a copy");
    assert!(view.read().expect("a copy").iter().all(|&b| b == 0), "recording runs nothing");
    drop((device, half));
    for _ in 0..3 {
        recording.replay().expect("a replay");
        assert!(view.read().expect("a copy").chunks(4).all(|word| word == 5u32.to_le_bytes()));
        view.write(&[0; 1024]).expect("a copy");
    }
    drop(view);
    recording.replay().expect("a replay");
    drop(recording);
    assert_eq!(Mock::new().live(), [0; 7]);
}

/// Two places in one memory, each an input behind the output that SHIFT makes of it, and their recordings.
fn two_places(device: &Arc<dyn Backend>, words: usize) -> Result<(Arc<dyn Memory>, [Recording; 2])> {
    let memory = device.allocate(words * 16)?;
    memory.write(0, &vec![0; words * 16])?;
    let record = |place: usize| -> Result<Recording> {
        let whole = View::new(memory.clone(), place * words * 8, words * 8)?;
        let out = View::new(memory.clone(), place * words * 8, words * 4)?;
        let params = Params { y: out.address(), count: words as u64, value: 0, unused: 0 };
        // SAFETY: the parameters are the mock's, and the view is all that it reads and writes.
        let launch = unsafe { Launch::new(&SHIFT, [1, 1, 1], &params, Cost::default(), vec![whole]) };
        Recording::new(device.clone(), vec![launch])
    };
    Ok((memory.clone(), [record(0)?, record(1)?]))
}

fn output(memory: &Arc<dyn Memory>, place: usize, words: usize) -> Vec<u8> {
    let view = View::new(memory.clone(), place * words * 8, words * 4).expect("a view");
    view.read().expect("a copy")
}

fn side() {
    let device = backend().expect("a device");
    let (memory, recordings) = two_places(&device, 64).expect("two places");
    let side = memory.clone().side_queue().expect("a stream").expect("a stream of the device's own");
    assert!(side.write(0, 1000, &[0; 100]).is_err() && side.write(2, 0, &[0]).is_err() && side.release(2).is_err());
    let fill = |place: usize, byte: u8| side.write(place, place * 512 + 256, &[byte; 256]).expect("a copy");
    for step in 0..20u8 {
        let place = usize::from(step % 2);
        fill(place, step);
        side.join().expect("an order");
        recordings[place].replay().expect("a replay");
        side.release(place).expect("a mark");
        // The next batches for this place come while its run may not have begun; so many that the staging buffers run
        // out, and the second stream must go on.
        (0..9).for_each(|other| fill(place, 100 + other));
        assert!(output(&memory, place, 64).iter().all(|&b| b == step), "step {step} read its own input");
    }
    drop((side, memory, recordings, device));
    assert_eq!(Mock::new().live(), [0; 7]);
}

fn thousand_replays() {
    let device = backend().expect("a device");
    let (memory, recordings) = two_places(&device, 64).expect("two places");
    let side = memory.clone().side_queue().expect("a stream").expect("a stream of the device's own");
    let mock = Mock::new();
    let step = |i: usize| {
        let place = i % 2;
        side.write(place, place * 512 + 256, &[i as u8; 256]).expect("a copy");
        side.join().expect("an order");
        recordings[place].replay().expect("a replay");
        side.release(place).expect("a mark");
        assert!(output(&memory, place, 64).iter().all(|&b| b == i as u8), "step {i}");
    };
    (0..10).for_each(step);
    let (live, free, counts) = (mock.live(), device.free_bytes().expect("an answer"), mock.counts());
    (0..1_000).for_each(step);
    let [allocations, pinned, graphs, kernels] = counts;
    assert_eq!(mock.counts(), [allocations, pinned, graphs + 1_000, kernels], "one graph launch a step, no allocation");
    assert_eq!((mock.live(), device.free_bytes().expect("an answer")), (live, free));
    assert!(free.is_some());

    // Nothing is done beside another library's stream.
    // SAFETY: the symbol has this type, and the stream is never freed.
    let foreign = unsafe {
        let stream = mock.0.get::<unsafe extern "C" fn(i32) -> u64>(b"mock_stream").expect("mock_stream");
        Cuda(Context::open(0, Some(stream(1)), IMAGES).expect("a device"))
    };
    assert!(foreign.allocate(64).expect("memory").side_queue().expect("an answer").is_none());
}

fn time() {
    let device = backend().expect("a device");
    let view = View::whole(device.allocate(1024).expect("memory"));
    let fill = launch(&FILL, &view, 1);
    // What was put on the queue before is not counted. The mock's clock ticks once for each piece of work, in
    // milliseconds, and the event at the end is one.
    device.launch(&fill).expect("a launch");
    for count in [0u64, 1, 5] {
        let taken = device.time(&mut || (0..count).try_for_each(|_| device.launch(&fill))).expect("a time");
        assert_eq!(taken, std::time::Duration::from_millis(count + 1));
    }
    assert!(view.read().expect("a copy").chunks(4).all(|word| word == 1u32.to_le_bytes()));
    let text = device.time(&mut || device.launch(&launch(&ABSENT, &view, 1))).expect_err("no kernel").to_string();
    assert!(text.contains("mock_absent"), "{text}");
    drop((fill, view, device));
    assert_eq!(Mock::new().live(), [0; 7]);
}

fn fault() {
    let device = backend().expect("a device");
    let view = View::whole(device.allocate(1024).expect("memory"));
    assert!(device.failure().is_none());
    device.launch(&launch(&FILL, &view, 1)).expect("a launch");
    device.launch(&launch(&TRAP, &view, 1)).expect("it fails later");
    let text = device.synchronize().expect_err("the trap").to_string();
    for part in [
        "cuda:0 Mock 0: waiting for the device",
        "mock_fill on 2x3x4 blocks of 128, mock_trap on 2x3x4",
        "CUDA_ERROR_ILLEGAL_ADDRESS (700)",
        "restart the process",
        "RESIDUUM_SYNC=1",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let again = [
        device.synchronize(),
        device.launch(&launch(&FILL, &view, 1)),
        view.write(&[0; 4]),
        view.read().map(|_| ()),
        device.allocate(64).map(|_| ()),
        Recording::new(device.clone(), vec![launch(&FILL, &view, 1)]).map(|_| ()),
        device.time(&mut || Ok(())).map(|_| ()),
    ];
    assert!(again.iter().all(|r| r.as_ref().is_err_and(|e| e.to_string() == text)), "{again:?}");
    assert_eq!(device.failure().map(|e| e.to_string()), Some(text));
}

fn synchronous() {
    let device = backend().expect("a device");
    let view = View::whole(device.allocate(1024).expect("memory"));
    device.launch(&launch(&FILL, &view, 1)).expect("a launch");
    let text = device.launch(&launch(&TRAP, &view, 1)).expect_err("the trap").to_string();
    assert!(text.contains("mock_trap on 2x3x4 blocks of 128 threads") && text.contains("of 1024 bytes"), "{text}");
    assert!(!text.contains("mock_fill"), "{text}");
}

fn out_of_memory() {
    let device = backend().expect("a device");
    let mock = Mock::new();
    mock.set("mock_limit", 10_000);
    let first = device.allocate(6_000).expect("it fits");
    let error = device.allocate(6_000).expect_err("too much");
    assert!(matches!(error, Error::OutOfMemory { bytes: Some(6_000), .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("Mock 0, 4000 of 10000 are free: a program needs 6000 bytes"), "{text}");
    // What was freed is only cached until the pool is trimmed.
    drop(first);
    let again = device.allocate(9_000).expect("the first one's memory came back");
    View::whole(again).write(&[1; 9_000]).expect("the device still works");
    assert!(device.failure().is_none());
}

fn limits() {
    let device = backend().expect("a device");
    let view = View::whole(device.allocate(64).expect("memory"));
    device.launch(&launch(&LARGE, &view, 1)).expect("100 KiB, once allowed");
    for (kernel, part) in [
        (&TOO_LARGE, "307200 bytes of shared memory"),
        (&TOO_WIDE, "2048 threads"),
        (&ABSENT, "unknown embedded kernel `mock_absent`; did you mean mock_fill"),
    ] {
        let text = device.launch(&launch(kernel, &view, 1)).expect_err("refused").to_string();
        assert!(text.contains(part), "{text}");
    }
    device.synchronize().expect("nothing was launched that fails");

    const BROKEN_IMAGES: Images = Images { fatbins: &[("broken", &BROKEN.0)], ..IMAGES };
    // SAFETY: no stream is given.
    let device = Cuda(unsafe { Context::open(0, None, BROKEN_IMAGES) }.expect("images load later"));
    let text = device.launch(&launch(&FILL, &view, 1)).expect_err("no image").to_string();
    assert!(text.contains("loading the kernels of broken") && text.contains("nvcc 12.2.140 for sm_80"), "{text}");
}

fn foreign_stream() {
    drop(backend().expect("a device"));
    let mock = Mock::new();
    // SAFETY: the symbols have these types.
    let (stream, idle) = unsafe {
        let stream = mock.0.get::<unsafe extern "C" fn(i32) -> u64>(b"mock_stream").expect("mock_stream");
        (stream, mock.0.get::<unsafe extern "C" fn(u64) -> i32>(b"mock_idle").expect("mock_idle"))
    };
    // SAFETY: the first makes a stream of this context, the second one of another.
    let (ours, theirs) = unsafe { (stream(1), stream(0)) };
    // SAFETY: the stream is valid and never freed.
    let text = unsafe { Context::open(0, Some(theirs), IMAGES) }.expect_err("another context").to_string();
    assert!(text.contains("opening the device"), "{text}");
    // SAFETY: as above.
    let device = Cuda(unsafe { Context::open(0, Some(ours), IMAGES) }.expect("a device"));

    let mut words = vec![0u32; 64];
    // SAFETY: the memory of the mock is the host's, and outlives the launches.
    let view = unsafe { View::foreign(words.as_mut_ptr() as u64, 256) };
    assert!(view.read().is_err() && view.write(&[0]).is_err());
    device.launch(&launch(&FILL, &view, 4)).expect("a launch");
    // SAFETY: `ours` is a stream of the mock.
    assert_eq!(unsafe { idle(ours) }, 0, "the work is on the caller's stream");
    device.synchronize().expect("all well");
    assert_eq!(words, [4; 64]);
    let replay = device.record(&[launch(&FILL, &view, 8)]).expect("a graph").expect("a graph");
    replay.replay().expect("a replay");
    drop((replay, device));
    assert_eq!(words, [8; 64], "dropping waits");
    assert_eq!(mock.live(), [0; 7], "and destroys nothing of the caller's");
    // SAFETY: the stream was not destroyed.
    assert_eq!(unsafe { idle(ours) }, 1);
}

/// A small use of everything.
fn scenario() -> Result<()> {
    let device = backend()?;
    let memory = device.allocate(1 << 12)?;
    let view = View::whole(memory.clone());
    memory.write(0, &[1; 4096])?;
    device.launch(&launch(&LARGE, &view, 2))?;
    let recording = Recording::new(device.clone(), vec![launch(&FILL, &view, 3), launch(&FILL, &view, 4)])?;
    recording.replay()?;
    if let Some(side) = memory.clone().side_queue()? {
        side.write(0, 0, &[9; 64])?;
        side.join()?;
        recording.replay()?;
        side.release(0)?;
    }
    assert!(view.read()?.chunks(4).all(|word| word == 4u32.to_le_bytes()));
    device.time(&mut || recording.replay())?;
    device.synchronize()
}

/// Lets the first, second, third, ... call of the driver fail: always an error, never a panic.
fn any_failure() {
    scenario().expect("without failures");
    let mock = Mock::new();
    mock.set("mock_fail_at", -1);
    scenario().expect("without failures");
    let calls = mock.calls();
    assert!(calls > 40, "{calls} calls");
    let mut survived = 0;
    for call in 0..calls {
        mock.set("mock_fail_at", call);
        match scenario() {
            Ok(()) => survived += 1,
            Err(error) => assert!(error.to_string().contains("(999)"), "call {call}: {error}"),
        }
    }
    mock.set("mock_fail_at", -1);
    assert!(survived < calls / 2, "most failures are told; the rest are in destructors");
    scenario().expect("the device works again");
}
