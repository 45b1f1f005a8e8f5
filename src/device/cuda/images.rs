//! The kernels of a build, and the choice among them for a GPU and its driver.

use super::driver::{Driver, GpuInfo};
use crate::device::Arch;

/// The kernels to load, from `embedded` or a test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Images {
    /// Every entry point and its place in `fatbins`, sorted by name.
    pub entries: &'static [(&'static str, usize)],
    /// Names and contents: fatbins, or bytes that do not begin like a fatbin, which the driver refuses.
    pub fatbins: &'static [(&'static str, &'static [u8])],
    pub targets: &'static [&'static str],
    /// The release of nvcc that made them.
    pub toolkit: Option<&'static str>,
}

/// The part of an image that a GPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    Machine,
    Ptx,
}

/// The generation whose kernels a GPU runs, and their form: the newest machine code, else the newest PTX; `None` if no
/// target fits. Machine code runs on its own major version from its minor version on, `sm_NNa` on NN alone, PTX on
/// every version from its own on.
pub(super) fn arch_of((major, minor): (i32, i32), targets: &[&str]) -> Option<(Arch, Code)> {
    let capability = major * 10 + minor;
    let fit = |target: &&str| -> Option<(Arch, Code)> {
        let (kind, version) = target.split_once('_')?;
        let arch = Arch::ALL.into_iter().find(|arch| version.trim_end_matches('a') == (*arch as i32).to_string())?;
        let oldest = arch as i32;
        match (kind, version.ends_with('a')) {
            ("sm", true) => (oldest == capability).then_some((arch, Code::Machine)),
            ("sm", false) => (oldest / 10 == major && oldest <= capability).then_some((arch, Code::Machine)),
            _ => (oldest <= capability).then_some((arch, Code::Ptx)),
        }
    };
    targets.iter().filter_map(fit).max_by_key(|&(arch, code)| (code == Code::Machine, arch))
}

/// The oldest driver, counted as `Driver::version`, that loads kernels of nvcc release `nvcc` (`13.0.88`): one of its
/// major release for machine code (NVIDIA's minor version compatibility), one of its release for PTX, which the driver
/// compiles. 0 if `nvcc` is no release.
pub(super) fn oldest_driver(nvcc: &str, code: Code) -> i32 {
    let mut parts = nvcc.split('.').map(|part| part.parse::<i32>().unwrap_or(0));
    let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    1000 * major + if code == Code::Ptx { 10 * minor } else { 0 }
}

impl Images {
    /// For messages: the origin of the kernels, and the versions of `gpu` and `driver`.
    pub fn describe(&self, gpu: &GpuInfo, driver: &Driver) -> String {
        let (nvcc, targets) = (self.toolkit.unwrap_or("of an unknown release"), self.targets.join(", "));
        let ((major, minor), cuda) = (gpu.capability, driver.version_text());
        let device = format!("the device has compute capability {major}.{minor} and a driver for CUDA {cuda}");
        format!("the kernels were made by nvcc {nvcc} for {targets}, {device}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_takes_the_images_that_run_on_it() {
        let all = ["sm_80", "sm_90a", "compute_80"];
        for (capability, targets, expected) in [
            ((7, 5), &all[..], None),
            ((8, 0), &all[..], Some((Arch::Sm80, Code::Machine))),
            ((8, 6), &all[..1], Some((Arch::Sm80, Code::Machine))),
            ((8, 9), &all[..1], Some((Arch::Sm80, Code::Machine))),
            ((8, 9), &all[2..], Some((Arch::Sm80, Code::Ptx))),
            ((9, 0), &all[..], Some((Arch::Sm90, Code::Machine))),
            ((9, 0), &all[..1], None),
            ((9, 0), &all[2..], Some((Arch::Sm80, Code::Ptx))),
            ((10, 0), &all[..2], None),
            ((10, 0), &all[..], Some((Arch::Sm80, Code::Ptx))),
            ((12, 1), &all[2..], Some((Arch::Sm80, Code::Ptx))),
            ((9, 0), &all[..0], None),
        ] {
            assert_eq!(arch_of(capability, targets), expected, "{capability:?} {targets:?}");
        }
    }

    #[test]
    fn a_driver_loads_machine_code_of_its_major_release_and_ptx_of_its_own() {
        for (nvcc, code, oldest) in [
            ("12.8.93", Code::Machine, 12_000),
            ("12.8.93", Code::Ptx, 12_080),
            ("13.0.88", Code::Machine, 13_000),
            ("13.5", Code::Ptx, 13_050),
            ("of an unknown release", Code::Ptx, 0),
        ] {
            assert_eq!(oldest_driver(nvcc, code), oldest, "nvcc {nvcc}, {code:?}");
        }
    }
}
