//! How far an output may be from the reference.

use residuum::tensor::DType;

use super::data::Data;

/// How an output is judged.
#[derive(Clone, Debug)]
pub enum Compare {
    /// Equal to the reference rounded to the storage type.
    Exact,
    /// At most this far from the reference, element by element, before it is stored; the harness adds the rounding to
    /// the storage type. See `bounds.rs`.
    Within(Vec<f64>),
}

/// The data that a bound may depend on.
pub struct Judged<'a> {
    /// The storage type.
    pub dtype: DType,
    /// The inputs, as the kernels see them.
    pub inputs: &'a [Data],
    /// The outputs of the reference.
    pub outputs: &'a [Data],
}

pub(super) fn compare(
    found: &Data,
    expected: &Data,
    added: Option<&[f64]>,
    rule: &Compare,
    stored: DType,
) -> Result<(), String> {
    let (Data::Real(found), Data::Real(expected)) = (found, expected) else {
        return if found == expected { Ok(()) } else { Err(format!("is {found:?}, expected {expected:?}")) };
    };
    assert_eq!(found.len(), expected.len(), "elements of an output");
    for (i, (&a, &b)) in found.iter().zip(expected).enumerate() {
        let sum = b + added.map_or(0.0, |v| v[i]);
        let slack = match rule {
            Compare::Exact => 0.0,
            Compare::Within(bound) => bound[i] + half_ulp(stored, sum.abs() + bound[i]) + added_slack(added, sum),
        };
        let want = if slack == 0.0 { stored.round(sum) } else { sum };
        let same = (a.is_nan() && want.is_nan()) || a == want || (a - want).abs() <= slack;
        if !same {
            return Err(format!("element {i} is {a:e}, expected {want:e} within {slack:e}"));
        }
    }
    Ok(())
}

/// The rounding of the f32 addition to the old content.
fn added_slack(added: Option<&[f64]>, sum: f64) -> f64 {
    added.map_or(0.0, |_| half_ulp(DType::F32, sum))
}

/// The largest error of rounding `v` to `dtype`.
fn half_ulp(dtype: DType, v: f64) -> f64 {
    let smallest = match dtype {
        DType::F16 => 2f64.powi(-25),
        DType::F32 | DType::BF16 => 2f64.powi(-134),
        DType::F64 => 0.0,
    };
    dtype.epsilon() / 2.0 * v.abs() + smallest
}
