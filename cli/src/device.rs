//! What `--device` and `--dtype` say.

use residuum::device::Device;
use residuum::tensor::DType;

use crate::failure::Failure;

/// Where to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The best that works here.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU.
    Cuda,
    /// The simulator of a GPU.
    Sim,
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            "sim" => Ok(Self::Sim),
            _ => Err("expected auto, cpu, cuda or sim".into()),
        }
    }
}

impl Choice {
    /// Opens the device.
    pub fn open(self) -> Result<Device, Failure> {
        match self {
            Self::Auto | Self::Cpu => Ok(Device::cpu()),
            Self::Cuda | Self::Sim => Err(Failure::Work("this build has the cpu device only".into())),
        }
    }
}

/// A storage type that networks are trained in.
pub fn training_dtype(text: &str) -> Result<DType, String> {
    match text.parse() {
        Ok(dtype) if dtype != DType::F64 => Ok(dtype),
        _ => Err("expected f32, f16 or bf16".into()),
    }
}

/// Any storage type.
pub fn dtype(text: &str) -> Result<DType, String> {
    text.parse().map_err(|_| "expected f32, f64, f16 or bf16".into())
}
