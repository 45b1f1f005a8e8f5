//! Runs a single op in the caller's memory, as another trainer would use the kernels: on the GPU, or on the simulator
//! if there is none. `View::foreign(address, bytes)` takes a tensor of another library, `Device::cuda_on_stream` its
//! stream.
//!
//! `cargo run --release --features sim --example 04_one_kernel`

use residuum::device::sim::SimOptions;
use residuum::device::{Device, Target, View};
use residuum::ops::conv2d::{Conv2d, Fwd, Node, Pass, Spec};
use residuum::ops::store::Epilogue;
use residuum::ops::{Arg, Call, Io, Operator, Write};
use residuum::tensor::{DType, TensorType};

fn main() -> residuum::Result<()> {
    let backend = match (Device::best(), Device::sim(SimOptions::default())?) {
        (Device::Kernels(gpu), _) => gpu,
        (Device::Cpu, Device::Kernels(simulator)) => simulator,
        (Device::Cpu, Device::Cpu) => unreachable!("the simulator runs kernels"),
    };
    // Shapes are checked here, once: x is [N,H,W,C], w [K,R,S,C], y [N,P,Q,K].
    let conv = Conv2d::new(Spec {
        n: 1,
        h: 8,
        w: 8,
        c: 16,
        k: 32,
        kernel: [3, 3],
        stride: [2, 2],
        padding: [1, 1],
        dilation: [1, 1],
        groups: 1,
    })?;
    let target = Target { arch: backend.arch(), dtype: DType::F32 };

    let tensor = |ty: &TensorType, value: f32| -> residuum::Result<Arg> {
        let view = View::whole(backend.allocate(ty.bytes(target.dtype))?);
        view.write(&value.to_le_bytes().repeat(ty.shape.len()))?;
        let pixel_stride = ty.shape.dims().last().copied().unwrap_or(1);
        Ok(Arg { view, pixel_stride, write: Write::Overwrite })
    };
    let call = Fwd {
        x: tensor(&conv.x(), 1.0)?.into(),
        w: tensor(&TensorType::real(conv.w_shape()), 0.5)?,
        epilogue: Epilogue { relu: true, ..Epilogue::default() },
        y: tensor(&conv.y(), f32::NAN)?,
        moments: None,
        end: None,
    };
    let op = Node { conv, pass: Pass::Fwd(call.form()) };
    let y = call.y.view.clone();
    let (inputs, outputs) = call.into_lists();
    let scratch = match op.scratch_bytes(target) {
        0 => None,
        bytes => Some(View::whole(backend.allocate(bytes)?)),
    };
    let io = Io { inputs: &inputs, outputs: &outputs, scratch: scratch.as_ref() };
    for launch in op.launches(target, &io)? {
        backend.launch(&launch)?;
        println!("{} on a grid of {:?}: {:?}", launch.kernel().name, launch.grid(), launch.cost());
    }
    backend.synchronize()?;

    let y = y.read()?;
    let first = |pixel: usize| f32::from_le_bytes([0, 1, 2, 3].map(|i| y[pixel * 32 * 4 + i]));
    println!("y{}: corner {}, inside {}", conv.y().shape, first(0), first(5));
    Ok(())
}
