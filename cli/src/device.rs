//! The values of `--device` and `--dtype`.

use residuum::device::Device;
use residuum::tensor::DType;

use crate::failure::Failure;

/// The name of a device, as [`Device::parse`] takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice(String);

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = |n: &str| n.parse::<usize>().is_ok();
        match text {
            "auto" | "cpu" | "cuda" | "sim" => Ok(Self(text.into())),
            _ if text.strip_prefix("cuda:").is_some_and(ordinal) => Ok(Self(text.into())),
            _ => Err("expected auto, cpu, cuda, cuda:N or sim".into()),
        }
    }
}

impl Choice {
    /// Opens the device. Fails if there is none of that kind.
    pub fn open(&self) -> Result<Device, Failure> {
        Ok(Device::parse(&self.0)?)
    }
}

/// Parses a storage type of training.
pub fn training_dtype(text: &str) -> Result<DType, String> {
    match text.parse() {
        Ok(dtype) if dtype != DType::F64 => Ok(dtype),
        _ => Err("expected f32, f16 or bf16".into()),
    }
}

/// Parses any storage type.
pub fn dtype(text: &str) -> Result<DType, String> {
    text.parse().map_err(|_| "expected f32, f64, f16 or bf16".into())
}
