//! State dicts: torch's names and layouts on one side, the library's layouts on the other.

use std::collections::{BTreeMap, BTreeSet};

use super::Graph;
use crate::tensor::{layout, memory, HostData, HostTensor, Shape, StateDict, TensorType};
use crate::{Error, Result};

/// What was noticed while a state dict was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateReport {
    /// Tensors that hold a NaN or an infinity, each with the index of the first; they are loaded as they are.
    pub non_finite: Vec<(String, usize)>,
}

/// The suffix of the step counters that torch keeps beside each batch norm's running statistics.
const COUNTER: &str = "num_batches_tracked";

impl Graph {
    /// Checks that `state` holds exactly the graph's parameters and buffers in torch's shapes. `num_batches_tracked`
    /// may be absent, as in old files, or of any type and of shape `[]` or `[1]`. Fails on the first missing, surplus
    /// or wrongly shaped tensor, naming it.
    pub fn check_state(&self, state: &StateDict) -> Result<StateReport> {
        let mut wanted: BTreeMap<&str, &Shape> = BTreeMap::new();
        wanted.extend(self.parameters.iter().map(|p| (p.name.as_str(), &p.shape)));
        wanted.extend(self.buffers.iter().map(|b| (b.name.as_str(), &b.shape)));
        for (&name, &shape) in &wanted {
            let Some(tensor) = state.get(name) else {
                return Err(Error::invalid(format!("tensor `{name}`"), format!("missing, expected shape {shape}")));
            };
            if matches!(tensor.data, HostData::I64(_)) {
                let problem = "integers, expected floating-point numbers";
                return Err(Error::invalid(format!("tensor `{name}`"), problem));
            }
            if tensor.shape != *shape {
                let (expected, found) = (shape.clone(), tensor.shape.clone());
                return Err(Error::Shape { what: format!("tensor `{name}`"), expected, found });
            }
        }
        let counters: BTreeSet<_> = self.counters().into_iter().collect();
        for (name, tensor) in state.iter().filter(|(name, _)| !wanted.contains_key(name.as_str())) {
            if !counters.contains(name) {
                let problem = format!("not a tensor of this network, which has {}", wanted.len());
                return Err(Error::invalid(format!("tensor `{name}`"), problem));
            }
            if tensor.len() != 1 {
                let (expected, found) = (Shape::default(), tensor.shape.clone());
                return Err(Error::Shape { what: format!("tensor `{name}`"), expected, found });
            }
        }
        let bad = state.iter().filter_map(|(name, t)| Some((name.clone(), t.first_non_finite()?)));
        Ok(StateReport { non_finite: bad.collect() })
    }

    /// The names of the step counters, one for each batch norm.
    pub(super) fn counters(&self) -> Vec<String> {
        let means = self.buffers.iter().filter_map(|b| b.name.strip_suffix("running_mean"));
        means.map(|prefix| format!("{prefix}{COUNTER}")).collect()
    }
}

/// The step counter in `state`: all batch norms of a network run together, so one number stands for all.
pub(super) fn counter(state: &StateDict) -> i64 {
    let counters = state.iter().filter(|(name, _)| name.ends_with(COUNTER));
    let first = |tensor: &HostTensor| match &tensor.data {
        HostData::I64(v) => v.first().copied(),
        HostData::F32(v) => v.first().map(|&v| v as i64),
        HostData::F64(v) => v.first().map(|&v| v as i64),
    };
    counters.filter_map(|(_, tensor)| first(tensor)).max().unwrap_or(0)
}

/// The elements of torch's `tensor` in the order of the library's `ty`.
pub(super) fn to_library(tensor: &HostTensor, ty: &TensorType) -> Result<HostData> {
    let Some(dims) = spatial(ty) else { return tensor.data.copy() };
    let [n, h, w, c] = dims;
    Ok(match &tensor.data {
        HostData::F32(v) => HostData::F32(layout::nchw_to_nhwc(v, n, c, h, w)?),
        HostData::F64(v) => HostData::F64(layout::nchw_to_nhwc(v, n, c, h, w)?),
        HostData::I64(v) => HostData::I64(layout::nchw_to_nhwc(v, n, c, h, w)?),
    })
}

/// Pixels of `from` channels with zeros behind them, up to `to`.
pub(super) fn pad_channels(data: &HostData, from: usize, to: usize) -> Result<HostData> {
    fn pad<T: Copy + Default>(v: &[T], from: usize, to: usize) -> Result<Vec<T>> {
        let mut padded = memory::filled("a padded input", T::default(), v.len() / from * to)?;
        for (pixel, place) in v.chunks_exact(from).zip(padded.chunks_exact_mut(to)) {
            place[..from].copy_from_slice(pixel);
        }
        Ok(padded)
    }
    Ok(match data {
        HostData::F32(v) => HostData::F32(pad(v, from, to)?),
        HostData::F64(v) => HostData::F64(pad(v, from, to)?),
        HostData::I64(v) => HostData::I64(pad(v, from, to)?),
    })
}

/// A value of the library's `ty` as a tensor of torch's `shape`.
pub(super) fn to_torch(data: HostData, ty: &TensorType, shape: &Shape) -> Result<HostTensor> {
    let data = match (spatial(ty), data) {
        (None, data) => data,
        (Some([n, h, w, c]), HostData::F32(v)) => HostData::F32(layout::nhwc_to_nchw(&v, n, h, w, c)?),
        (Some([n, h, w, c]), HostData::F64(v)) => HostData::F64(layout::nhwc_to_nchw(&v, n, h, w, c)?),
        (Some([n, h, w, c]), HostData::I64(v)) => HostData::I64(layout::nhwc_to_nchw(&v, n, h, w, c)?),
    };
    Ok(HostTensor { shape: shape.clone(), data })
}

/// The shape that torch gives a value of the library's type `ty`: NCHW for images.
pub(super) fn torch_shape(ty: &TensorType) -> Shape {
    match *ty.shape.dims() {
        [n, h, w, c] => [n, c, h, w].into(),
        ref dims => dims.into(),
    }
}

/// The extents of a rank-4 tensor whose layout differs from torch's.
fn spatial(ty: &TensorType) -> Option<[usize; 4]> {
    match *ty.shape.dims() {
        [n, h, w, c] if h * w > 1 && c > 1 => Some([n, h, w, c]),
        _ => None,
    }
}
