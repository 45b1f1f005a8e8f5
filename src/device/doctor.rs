//! An inventory of this machine and this build, with a remedy for each missing part: `residuum doctor`.
//!
//! ```
//! for finding in residuum::device::doctor::report() {
//!     println!("{finding}");
//! }
//! ```

use std::fmt;

use super::{cpu, Device};

/// The outcome of a search. See the [module](self) for an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was found and works.
    Good,
    /// It is missing or does not work. The rest of the library runs without it.
    Missing,
}

/// One part that [`report`] looks for, and the outcome. See the [module](self) for an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name: `driver`, `device`, `kernels`, `simulator`, ...
    pub topic: &'static str,
    /// Found or missing.
    pub state: State,
    /// The details, in one line.
    pub text: String,
    /// The way to get it, if it is missing.
    pub remedy: Option<String>,
}

impl Finding {
    fn good(topic: &'static str, text: impl Into<String>) -> Self {
        Self { topic, state: State::Good, text: text.into(), remedy: None }
    }

    fn missing(topic: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { topic, state: State::Missing, text: text.into(), remedy: Some(remedy.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.state {
            State::Good => "ok",
            State::Missing => "--",
        };
        write!(f, "{mark} {:<10} {}", self.topic, self.text)?;
        self.remedy.iter().try_for_each(|remedy| write!(f, "\n   {:<10} to get it: {remedy}", ""))
    }
}

/// Looks for everything that the library can use. Never fails and fetches nothing.
pub fn report() -> Vec<Finding> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let products = if cpu::has_fast_products() { "" } else { ", matrix products in plain loops" };
    let mut findings = vec![
        Finding::good("library", format!("residuum {}", env!("CARGO_PKG_VERSION"))),
        Finding::good("cpu", format!("{threads} threads, {}{products}", std::env::consts::ARCH)),
    ];
    findings.extend(cuda());
    findings.push(simulator());
    let text = match Device::best() {
        Device::Cpu => "`auto` is cpu".into(),
        Device::Kernels(best) => format!("`auto` is {}, {}", best.kind(), best.name()),
    };
    findings.push(Finding::good("auto", text));
    findings
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Vec<Finding> {
    vec![Finding::missing("cuda", "this build leaves the CUDA device out", "build with the feature `cuda`")]
}

#[cfg(feature = "cuda")]
fn cuda() -> Vec<Finding> {
    let mut findings = vec![kernels()];
    let driver = match super::cuda::Driver::find() {
        Ok(driver) => driver,
        Err(problem) => {
            let remedy = "install NVIDIA's driver for the GPU; without a GPU, use `cpu` or `sim`";
            findings.push(Finding::missing("driver", problem, remedy));
            return findings;
        }
    };
    findings.push(Finding::good("driver", format!("for CUDA {}", driver.version_text())));
    match driver.gpus() {
        Ok(gpus) if gpus.is_empty() => {
            let remedy = "check CUDA_VISIBLE_DEVICES and the machine";
            findings.push(Finding::missing("device", "the driver shows no GPU", remedy));
        }
        Ok(gpus) => findings.extend(gpus.iter().flat_map(|gpu| [Some(device(gpu)), gates(gpu)]).flatten()),
        Err(problem) => findings.push(Finding::missing("device", problem, "check the driver's installation")),
    }
    findings
}

/// A GPU, and whether it can run programs.
#[cfg(feature = "cuda")]
fn device(gpu: &super::cuda::GpuInfo) -> Finding {
    let super::cuda::GpuInfo { ordinal, name, capability: (major, minor), memory_bytes } = gpu;
    let gib = *memory_bytes as f64 / (1u64 << 30) as f64;
    let text = format!("cuda:{ordinal} {name}, compute capability {major}.{minor}, {gib:.1} GiB");
    let remedy = super::embedded::TOOLKIT.map_or(super::embedded::REMEDY, |_| "see the reason, or use `cpu` or `sim`");
    match Device::cuda(*ordinal) {
        Ok(_) => Finding::good("device", text),
        Err(error) => Finding::missing("device", format!("{text}: {error}"), remedy),
    }
}

/// How a GPU that can run programs skips the closed blocks of stochastic depth.
#[cfg(feature = "cuda")]
fn gates(gpu: &super::cuda::GpuInfo) -> Option<Finding> {
    let how = super::cuda::skipping(gpu.ordinal).ok()?;
    Some(Finding::good("gates", format!("cuda:{} {how}", gpu.ordinal)))
}

#[cfg(feature = "cuda")]
fn kernels() -> Finding {
    use super::embedded::{ENTRIES, FATBINS, REMEDY, TARGETS, TOOLKIT};
    match TOOLKIT {
        None => Finding::missing("kernels", "no nvcc was found when this was built", REMEDY),
        Some(release) => {
            let bytes: usize = FATBINS.iter().map(|(_, image)| image.len()).sum();
            let (count, targets, mib) = (ENTRIES.len(), TARGETS.join(", "), bytes as f64 / (1u64 << 20) as f64);
            Finding::good("kernels", format!("{count} kernels for {targets}, {mib:.1} MiB, made by nvcc {release}"))
        }
    }
}

fn simulator() -> Finding {
    if cfg!(feature = "sim") {
        Finding::good("simulator", "runs the kernels on the CPU, to test them")
    } else {
        Finding::missing("simulator", "this build leaves it out", "build with the feature `sim` and a C++ compiler")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_report_names_every_topic_and_a_remedy_for_each_missing_part() {
        let findings = super::report();
        for topic in ["library", "cpu", "simulator", "auto"] {
            assert!(findings.iter().any(|f| f.topic == topic), "{topic} in {findings:?}");
        }
        for finding in &findings {
            assert_eq!(finding.state == super::State::Missing, finding.remedy.is_some(), "{finding}");
            assert!(!finding.text.is_empty());
        }
    }
}
