//! Checks of a safetensors header that the format's reader lacks, and descriptions of its errors.

use std::collections::BTreeSet;
use std::fmt;

use safetensors::SafeTensorError;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::files::Format;

/// The longest header that the format allows.
const MOST_HEADER: u64 = 100_000_000;
/// The header's entry for metadata.
const METADATA: &str = "__metadata__";

/// The hints for saving a state dict or an array as safetensors.
const FROM_TORCH: &str = "save it again from Python with safetensors.torch.save_file({k: v.contiguous() for k, v in \
                          model.state_dict().items()}, \"model.safetensors\")";
const FROM_NUMPY: &str =
    "save it again from Python with safetensors.numpy.save_file({\"input\": array}, \"input.safetensors\")";

/// Why a file that begins with `head` is no safetensors file; `None` if it may be one.
pub fn refuse(head: &[u8]) -> Option<String> {
    let length = head.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    let opens = head.get(8).is_none_or(|first| *first == b'{' || first.is_ascii_whitespace());
    let plausible = length.is_some_and(|length| length <= MOST_HEADER) && opens;
    if plausible && head.len() > 8 {
        return None;
    }
    match Format::of(head) {
        Some(format) => {
            let way = match format {
                Format::TorchZip | Format::Pickle => FROM_TORCH,
                Format::Npy | Format::Npz => FROM_NUMPY,
                _ => format.unpack().unwrap_or("convert it to safetensors, with torchvision's names"),
            };
            Some(format!("{format}, not a safetensors file: {way}"))
        }
        None if plausible || length.is_none() => None,
        None => Some("not a safetensors file: it does not begin with the length of a header and the header".into()),
    }
}

/// The offset of the end of the header, as stated by `head`.
pub fn end(head: &[u8]) -> Option<u64> {
    let length = u64::from_le_bytes(*head.first_chunk::<8>()?);
    (length <= MOST_HEADER).then_some(length + 8)
}

/// The most surplus bytes with which a file is still read, for the format's reader to refuse it.
const SURPLUS: u64 = 1 << 30;

/// The problem of a file of `len` bytes that is far longer than its header `head` states: it may exceed memory.
pub fn wrong_length(head: &[u8], len: u64) -> Option<String> {
    let start = end(head).filter(|&start| start <= head.len() as u64)?;
    let described = end_of_data(&head[8..start as usize]).unwrap_or(0);
    let found = len.checked_sub(start)?;
    (found > SURPLUS.saturating_add(described as u64))
        .then(|| format!("{found} bytes of tensor data, the header describes {described}"))
}

/// The first duplicate name in the header of `bytes`. The format's reader accepts it, but refuses a missing header.
pub fn duplicate(bytes: &[u8]) -> Option<String> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    serde_json::from_slice::<Names<false>>(header).ok()?.0
}

/// The first duplicate key of the header or, with `INNER`, of its metadata.
struct Names<const INNER: bool>(Option<String>);

impl<'de, const INNER: bool> Deserialize<'de> for Names<INNER> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self(None))
    }
}

impl<'de, const INNER: bool> Visitor<'de> for Names<INNER> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut seen, mut twice) = (BTreeSet::new(), None);
        while let Some(key) = map.next_key::<String>()? {
            let within = match INNER || key != METADATA {
                true => map.next_value::<IgnoredAny>().map(|_| None)?,
                false => map.next_value::<Names<true>>()?.0,
            };
            let kind = if INNER { "metadata" } else { "tensor" };
            twice = twice.or(within).or_else(|| seen.contains(&key).then(|| format!("{kind} `{key}`")));
            seen.insert(key);
        }
        Ok(Self(twice))
    }

    /// `null`: no metadata.
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(self)
    }
}

/// The problem of a file that the format's reader refuses with `error`.
pub fn describe(bytes: &[u8], error: &SafeTensorError) -> String {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return format!("{} bytes, too short for a safetensors file", bytes.len());
    };
    let length = u64::from_le_bytes(*length);
    match error {
        SafeTensorError::InvalidHeaderLength | SafeTensorError::HeaderTooLarge => format!(
            "truncated or not a safetensors file: a header of {length} bytes is announced, {} bytes follow",
            rest.len()
        ),
        SafeTensorError::MetadataIncompleteBuffer => {
            let (header, data) = rest.split_at(rest.len().min(length as usize));
            let (found, end) = (data.len(), end_of_data(header));
            let truncated = if end.is_some_and(|end| found < end) { "truncated: " } else { "" };
            let end = end.map_or("another number".into(), |end| end.to_string());
            format!("{truncated}{found} bytes of tensor data, the header describes {end}")
        }
        _ => format!("not a safetensors file: {error}"),
    }
}

/// The largest end offset of a tensor in the header.
fn end_of_data(header: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(header).ok()?;
    let ends = text.split("\"data_offsets\"").skip(1).filter_map(|rest| {
        let (offsets, _) = rest.split_once(']')?;
        offsets.rsplit_once(',')?.1.trim().parse().ok()
    });
    ends.max()
}
