//! The memory that a program takes is what its plan says, and a step leaves none behind. In a binary of its own, because it
//! counts every allocation, on the host and on a GPU.

#[allow(dead_code)] // the rest is for the suite
#[path = "suite/machine.rs"]
mod machine;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use residuum::device::Device;
use residuum::graph::{Builder, ConvOptions, Graph, LossOptions, Mode, Program};
use residuum::ops::sgd::{Sgd, Spec};
use residuum::tensor::{DType, HostTensor};

/// Counts the bytes in use and the most that ever were.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
}

/// Held by the test that counts.
static ALONE: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// `layers` convolutions with batch norm on `n` images of `size`x`size`x16.
fn network(n: usize, size: usize, layers: usize) -> residuum::Result<Graph> {
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

fn optimizer() -> Sgd {
    let spec = Spec { momentum: 0.9, dampening: 0.0, nesterov: false, weight_decay: 0.0 };
    Sgd::new(spec).expect("a sound optimizer")
}

#[test]
fn peak_memory_is_what_the_plan_says() {
    let _alone = ALONE.lock().expect("the other test ended well");
    let graph = network(64, 32, 3).expect("a sound network");
    let sgd = optimizer();
    // The threads of the pool and their queues are not the program's.
    let mut warm_up = Program::compile(&graph, &Device::cpu(), DType::F32, Some(sgd)).expect("a program");
    warm_up.run().expect("a run");
    drop(warm_up);

    let before = IN_USE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let mut program = Program::compile(&graph, &Device::cpu(), DType::F32, Some(sgd)).expect("a program");
    for _ in 0..3 {
        program.run().expect("a run");
    }
    let taken = (PEAK.load(Ordering::Relaxed) - before) as f64;
    let planned = program.plan().arena_bytes as f64;
    assert!(planned > 16e6, "a plan of {planned} bytes is too small to judge by");
    assert!((taken / planned - 1.0).abs() <= 0.01, "{taken} bytes taken, {planned} planned");
}

/// Hundreds of steps, of nine, in which threads may take part for the first time; what leaks grows in all.
const FIRST_TIMES: usize = 4;

/// Bytes that are free on the device when nothing runs; `None` for the host's devices.
fn free_bytes(device: &Device) -> Option<usize> {
    let Device::Kernels(backend) = device else { return None };
    backend.synchronize().expect("steps that succeed");
    backend.free_bytes().expect("an answer")
}

/// A step leaves nothing behind on the host, on the CPU, where it is built in on the simulator, whose steps launch and
/// feed inputs as a GPU's do, and on a GPU, where it leaves nothing on the device either. Threads of the pool keep a few
/// bytes now and then, so the least in use during a hundred steps counts, and must not grow by as much as a byte a step.
#[test]
fn a_thousand_steps_keep_the_memory_flat() {
    let _alone = ALONE.lock().expect("the other test ended well");
    for device in machine::devices("a thousand steps on a GPU") {
        // So large there that a program that was not freed shows: a GPU's driver keeps its memory in chunks.
        let (n, size) = if device.kind() == "cuda" { (16, 64) } else { (1, 2) };
        let graph = network(n, size, 1).expect("a sound network");
        let image = HostTensor::f32([n, 16, size, size], vec![0.5; n * 16 * size * size]);
        let mut program = Program::compile(&graph, &device, DType::F16, Some(optimizer())).expect("a program");
        let mut least = [usize::MAX; 10];
        let mut free = None;
        for step in 0..1_000 {
            program.set_input("input", &image).expect("an input");
            program.set_labels(&vec![step % 10; n]).expect("labels");
            program.set_learning_rate(1.0 / f64::from(step + 1)).expect("a rate");
            program.run().expect("a run");
            program.output("loss").expect("a loss");
            let least = &mut least[step as usize / 100];
            *least = IN_USE.load(Ordering::Relaxed).min(*least);
            if step % 50 == 49 {
                let mut other = Program::compile(&graph, &device, DType::F16, Some(optimizer())).expect("a program");
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
