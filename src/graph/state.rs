//! Conversion between torch's names and layouts and the library's layouts.

use std::collections::{BTreeMap, BTreeSet};

use super::{Graph, ValueId};
use crate::tensor::{layout, memory, Elem, HostData, HostTensor, Shape, StateDict, TensorType};
use crate::{Error, Result};

/// Findings in a state dict that do not prevent its use. [`Graph::check_state`] has an example.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateReport {
    /// Tensors that hold a NaN or an infinity, each with the index of the first one. They are loaded unchanged.
    pub non_finite: Vec<(String, usize)>,
}

/// The suffix of torch's step counters, one for each batch norm.
const COUNTER: &str = "num_batches_tracked";

impl Graph {
    /// Checks that `state` holds exactly the graph's parameters and buffers in torch's shapes (OIHW, `[out, in]`).
    /// `num_batches_tracked` may be absent, as in old files, or of any type and of shape `[]` or `[1]`. Fails on the
    /// first missing, surplus or wrongly shaped tensor and names it.
    ///
    /// ```
    /// use residuum::graph::{Builder, Mode};
    /// use residuum::tensor::{HostTensor, StateDict};
    ///
    /// let mut b = Builder::new(Mode::Infer);
    /// let x = b.input("input", [1, 1, 1, 2]);
    /// b.linear("fc", x, 1)?;
    /// let weight = ("fc.weight".into(), HostTensor::f32([1, 2], vec![1.0, f32::NAN]));
    /// let state = StateDict::from([weight, ("fc.bias".into(), HostTensor::f32([1], vec![0.0]))]);
    /// assert_eq!(b.finish().check_state(&state)?.non_finite, [("fc.weight".into(), 1)]);
    /// # Ok::<(), residuum::Error>(())
    /// ```
    pub fn check_state(&self, state: &StateDict) -> Result<StateReport> {
        let wanted: BTreeMap<&str, &Shape> = self.tensors().map(|(name, shape, _)| (name, shape)).collect();
        for (&name, &shape) in &wanted {
            let what = format!("tensor `{name}`");
            let missing = || Error::invalid(&what, format!("missing, expected shape {shape}"));
            let tensor = state.get(name).ok_or_else(missing)?;
            let floating = !matches!(tensor.data, HostData::I64(_));
            Error::check(floating, &what, || "integers, expected floating-point numbers".into())?;
            tensor.check(&what)?;
            check_shape(what, shape.clone(), &tensor.shape)?;
        }
        let counters: BTreeSet<_> = self.counters().collect();
        for (name, tensor) in state.iter().filter(|(name, _)| !wanted.contains_key(name.as_str())) {
            let what = format!("tensor `{name}`");
            Error::check(counters.contains(name), &what, || {
                format!("not a tensor of this network, which has {}", wanted.len())
            })?;
            if tensor.len() != 1 {
                return Err(Error::Shape { what, expected: Shape::default(), found: tensor.shape.clone() });
            }
        }
        let bad = state.iter().filter_map(|(name, t)| Some((name.clone(), t.first_non_finite()?)));
        Ok(StateReport { non_finite: bad.collect() })
    }

    /// The input `name` and its contents from `tensor`, in the library's layout.
    pub(super) fn check_input(&self, name: &str, tensor: &HostTensor) -> Result<(ValueId, HostData)> {
        let value = find(&self.inputs, "input", name)?;
        let (ty, what) = (self.ty(value), format!("input `{name}`"));
        Error::check(ty.elem == Elem::Real, &what, || "it takes labels, which set_labels sets".into())?;
        tensor.check(&what)?;
        check_shape(what, torch_shape(ty), &tensor.shape)?;
        Ok((value, to_library(tensor, ty)?))
    }

    /// The input `labels`. Fails unless there is a label for each image.
    pub(super) fn check_labels(&self, labels: &[i32]) -> Result<ValueId> {
        let value = find(&self.inputs, "input", "labels")?;
        check_shape("labels".into(), self.ty(value).shape.clone(), &[labels.len()].into())?;
        Ok(value)
    }

