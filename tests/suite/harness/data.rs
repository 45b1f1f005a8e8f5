//! Tensors on the host, and their bytes as a kernel sees them.

use residuum::ops::{HostMut, HostRef};
use residuum::tensor::{DType, Elem, TensorType};

/// One tensor on the host. Numbers are rounded to their storage type before anything reads them.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Activations, weights, statistics.
    Real(Vec<f64>),
    /// Labels.
    Index(Vec<i32>),
    /// Window positions.
    Byte(Vec<u8>),
}

impl Data {
    /// The numbers; panics if it holds none.
    pub fn real(&self) -> &[f64] {
        match self {
            Self::Real(v) => v,
            _ => panic!("a tensor of numbers is expected here"),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Real(v) => v.len(),
            Self::Index(v) => v.len(),
            Self::Byte(v) => v.len(),
        }
    }
}

pub(super) fn blank(ty: &TensorType, fill: f64) -> Data {
    match ty.elem {
        Elem::Real | Elem::Stat => Data::Real(vec![fill; ty.shape.len()]),
        Elem::Index => Data::Index(vec![i32::MIN; ty.shape.len()]),
        Elem::Byte => Data::Byte(vec![0xFF; ty.shape.len()]),
    }
}

pub(super) fn host_ref(data: &Data) -> HostRef<'_, f64> {
    match data {
        Data::Real(v) => HostRef::Real(v),
        Data::Index(v) => HostRef::Index(v),
        Data::Byte(v) => HostRef::Byte(v),
    }
}

pub(super) fn host_mut(data: &mut Data) -> HostMut<'_, f64> {
    match data {
        Data::Real(v) => HostMut::Real(v),
        Data::Index(v) => HostMut::Index(v),
        Data::Byte(v) => HostMut::Byte(v),
    }
}

pub(super) fn stored_as(elem: Elem, dtype: DType) -> DType {
    match elem {
        Elem::Real => dtype,
        _ => DType::F32,
    }
}

pub fn round_all(data: &[Data], types: &[TensorType], dtype: DType) -> Vec<Data> {
    assert_eq!(data.len(), types.len(), "tensors of a case");
    data.iter()
        .zip(types)
        .map(|(d, ty)| {
            assert_eq!(d.len(), ty.shape.len(), "elements of a tensor of shape {}", ty.shape);
            match d {
                Data::Real(v) => {
                    let stored = stored_as(ty.elem, dtype);
                    Data::Real(v.iter().map(|&a| stored.round(a)).collect())
                }
                other => other.clone(),
            }
        })
        .collect()
}

pub fn encode(data: &Data, elem: Elem, dtype: DType) -> Vec<u8> {
    match data {
        Data::Real(v) => match stored_as(elem, dtype) {
            DType::F32 => v.iter().flat_map(|&a| (a as f32).to_le_bytes()).collect(),
            DType::F16 => v.iter().flat_map(|&a| residuum::half::f16::from_f64(a).to_le_bytes()).collect(),
            DType::BF16 => v.iter().flat_map(|&a| residuum::half::bf16::from_f64(a).to_le_bytes()).collect(),
            DType::F64 => v.iter().flat_map(|&a| a.to_le_bytes()).collect(),
        },
        Data::Index(v) => v.iter().flat_map(|&a| a.to_le_bytes()).collect(),
        Data::Byte(v) => v.clone(),
    }
}

pub fn decode(bytes: &[u8], elem: Elem, dtype: DType) -> Data {
    let two = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    let four = |b: &[u8]| [b[0], b[1], b[2], b[3]];
    match (elem, stored_as(elem, dtype)) {
        (Elem::Index, _) => Data::Index(bytes.chunks_exact(4).map(|b| i32::from_le_bytes(four(b))).collect()),
        (Elem::Byte, _) => Data::Byte(bytes.to_vec()),
        (_, DType::F32) => Data::Real(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(four(b)).into()).collect()),
        (_, DType::F16) => {
            Data::Real(bytes.chunks_exact(2).map(|b| residuum::half::f16::from_bits(two(b)).to_f64()).collect())
        }
        (_, DType::BF16) => {
            Data::Real(bytes.chunks_exact(2).map(|b| residuum::half::bf16::from_bits(two(b)).to_f64()).collect())
        }
        (_, DType::F64) => panic!("kernels have no f64"),
    }
}
