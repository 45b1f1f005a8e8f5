//! Norms and distances (l2) of tensors, without copies: a tensor may have a hundred million numbers.

use residuum::tensor::{HostData, HostTensor};

fn number(t: &HostTensor, i: usize) -> f64 {
    match &t.data {
        HostData::F32(v) => v[i].into(),
        HostData::F64(v) => v[i],
        HostData::I64(v) => v[i] as f64,
    }
}

pub fn norm(t: &HostTensor) -> f64 {
    (0..t.len()).map(|i| number(t, i).powi(2)).sum::<f64>().sqrt()
}

pub fn difference(a: &HostTensor, b: &HostTensor) -> f64 {
    assert_eq!(a.shape, b.shape);
    (0..b.len()).map(|i| (number(a, i) - number(b, i)).powi(2)).sum::<f64>().sqrt()
}

/// The difference relative to the norm of `b`.
pub fn distance(a: &HostTensor, b: &HostTensor) -> f64 {
    difference(a, b) / norm(b).max(f64::MIN_POSITIVE)
}
