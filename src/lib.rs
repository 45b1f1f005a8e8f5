//! Residual networks, trained and run by hand-written CUDA kernels in safe Rust.
//!
//! A network is a [`graph`] of [`ops`]. An op has a reference in plain loops, generic over f32 and f64, and kernels in
//! f32, f16 and bf16. A [`Program`](graph::Program) runs a graph on a [`Device`](device::Device): the CPU, a GPU, or a
//! simulator of the kernels that needs no GPU. **Nothing has run on a GPU yet**: the kernels are compiled for GPUs and
//! checked on the simulator.
//!
//! There are three entry points: a whole network, a custom graph, and a single op.
//!
//! # A whole network
//!
//! [`models`] has networks by name, [`data`] reads data sets, [`train`] trains and evaluates.
//!
//! ```
//! use residuum::data::digits;
//! use residuum::device::Device;
//! use residuum::train::{Metrics, Observer, Settings, Trainer};
//!
//! struct Print;
//!
//! impl Observer for Print {
//!     fn epoch(&mut self, m: &Metrics, _: &Trainer<'_>) -> residuum::Result<()> {
//!         println!("epoch {}: test accuracy {:.1} %", m.epoch, 100.0 * m.test_accuracy);
//!         Ok(())
//!     }
//! }
//!
//! let splits = digits::read()?;
//! let settings = Settings { model: "resnet8_cifar".into(), epochs: 1, batch: 256, ..Settings::default() };
//! // `Device::best()` is a GPU if there is one.
//! let mut trainer = Trainer::new(settings, &splits, &Device::cpu())?;
//! trainer.run(&mut Print)?;
//! assert_eq!(trainer.epoch(), 1);
//! # Ok::<(), residuum::Error>(())
//! ```
//!
//! # A custom graph
//!
//! [`Builder`](graph::Builder) makes a graph, [`Graph::differentiate`](graph::Graph::differentiate) appends its
//! backward pass, [`Program::compile`](graph::Program::compile) fuses it and binds it to a device. A graph's shapes are
//! NHWC; the caller's tensors are in torch's layouts: images NCHW, weights OIHW.
//!
//! ```
//! use residuum::device::Device;
//! use residuum::graph::{Builder, ConvOptions, LossOptions, Mode, Program};
//! use residuum::models::init;
//! use residuum::ops::pool::{Kind, Window};
//! use residuum::control::sgd::{Sgd, Spec};
//! use residuum::tensor::{DType, HostTensor};
//!
//! let mut b = Builder::new(Mode::Train);
//! let x = b.input("input", [4, 8, 8, 1]); // NHWC
//! let x = b.conv2d("conv", x, ConvOptions { k: 8, kernel: [3, 3], padding: [1, 1], ..Default::default() })?;
//! let x = b.batch_norm("bn", x, 1e-5)?;
//! let x = b.relu(x)?;
//! let x = b.pool(x, Window::Adaptive([1, 1]), Kind::Average { count_padding: false })?;
//! let logits = b.linear("fc", x, 2)?;
//! b.loss(logits, LossOptions::default())?;
//! let mut graph = b.finish();
//! graph.differentiate()?;
//!
//! let sgd = Sgd::new(Spec { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 1e-4 })?;
//! let mut program = Program::compile(&graph, &Device::cpu(), DType::F32, Some(sgd))?;
//! program.load(&init::initialise(&graph, &init::Scheme::RESIDUAL, 0))?;
//! program.set_learning_rate(0.1)?;
//! let pixels = (0..4 * 64).map(|i| if i / 64 % 2 == 0 { 1.0 } else { (i % 2) as f32 }).collect();
//! program.set_input("input", &HostTensor::f32([4, 1, 8, 8], pixels))?; // NCHW
//! program.set_labels(&[0, 1, 0, 1])?;
//! let mut losses = Vec::new();
//! for _ in 0..10 {
//!     program.run()?;
//!     losses.push(program.output("loss")?.to_real::<f64>()[0]);
//! }
//! assert!(losses[9] < losses[0]);
//! # Ok::<(), residuum::Error>(())
//! ```
//!
//! # A single op
//!
//! An [`Operator`](ops::Operator) returns its kernel launches on the caller's memory and stream:
//! `examples/04_one_kernel.rs` runs them on a GPU or the simulator. An op also runs alone on the CPU, in the library's
//! layouts (NHWC, weights KRSC):
//!
//! ```
//! use residuum::ops::linear::{Fwd, Linear, Spec};
//! use residuum::ops::{HostIo, HostMut, HostOp, HostRef};
//!
//! // y[n,k] = bias[k] + sum_f x[n,f] w[k,f]
//! let op = Linear::new(Spec { x: [2, 1, 1, 3], k: 1 })?.fwd(true);
//! let (x, w, bias, mut y) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, -1.0], [10.0], [f64::NAN; 2]);
//! let (x, w, bias) = (HostRef::Real(&x), HostRef::Real(&w), Some(HostRef::Real(&bias)));
//! op.reference(&mut HostIo::of(Fwd { x, w, bias, y: HostMut::Real(&mut y) }));
//! assert_eq!(y, [8.0, 8.0]);
//! # Ok::<(), residuum::Error>(())
//! ```
//!
//! # Modules
//!
//! Each uses only earlier ones: [`files`], [`tensor`], [`device`] (with the debug switches), [`ops`], [`control`],
//! [`graph`], [`models`], [`data`], [`train`].

pub mod control;
pub mod data;
pub mod device;
mod error;
pub mod files;
pub mod graph;
pub mod models;
pub mod ops;
pub mod tensor;
pub mod train;

#[cfg(feature = "cuda")]
pub use cudarc;
pub use error::{Error, Result};
pub use half;

/// Every kernel that launch code can use.
#[doc(hidden)]
pub fn kernels() -> impl Iterator<Item = &'static device::Kernel> {
    ops::kernels().chain(control::kernels())
}

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
