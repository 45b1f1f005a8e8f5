//! The CPU path of every op against the reference: in f64 and f32, overwriting and accumulating, with the same bits on
//! any number of threads.

mod checks;
mod random;

use residuum::ops::{HostIo, HostMut, HostRef, Op, Write};
use residuum::tensor::{DType, Elem, Real};

use crate::harness::{reference, Data, Random};

/// An op, its inputs and the old content of the outputs that it updates.
struct Case {
    name: String,
    op: Op,
    inputs: Vec<Data>,
    updates: Vec<Data>,
}

/// A number with its storage type.
pub trait Number: Real {
    /// The storage type.
    const DTYPE: DType;
    /// The bits of the number.
    fn bits(self) -> u64;
}

impl Number for f32 {
    const DTYPE: DType = DType::F32;
    fn bits(self) -> u64 {
        self.to_bits().into()
    }
}

impl Number for f64 {
    const DTYPE: DType = DType::F64;
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

/// A tensor of `T`s, indices or bytes.
#[derive(Clone, Debug)]
enum Tensor<T> {
    Real(Vec<T>),
    Index(Vec<i32>),
    Byte(Vec<u8>),
}

impl<T: Number> Tensor<T> {
    fn new(data: &Data) -> Self {
        match data {
            Data::Real(v) => Self::Real(v.iter().map(|&a| T::from_f64(a)).collect()),
            Data::Index(v) => Self::Index(v.clone()),
            Data::Byte(v) => Self::Byte(v.clone()),
        }
    }

    fn data(&self) -> Data {
        match self {
            Self::Real(v) => Data::Real(v.iter().map(|a| a.to_f64()).collect()),
            Self::Index(v) => Data::Index(v.clone()),
            Self::Byte(v) => Data::Byte(v.clone()),
        }
    }

    fn bits(&self) -> Vec<u64> {
        match self {
            Self::Real(v) => v.iter().map(|a| a.bits()).collect(),
            Self::Index(v) => v.iter().map(|&a| a as u64).collect(),
            Self::Byte(v) => v.iter().map(|&a| a.into()).collect(),
        }
    }
}

/// The old content of an accumulated output: small whole numbers.
fn old(case: &Case, output: usize, len: usize) -> Vec<f64> {
    Random::new(&format!("{} {output}", case.name)).integers(len, -4, 4)
}

/// Runs `host` on poisoned outputs and scratch memory.
fn host<T: Number>(case: &Case, write: Write) -> Vec<Tensor<T>> {
    let op = case.op.operator();
    let nan = T::from_f64(f64::NAN);
    let inputs: Vec<Tensor<T>> = case.inputs.iter().map(Tensor::new).collect();
    let mut outputs: Vec<Tensor<T>> = op
        .outputs()
        .iter()
        .map(|t| match t.elem {
            Elem::Real | Elem::Stat => Tensor::Real(vec![nan; t.shape.len()]),
            Elem::Index => Tensor::Index(vec![-1; t.shape.len()]),
            Elem::Byte => Tensor::Byte(vec![0xFF; t.shape.len()]),
        })
        .collect();
    let mut writes = vec![Write::Overwrite; outputs.len()];
    for (&i, data) in op.updates().iter().zip(&case.updates) {
        outputs[i] = Tensor::new(data);
    }
    if write == Write::Accumulate {
        for i in op.accumulates() {
            outputs[i] = Tensor::new(&Data::Real(old(case, i, op.outputs()[i].shape.len())));
            writes[i] = Write::Accumulate;
        }
    }
    let host = case.op.host::<T>();
    let mut scratch = vec![nan; host.host_scratch()];
    host.host(&mut HostIo {
        inputs: inputs
            .iter()
            .map(|t| match t {
                Tensor::Real(v) => HostRef::Real(v),
                Tensor::Index(v) => HostRef::Index(v),
                Tensor::Byte(v) => HostRef::Byte(v),
            })
            .collect(),
        outputs: outputs
            .iter_mut()
            .map(|t| match t {
                Tensor::Real(v) => HostMut::Real(v),
                Tensor::Index(v) => HostMut::Index(v),
                Tensor::Byte(v) => HostMut::Byte(v),
            })
            .collect(),
        writes,
        scratch: &mut scratch,
    });
    outputs
}

/// The outputs of the CPU path in `T`.
pub fn outputs<T: Number>(op: &Op, inputs: &[Data], updates: &[Data]) -> Vec<Data> {
    let case = Case { name: String::new(), op: op.clone(), inputs: inputs.into(), updates: updates.into() };
    host::<T>(&case, Write::Overwrite).iter().map(Tensor::data).collect()
}

/// The outputs of the reference, and of the CPU path in f32 and f64.
pub fn results(op: &Op, inputs: &[Data]) -> [Vec<Data>; 3] {
    [reference(op, inputs, &[]), outputs::<f32>(op, inputs, &[]), outputs::<f64>(op, inputs, &[])]
}

/// The case with its numbers rounded to `T`.
fn rounded<T: Number>(case: &Case) -> Case {
    let round = |data: &Vec<Data>| data.iter().map(|d| Tensor::<T>::new(d).data()).collect();
    Case { name: case.name.clone(), op: case.op.clone(), inputs: round(&case.inputs), updates: round(&case.updates) }
}

/// The allowed distance of the outputs from the reference in f64.
#[derive(Clone, Copy)]
enum Bound {
    /// None.
    Exact,
    /// For linear ops, each element: the rounding of the longest sum, times the element's sum of magnitudes.
    Linear,
    /// This number of roundings of the output's largest element.
    Relative(f64),
}

/// Compares in `T`; an error names the difference.
fn compare<T: Number>(case: &Case, bound: Bound, got: &[Tensor<T>], write: Write) -> Result<(), String> {
    let case = rounded::<T>(case);
    let expected = reference(&case.op, &case.inputs, &case.updates);
    let unit = T::DTYPE.epsilon() / 2.0;
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let (Data::Real(got), Data::Real(expected)) = (got.data(), expected) else {
            if got.data() != *expected {
                return Err(format!("{} output {i}", case.name));
            }
            continue;
        };
        let added = write == Write::Accumulate && case.op.operator().accumulates().contains(&i);
        let before = if added { old(&case, i, got.len()) } else { vec![0.0; got.len()] };
        let allowed: Vec<f64> = match bound {
            Bound::Exact => vec![0.0; got.len()],
            Bound::Linear => magnitudes(&case, i).iter().map(|m| (terms(&case.op) + 4.0) * unit * (m + 4.0)).collect(),
            Bound::Relative(n) => {
                let largest = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
                vec![n * unit * (largest + 4.0 * f64::from(added)); got.len()]
            }
        };
        for k in 0..got.len() {
            let want = expected[k] + before[k];
            let same = got[k] == want || (got[k] - want).abs() <= allowed[k] || (got[k].is_nan() && want.is_nan());
            if !same {
                let allowed = allowed[k];
                return Err(format!(
                    "{} {} {write:?}: output {i}[{k}] is {:e}, expected {want:e} within {allowed:e}",
                    case.name,
                    T::DTYPE,
                    got[k]
                ));
            }
        }
    }
    Ok(())
}

