//! A program uses the memory that its plan names, and a step leaks none. A binary of its own, because it counts every
//! allocation, on the host and on a GPU, and makes one of them fail.

#[allow(dead_code)] // the rest is for the suite
#[path = "suite/machine.rs"]
mod machine;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use residuum::control::sgd::{Sgd, Spec};
use residuum::device::{Arch, Backend, Device, DeviceId, Launch, Memory};
use residuum::graph::{Builder, ConvOptions, Graph, LossOptions, Mode, Program};
use residuum::models::init::{initialise, Scheme};
use residuum::ops::pool::{Kind, Window};
use residuum::tensor::{DType, HostTensor, StateDict};
use residuum::{Error, Result};

/// Counts the bytes in use and their peak, and fails one allocation on request.
struct Counting;

/// The least bytes of a large allocation; only such fail. Tensors and arenas are larger. Lists of ops, launches and
/// names are smaller in the networks here, and Rust ends the process if one of them fails.
const LARGE: usize = 32 << 10;

/// Counts large allocations down to the one that fails; 0 if none does.
static UNTIL_FAILURE: AtomicUsize = AtomicUsize::new(0);

/// True if this large allocation fails.
fn fails() -> bool {
    let next = |left: usize| left.checked_sub(1);
    UNTIL_FAILURE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) == Ok(1)
}

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged, or answers that there is no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE && fails() {
            return std::ptr::null_mut();
        }
        let now = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the contract is the system allocator's.
        unsafe { System.dealloc(p, layout) }
    }
}

/// Held by the test that counts.
static ALONE: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// `layers` convolutions with batch norm on `n` images of `size`x`size`x16.
fn network(n: usize, size: usize, layers: usize) -> Result<Graph> {
    let mut b = Builder::new(Mode::Train);
    let conv = ConvOptions { k: 16, kernel: [3; 2], padding: [1; 2], ..Default::default() };
    let mut x = b.input("input", [n, size, size, 16]);
    for i in 0..layers {
        x = b.conv2d(&format!("conv{i}"), x, conv)?;
        x = b.batch_norm(&format!("bn{i}"), x, 1e-5)?;
        x = b.relu(x)?;
    }
    let logits = b.linear("fc", x, 10)?;
    b.loss(logits, LossOptions::default())?;
    let mut graph = b.finish();
    graph.differentiate()?;
    Ok(graph)
}

/// Weights and images for `graph`.
fn data(graph: &Graph, n: usize, size: usize) -> (StateDict, HostTensor) {
    let image = HostTensor::f32([n, 16, size, size], vec![0.5; n * 16 * size * size]);
    (initialise(graph, &Scheme::RESIDUAL, 0), image)
}

/// Makes `program` ready to run.
fn feed(program: &mut Program, (state, images): &(StateDict, HostTensor), labels: &[i32]) {
    program.load(state).expect("weights");
    program.set_input("input", images).expect("an input");
    program.set_labels(labels).expect("labels");
    program.set_learning_rate(0.1).expect("a rate");
}

fn optimizer() -> Sgd {
    let spec = Spec { momentum: 0.9, dampening: 0.0, nesterov: false, weight_decay: 0.0 };
    Sgd::new(spec).expect("a sound optimizer")
}

#[test]
fn peak_memory_is_what_the_plan_says() {
    let _alone = ALONE.lock().expect("the other test ended well");
    let graph = network(64, 32, 3).expect("a sound network");
    let (sgd, labels) = (optimizer(), [3; 64]);
    let data = data(&graph, 64, 32);
    // The threads of the pool and their queues are not the program's.
    let mut warm_up = Program::compile(&graph, &Device::cpu(), DType::F32, Some(sgd)).expect("a program");
    feed(&mut warm_up, &data, &labels);
    warm_up.run().expect("a run");
    drop(warm_up);

    let before = IN_USE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let mut program = Program::compile(&graph, &Device::cpu(), DType::F32, Some(sgd)).expect("a program");
    let compiled = PEAK.load(Ordering::Relaxed);
    // Setting the inputs converts them to the library's layout, in memory that is not the program's.
    feed(&mut program, &data, &labels);
    PEAK.store(IN_USE.load(Ordering::Relaxed), Ordering::Relaxed);
    for _ in 0..3 {
        program.run().expect("a run");
    }
    let taken = (PEAK.load(Ordering::Relaxed).max(compiled) - before) as f64;
    let planned = program.plan().arena_bytes as f64;
    assert!(planned > 16e6, "a plan of {planned} bytes is too small to judge by");
    assert!((taken / planned - 1.0).abs() <= 0.01, "{taken} bytes taken, {planned} planned");
}

