//! The memory that a program takes is what its plan says. In a binary of its own, because it counts every allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use residuum::device::Device;
use residuum::graph::{Builder, ConvOptions, Graph, Mode, Program};
use residuum::ops::sgd::{Sgd, Spec};
use residuum::tensor::DType;

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

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Two convolutions with batch norm on 64 images of 32x32x16.
fn network() -> residuum::Result<Graph> {
    let mut b = Builder::new(Mode::Train);
    let conv = ConvOptions { k: 16, kernel: [3; 2], padding: [1; 2], ..Default::default() };
    let mut x = b.input("input", [64, 32, 32, 16]);
    for i in 0..3 {
        x = b.conv2d(&format!("conv{i}"), x, conv)?;
        x = b.batch_norm(&format!("bn{i}"), x, 1e-5)?;
        x = b.relu(x)?;
    }
    let logits = b.linear("fc", x, 10)?;
    b.loss(logits, 0.0, 1.0)?;
    let mut graph = b.finish();
    graph.differentiate()?;
    Ok(graph)
}

#[test]
fn peak_memory_is_what_the_plan_says() {
    let graph = network().expect("a sound network");
    let spec = Spec { momentum: 0.9, dampening: 0.0, nesterov: false, weight_decay: 0.0, grad_scale: 1.0 };
    let sgd = Sgd::new(spec).expect("a sound optimizer");
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