    /// The name, the shape in torch's layout and the value of each parameter and buffer.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, &Shape, ValueId)> {
        let parameters = self.parameters.iter().map(|p| (p.name.as_str(), &p.shape, p.value));
        parameters.chain(self.buffers.iter().map(|b| (b.name.as_str(), &b.shape, b.value)))
    }

    /// The names of the step counters, one for each batch norm.
    pub(super) fn counters(&self) -> impl Iterator<Item = String> + '_ {
        let means = self.buffers.iter().filter_map(|b| b.name.strip_suffix("running_mean"));
        means.map(|prefix| format!("{prefix}{COUNTER}"))
    }
}

/// The input or output called `name`.
pub(super) fn find(named: &[(String, ValueId)], kind: &'static str, name: &str) -> Result<ValueId> {
    named.iter().find(|(n, _)| n == name).map(|&(_, v)| v).ok_or_else(|| Error::Unknown {
        kind,
        name: name.into(),
        nearest: named.iter().map(|(n, _)| n.clone()).collect(),
    })
}

/// Fails if `found` is not the shape `expected`.
pub(super) fn check_shape(what: String, expected: Shape, found: &Shape) -> Result<()> {
    match expected == *found {
        true => Ok(()),
        false => Err(Error::Shape { what, expected, found: found.clone() }),
    }
}

/// The step counter in `state`. All batch norms of a network run together, so their counters are equal.
pub(super) fn counter(state: &StateDict) -> i64 {
    let counters = state.iter().filter(|(name, _)| name.ends_with(COUNTER));
    let first = |tensor: &HostTensor| match &tensor.data {
        HostData::I64(v) => v.first().copied(),
        HostData::F32(v) => v.first().map(|&v| v as i64),
        HostData::F64(v) => v.first().map(|&v| v as i64),
    };
    counters.filter_map(|(_, tensor)| first(tensor)).max().unwrap_or(0)
}

/// The elements of `tensor` in the library's layout; `ty` is the value's type.
pub(super) fn to_library(tensor: &HostTensor, ty: &TensorType) -> Result<HostData> {
    let Some([n, h, w, c]) = spatial(ty) else { return tensor.data.copy() };
    Ok(match &tensor.data {
        HostData::F32(v) => HostData::F32(layout::nchw_to_nhwc(v, n, c, h, w)?),
        HostData::F64(v) => HostData::F64(layout::nchw_to_nhwc(v, n, c, h, w)?),
        HostData::I64(v) => HostData::I64(layout::nchw_to_nhwc(v, n, c, h, w)?),
    })
}

/// Pads each pixel from `from` to `to` channels with zeros.
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

/// A value of type `ty` as a tensor of shape `shape` in torch's layout.
pub(super) fn to_torch(data: HostData, ty: &TensorType, shape: &Shape) -> Result<HostTensor> {
    let data = match (spatial(ty), data) {
        (None, data) => data,
        (Some([n, h, w, c]), HostData::F32(v)) => HostData::F32(layout::nhwc_to_nchw(&v, n, h, w, c)?),
        (Some([n, h, w, c]), HostData::F64(v)) => HostData::F64(layout::nhwc_to_nchw(&v, n, h, w, c)?),
        (Some([n, h, w, c]), HostData::I64(v)) => HostData::I64(layout::nhwc_to_nchw(&v, n, h, w, c)?),
    };
    Ok(HostTensor { shape: shape.clone(), data })
}

/// The shape of a value of type `ty` in torch's layout: NCHW for images.
pub(super) fn torch_shape(ty: &TensorType) -> Shape {
    match *ty.shape.dims() {
        [n, h, w, c] => [n, c, h, w].into(),
        ref dims => dims.into(),
    }
}

/// The extents of a rank-4 tensor if its element order differs from torch's.
fn spatial(ty: &TensorType) -> Option<[usize; 4]> {
    match *ty.shape.dims() {
        [n, h, w, c] if h * w > 1 && c > 1 => Some([n, h, w, c]),
        _ => None,
    }
}