/// The hundreds of steps, of nine, that may grow as threads run for the first time; a leak grows in all.
const FIRST_TIMES: usize = 4;

/// Free bytes of the idle device; `None` on the host.
fn free_bytes(device: &Device) -> Option<usize> {
    let Device::Kernels(backend) = device else { return None };
    backend.synchronize().expect("steps that succeed");
    backend.free_bytes().expect("an answer")
}

/// A step leaks nothing on the host, whether it runs on the CPU, the simulator or a GPU, and nothing on a GPU. Threads
/// of the pool keep a few bytes now and then, so the test takes the least in use during each hundred steps, which must
/// grow by less than a byte a step.
#[test]
fn a_thousand_steps_keep_the_memory_flat() {
    let _alone = ALONE.lock().expect("the other test ended well");
    for device in machine::devices("a thousand steps on a GPU") {
        // A GPU's driver keeps its memory in chunks; a program that was not freed must be larger than one to show.
        let (n, size) = if device.kind() == "cuda" { (16, 64) } else { (1, 2) };
        let graph = network(n, size, 1).expect("a sound network");
        let data = data(&graph, n, size);
        let mut program = Program::compile(&graph, &device, DType::F16, Some(optimizer())).expect("a program");
        program.load(&data.0).expect("weights");
        let mut least = [usize::MAX; 10];
        let mut free = None;
        for step in 0..1_000 {
            program.set_input("input", &data.1).expect("an input");
            program.set_labels(&vec![step % 10; n]).expect("labels");
            program.set_learning_rate(1.0 / f64::from(step + 1)).expect("a rate");
            program.run().expect("a run");
            program.output("loss").expect("a loss");
            let least = &mut least[step as usize / 100];
            *least = IN_USE.load(Ordering::Relaxed).min(*least);
            if step % 50 == 49 {
                let mut other = Program::compile(&graph, &device, DType::F16, Some(optimizer())).expect("a program");
                feed(&mut other, &data, &vec![step % 10; n]);
                other.run().expect("a run");
                drop(other);
                free = free.or_else(|| free_bytes(&device));
            }
        }
        assert!(free_bytes(&device) >= free, "{free:?} bytes were free after 50 steps, now {:?}", free_bytes(&device));
        let grown = least.windows(2).skip(1).filter(|pair| pair[1] >= pair[0] + 100).count();
        assert!(grown <= FIRST_TIMES, "bytes in use on {}: {least:?}", device.kind());
    }
}

/// The results of a step of `graph` from `state`, by name. On the CPU no allocation in `run` itself fails: the library
/// makes none of a tensor's size, but the `gemm` crate needs memory for as much of a matrix as the caches hold.
fn step(graph: &Graph, device: &Device, state: &StateDict, image: &HostTensor, labels: &[i32]) -> Result<StateDict> {
    let mut program = Program::compile(graph, device, DType::F32, Some(optimizer()))?;
    program.load(state)?;
    program.set_input("input", image)?;
    program.set_labels(labels)?;
    program.set_learning_rate(0.1)?;
    let left = match device {
        Device::Cpu => UNTIL_FAILURE.swap(0, Ordering::Relaxed),
        Device::Kernels(_) => UNTIL_FAILURE.load(Ordering::Relaxed),
    };
    program.run()?;
    if let Device::Cpu = device {
        UNTIL_FAILURE.store(left, Ordering::Relaxed);
    }
    let mut all = program.state()?;
    all.insert("loss".into(), program.output("loss")?);
    all.extend(program.gradients()?.into_iter().map(|(name, v)| (format!("gradient of {name}"), v)));
    all.extend(program.velocity()?.into_iter().map(|(name, v)| (format!("velocity of {name}"), v)));
    Ok(all)
}