/// The sum of the magnitudes of each element's terms. For linear ops without ReLU.
fn magnitudes(case: &Case, output: usize) -> Vec<f64> {
    let absolute = |d: &Data| match d {
        Data::Real(v) => Data::Real(v.iter().map(|a| a.abs()).collect()),
        other => other.clone(),
    };
    let inputs: Vec<Data> = case.inputs.iter().map(absolute).collect();
    reference(&case.op, &inputs, &case.updates)[output].real().to_vec()
}

/// The number of terms of the longest sum in an output.
fn terms(op: &Op) -> f64 {
    let op = op.operator();
    let outputs: usize = op.outputs().iter().map(|t| t.shape.len()).min().unwrap_or(1);
    1.0 + op.flops() as f64 / outputs as f64
}

/// Checks a case in f64 and f32, written both ways, with the same bits on any number of threads.
fn check(case: &Case, bound: Bound) {
    check_in::<f64>(case, bound);
    check_in::<f32>(case, bound);
}

fn check_in<T: Number>(case: &Case, bound: Bound) {
    for write in [Write::Overwrite, Write::Accumulate] {
        if write == Write::Accumulate && case.op.operator().accumulates().is_empty() {
            continue;
        }
        let got = host::<T>(case, write);
        compare(case, bound, &got, write).unwrap_or_else(|e| panic!("{e}"));
        for threads in 1..=3 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            let other = pool.install(|| host::<T>(case, write));
            for (a, b) in got.iter().zip(&other) {
                assert!(a.bits() == b.bits(), "{} {}: other bits on {threads} threads", case.name, T::DTYPE);
            }
        }
    }
}

/// The negative control: the result must be refused if one element of `input` differs.
fn refuses(case: &Case, bound: Bound, input: usize) {
    let mut inputs = case.inputs.clone();
    let mut v = inputs[input].real().to_vec();
    let largest = (0..v.len()).max_by(|&a, &b| v[a].abs().total_cmp(&v[b].abs())).expect("an element");
    v[largest] = 0.0;
    inputs[input] = Data::Real(v);
    let other = Case { inputs, op: case.op.clone(), name: case.name.clone(), updates: case.updates.clone() };
    let write = Write::Overwrite;
    assert!(compare(case, bound, &host::<f64>(&other, write), write).is_err(), "{} in f64", case.name);
    assert!(compare(case, bound, &host::<f32>(&other, write), write).is_err(), "{} in f32", case.name);
}

fn case(name: &str, op: Op, fill: impl Fn(usize, usize) -> Vec<f64>) -> Case {
    let inputs = op.operator().inputs().iter().enumerate().map(|(i, t)| Data::Real(fill(i, t.shape.len()))).collect();
    Case { name: name.into(), op, inputs, updates: Vec::new() }
}

fn normals(name: &str, op: Op) -> Case {
    case(name, op, |i, len| Random::new(&format!("{name} {i}")).normals(len, 0.0, 1.0))
}

/// Whole numbers, small enough for exact sums in f32.
fn integers(name: &str, op: Op) -> Case {
    case(name, op, |i, len| Random::new(&format!("{name} {i}")).integers(len, -3, 3))
}
