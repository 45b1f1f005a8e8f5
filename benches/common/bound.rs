//! Ops bound to memory on the CPU.

use std::hint::black_box;

use residuum::ops::{HostIo, HostMut, HostRef, Op, Write};
use residuum::tensor::{Elem, TensorType};

/// A tensor of an op.
enum Tensor {
    Real(Vec<f32>),
    Index(Vec<i32>),
    Byte(Vec<u8>),
}

impl Tensor {
    /// Numbers between 1/2 and 1 (no zeros, no denormals), labels and positions of 0.
    fn new(ty: &TensorType) -> Self {
        let len = ty.shape.len();
        match ty.elem {
            Elem::Real | Elem::Stat => Self::Real((0..len).map(|i| 0.5 + (i * 7 % 64) as f32 / 128.0).collect()),
            Elem::Index => Self::Index(vec![0; len]),
            Elem::Byte => Self::Byte(vec![0; len]),
        }
    }
}

/// An op with memory on the host.
pub struct Bound {
    op: Op,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    scratch: Vec<f32>,
}

impl Bound {
    /// Binds `op` to its own memory.
    pub fn new(op: Op) -> Self {
        let new = |types: Vec<TensorType>| types.iter().map(Tensor::new).collect::<Vec<_>>();
        let (inputs, outputs) = (new(op.operator().inputs()), new(op.operator().outputs()));
        let scratch = vec![0.0; op.host::<f32>().host_scratch()];
        Self { op, inputs, outputs, scratch }
    }

    /// Runs it once, in f32.
    pub fn run(&mut self) {
        let writes = vec![Write::Overwrite; self.outputs.len()];
        let inputs = self.inputs.iter().map(|t| match t {
            Tensor::Real(v) => HostRef::Real(v),
            Tensor::Index(v) => HostRef::Index(v),
            Tensor::Byte(v) => HostRef::Byte(v),
        });
        let outputs = self.outputs.iter_mut().map(|t| match t {
            Tensor::Real(v) => HostMut::Real(v),
            Tensor::Index(v) => HostMut::Index(v),
            Tensor::Byte(v) => HostMut::Byte(v),
        });
        self.op.host::<f32>().host(&mut HostIo {
            inputs: inputs.collect(),
            outputs: outputs.collect(),
            writes,
            scratch: &mut self.scratch,
        });
        black_box(&mut self.outputs);
    }
}
