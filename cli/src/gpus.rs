//! The GPUs of `residuum plan`: the library's and a user's.

use std::path::Path;

use residuum::device::{Arch, Gpu};
use serde_json::Value;

use crate::failure::Failure;
use crate::text;

/// The GPU called `name`, or the first; the file's GPUs come before the library's.
pub fn choose(name: Option<&str>, file: Option<&Path>) -> Result<Gpu, Failure> {
    let mut gpus = file.map(read).transpose()?.unwrap_or_default();
    gpus.extend(Gpu::known());
    let wanted = |gpu: &Gpu| name.is_none_or(|name| gpu.name.eq_ignore_ascii_case(name));
    gpus.iter().find(|gpu| wanted(gpu)).cloned().ok_or_else(|| {
        let names: Vec<_> = gpus.iter().map(|gpu| gpu.name.as_str()).collect();
        let cause = format!("--gpu: unknown GPU `{}`; known are {}", name.unwrap_or_default(), names.join(", "));
        Failure::Arguments(format!("{cause}; --gpus FILE adds others"))
    })
}

/// The GPU and its figures as a line.
pub fn line(gpu: &Gpu) -> String {
    let tera = |v: f64| v / 1e12;
    format!(
        "{}: {:.2} TB/s, TFLOP/s {:.0} in bf16, {:.0} in f16, {:.0} in f32 ({})",
        gpu.name,
        tera(gpu.bytes_per_second),
        tera(gpu.bf16_flops_per_second),
        tera(gpu.f16_flops_per_second),
        tera(gpu.f32_flops_per_second),
        gpu.source
    )
}

fn read(path: &Path) -> Result<Vec<Gpu>, Failure> {
    let wrong = |cause: String| Failure::Work(format!("{}: {cause}", path.display()));
    let value: Value = serde_json::from_str(&text::read(path)?).map_err(|e| wrong(e.to_string()))?;
    let rows = value.as_array().ok_or_else(|| wrong("expected a JSON array of GPUs".into()))?;
    rows.iter().enumerate().map(|(i, row)| parse(row).map_err(|e| wrong(format!("GPU {i}: {e}")))).collect()
}

fn parse(row: &Value) -> Result<Gpu, String> {
    let text = |key: &str| row[key].as_str().map(String::from).ok_or_else(|| format!("`{key}`, expected a text"));
    let speed = |value: &Value, key: &str| {
        value.as_f64().filter(|&v| v > 0.0).ok_or_else(|| format!("`{key}`, expected a number above 0"))
    };
    let flops = |dtype: &str| speed(&row["flops_per_second"][dtype], &format!("flops_per_second.{dtype}"));
    let arch = row["arch"].as_str().unwrap_or_default().parse::<Arch>().map_err(|cause| format!("`arch`, {cause}"))?;
    Ok(Gpu {
        name: text("name")?,
        arch,
        bytes_per_second: speed(&row["bytes_per_second"], "bytes_per_second")?,
        f32_flops_per_second: flops("f32")?,
        f16_flops_per_second: flops("f16")?,
        bf16_flops_per_second: flops("bf16")?,
        source: text("source").unwrap_or_else(|_| "a user's figures".into()),
    })
}
