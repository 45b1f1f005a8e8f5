//! The costs of launches against the bytes that the simulator counts.
//!
//! The kernels are compiled a second time to report every load and store. A launch's cost must be what it touches, in
//! sectors of 32 bytes: within 5 %, for reads and for writes.
#![cfg(feature = "sim")]

mod library;
mod networks;
mod ops;

use std::sync::{Arc, LazyLock};

use residuum::device::sim::probe::{self, Traffic};
use residuum::device::sim::{Copies, SimOptions};
use residuum::device::{Arch, Backend, Cost, Device};

use crate::machine;

/// The largest error of a cost, relative to the bytes touched.
const SLACK: f64 = 0.05;
/// With fewer bytes, numbers per channel and the ends of rows weigh too much.
const SMALL: u64 = 4096;

/// A simulator that counts, or `None` after a message.
fn backend() -> Option<Arc<dyn Backend>> {
    static LOADED: LazyLock<Result<(), String>> = LazyLock::new(|| {
        // SAFETY: `build` compiles this build's wrappers with `-fsanitize=thread`.
        unsafe { probe::load_counted(&library::build()?) }.map_err(|e| e.to_string())
    });
    if let Err(reason) = &*LOADED {
        machine::skip("CXX", "the comparison of costs and traffic", reason);
        return None;
    }
    // Aligned as a GPU's buffers: one that begins inside a sector would touch one more.
    let options =
        SimOptions { traffic: true, alignment: 256, arch: Arch::Sm90, copies: Copies::Early, ..SimOptions::default() };
    match Device::sim(options).unwrap() {
        Device::Kernels(backend) => Some(backend),
        Device::Cpu => unreachable!("Device::sim makes a device of kernels"),
    }
}

/// The error of `cost` for a launch that touched `counted`.
fn difference(cost: Cost, counted: Traffic) -> Option<String> {
    let sides = [("read", cost.bytes_read, counted.bytes_read), ("written", cost.bytes_written, counted.bytes_written)];
    let wrong: Vec<String> = sides
        .into_iter()
        .filter(|&(_, cost, counted)| cost.abs_diff(counted) > SMALL.max((SLACK * counted as f64) as u64))
        .map(|(side, cost, counted)| {
            format!("{side}: the cost is {cost}, {counted} were touched ({:+.1} %)", percent(cost, counted))
        })
        .collect();
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

fn percent(cost: u64, counted: u64) -> f64 {
    (cost as f64 / counted.max(1) as f64 - 1.0) * 100.0
}

fn assert_none(mut wrong: Vec<String>) {
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{} launches have wrong costs\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_sector_is_counted_once() {
    use residuum::device::{Target, View};
    use residuum::ops::{relu, Arg, Io, Operator, Write};
    use residuum::tensor::DType;

    let Some(backend) = backend() else { return };
    let bind = |bytes: usize| {
        let memory = backend.allocate(bytes).unwrap();
        memory.write(0, &vec![0; bytes]).unwrap();
        Arg { view: View::whole(memory), pixel_stride: 24, write: Write::Overwrite }
    };
    let node = relu::Node { shape: [5, 7, 9, 24].into(), pass: relu::Pass::Fwd };
    let bytes = 5 * 7 * 9 * 24 * 4;
    let io = Io { inputs: &[bind(bytes)], outputs: &[bind(bytes)], scratch: None };
    let launches = node.launches(Target { arch: backend.arch(), dtype: DType::F32 }, &io).unwrap();
    for _ in 0..2 {
        backend.launch(&launches[0]).unwrap();
    }
    let once = Traffic { bytes_read: bytes as u64, bytes_written: bytes as u64 };
    assert_eq!(probe::traffic(), [once; 2]);
    assert_eq!(probe::traffic(), [], "they were asked for");
}

#[test]
fn a_cost_that_is_off_by_a_tenth_is_refused() {
    let counted = Traffic { bytes_read: 100_000, bytes_written: 50_000 };
    let cost = |bytes_read, bytes_written| Cost { flops: 0, bytes_read, bytes_written };
    assert_eq!(difference(cost(104_900, 50_000), counted), None);
    assert!(difference(cost(110_000, 50_000), counted).is_some());
    assert!(difference(cost(90_000, 50_000), counted).is_some());
    assert!(difference(cost(100_000, 45_000), counted).is_some());
    assert!(difference(cost(0, 50_000), counted).is_some());
    let small = Traffic { bytes_read: 0, bytes_written: 8 };
    assert_eq!(difference(cost(1000, 4), small), None);
    assert!(difference(cost(5000, 4), small).is_some());
}