/// A network whose every weight, input and activation is large, its first state, and a batch.
fn large_tensors() -> (Graph, StateDict, HostTensor, Vec<i32>) {
    const IMAGES: usize = 4;
    let mut b = Builder::new(Mode::Train);
    let conv = ConvOptions { k: 32, kernel: [3; 2], padding: [1; 2], ..Default::default() };
    let build = |b: &mut Builder| -> Result<()> {
        let mut x = b.input("input", [IMAGES, 16, 16, 32]);
        x = b.conv2d("conv", x, conv)?;
        x = b.batch_norm("bn", x, 1e-5)?;
        x = b.relu(x)?;
        let logits = b.linear("fc", x, 10)?;
        b.loss(logits, LossOptions::default()).map(drop)
    };
    build(&mut b).expect("a sound network");
    let mut graph = b.finish();
    graph.differentiate().expect("a loss");
    let number = |i: usize| (i * 37 % 101) as f32 / 101.0 - 0.5;
    let tensor = |shape: &[usize]| HostTensor::f32(shape, (0..shape.iter().product()).map(number).collect());
    let parameters = graph.parameters().iter().map(|p| (p.name.clone(), tensor(p.shape.dims())));
    let buffers = graph.buffers().iter().map(|b| (b.name.clone(), HostTensor::f32(b.shape.clone(), vec![1.0; 32])));
    let state = parameters.chain(buffers).collect();
    (graph, state, tensor(&[IMAGES, 32, 16, 16]), vec![3, 1, 4, 1])
}

/// Each allocation fails in turn. It becomes a typed error with the bytes that were wanted, nothing is held, and the
/// next attempt gives the bits of an undisturbed one.
#[test]
fn an_allocation_that_fails_is_an_error_and_leaves_nothing() {
    let _alone = ALONE.lock().expect("the other tests ended well");
    let (graph, state, image, labels) = large_tensors();
    let mut devices = machine::devices("failing allocations on a GPU");
    devices.retain(|device| device.kind() != "cuda");
    for device in devices {
        let work = || step(&graph, &device, &state, &image, &labels);
        // Threads, and the matrix library on each thread, keep their memory.
        work().expect("memory");
        rayon::broadcast(|_| work().expect("memory"));
        let expected = work().expect("memory");
        let before = IN_USE.load(Ordering::Relaxed);
        let mut failures = 0;
        loop {
            UNTIL_FAILURE.store(failures + 1, Ordering::Relaxed);
            let outcome = work();
            let left = UNTIL_FAILURE.swap(0, Ordering::Relaxed);
            match outcome {
                Err(Error::OutOfMemory { bytes: Some(bytes), .. }) if left == 0 => {
                    assert!(bytes >= LARGE, "failure {failures}: {bytes} bytes");
                }
                Ok(found) if left > 0 => {
                    assert!(found == expected, "without a failure");
                    break;
                }
                other => panic!("failure {failures} on {}: {other:?}", device.kind()),
            }
            // Threads keep a few bytes now and then.
            let held = IN_USE.load(Ordering::Relaxed).saturating_sub(before);
            assert!(held < LARGE / 8, "failure {failures} on {} leaves {held} bytes", device.kind());
            assert!(work().expect("memory again") == expected, "after failure {failures} on {}", device.kind());
            failures += 1;
        }
        assert!(failures > 10, "{failures} large allocations on {}", device.kind());
    }
}

/// A device on which one allocation fails; `live` counts its memory.
#[derive(Debug)]
struct Failing {
    inner: Arc<dyn Backend>,
    until_failure: AtomicUsize,
    live: Arc<()>,
}

/// Memory that `Failing` counts.
#[derive(Debug)]
struct Counted {
    inner: Arc<dyn Memory>,
    _live: Arc<()>,
}

// SAFETY: every call goes to memory that it owns.
unsafe impl Memory for Counted {
    fn device(&self) -> Option<DeviceId> {
        self.inner.device()
    }

    fn address(&self) -> u64 {
        self.inner.address()
    }

    fn bytes(&self) -> usize {
        self.inner.bytes()
    }

    fn write(&self, offset: usize, src: &[u8]) -> Result<()> {
        self.inner.write(offset, src)
    }

    fn zero(&self, offset: usize, bytes: usize) -> Result<()> {
        self.inner.zero(offset, bytes)
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()> {
        self.inner.read(offset, dst)
    }
}

// SAFETY: every call is forwarded to one backend, or fails.
unsafe impl Backend for Failing {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn name(&self) -> String {
        self.inner.name()
    }

    fn arch(&self) -> Arch {
        self.inner.arch()
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Memory>> {
        if self.until_failure.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) == Ok(1) {
            return Err(Error::out_of_memory("the test's device", bytes));
        }
        Ok(Arc::new(Counted { inner: self.inner.allocate(bytes)?, _live: self.live.clone() }))
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        self.inner.launch(launch)
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }
}

#[test]
fn device_memory_that_fails_is_an_error_and_leaves_nothing() {
    let _alone = ALONE.lock().expect("the other tests ended well");
    let (graph, state, image, labels) = large_tensors();
    for device in machine::devices("failing allocations on a GPU") {
        let Device::Kernels(inner) = device else { continue };
        let failing = Arc::new(Failing { inner, until_failure: AtomicUsize::new(0), live: Arc::new(()) });
        let device = Device::Kernels(failing.clone());
        let work = || step(&graph, &device, &state, &image, &labels);
        let expected = work().expect("memory");
        let mut failures = 0;
        loop {
            failing.until_failure.store(failures + 1, Ordering::Relaxed);
            let outcome = work();
            let left = failing.until_failure.swap(0, Ordering::Relaxed);
            assert_eq!(Arc::strong_count(&failing.live), 1, "failure {failures} leaves device memory");
            match outcome {
                Err(Error::OutOfMemory { bytes: Some(_), .. }) if left == 0 => failures += 1,
                Ok(found) if left > 0 => break assert!(found == expected, "without a failure"),
                other => panic!("failure {failures}: {other:?}"),
            }
            assert!(work().expect("memory again") == expected, "after failure {failures}");
        }
        assert!(failures > 0, "a program has memory on its device");
    }
}

/// Sizes beyond any address space, and beyond usize.
#[test]
fn what_does_not_fit_is_a_typed_error_on_every_device() {
    for channels in [1 << 20, 1 << 33, usize::MAX >> 8, usize::MAX] {
        let mut b = Builder::new(Mode::Infer);
        let x = b.input("input", [1 << 30, 1, 1, channels]);
        let y = b.relu(x).expect("a sound network");
        b.output("y", y);
        let graph = b.finish();
        for train in [false, true] {
            let mut b = Builder::new(if train { Mode::Train } else { Mode::Infer });
            let x = b.input("input", [1 << 30, 1, 1, channels]);
            let outcome = b.batch_norm("bn", x, 1e-5).and_then(|y| {
                b.output("y", y);
                Program::compile(&b.finish(), &Device::cpu(), DType::F32, None)
            });
            assert!(outcome.is_err(), "a batch norm of {channels} channels");
        }
        let mut b = Builder::new(Mode::Infer);
        let x = b.input("input", [1 << 30, 4, 4, channels]);
        let window = Window::Sliding { kernel: [2; 2], stride: [2; 2], padding: [0; 2], ceil: false };
        let pooled = b.pool(x, window, Kind::Max).and_then(|y| {
            b.output("y", y);
            Program::compile(&b.finish(), &Device::cpu(), DType::F32, None)
        });
        assert!(pooled.is_err(), "a pooling of {channels} channels");
        for device in machine::devices("a program that does not fit, on a GPU") {
            match Program::compile(&graph, &device, DType::F32, None) {
                Err(Error::OutOfMemory { bytes: Some(bytes), .. }) => assert!(bytes >= 2 << 52, "{bytes} bytes"),
                other => panic!("{channels} channels on {}: {other:?}", device.kind()),
            }
        }
    }
}
