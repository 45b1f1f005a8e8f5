//! Drivers and devices that do not start.

use super::*;

pub(super) const CASES: &[Case] = &[
    ("no_gpu", &[("MOCK_DEVICES", "0")], no_gpu),
    ("a_driver_that_does_not_start", &[("MOCK_INIT", "34")], || refuses(&["does not start: CUDA_ERROR_MOCK (34)"])),
    ("a_stub_of_the_driver", &[("MOCK_INIT", "34"), ("MOCK_TEXTS", "34")], stub),
    ("an_error_without_text", &[("MOCK_INIT", "803"), ("MOCK_TEXTS", "0")], || {
        refuses(&["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803): ", "different releases"])
    }),
    ("an_error_of_a_later_driver", &[("MOCK_INIT", "4711"), ("MOCK_TEXTS", "1")], || {
        refuses(&["does not start: CUDA error 4711: unknown to this driver and this library"])
    }),
    ("an_old_gpu", &[("MOCK_CAPABILITY", "75")], || {
        refuses(&["compute capability 7.5, the kernels are for sm_80, sm_90a, compute_80"])
    }),
    ("machine_code_of_a_newer_major_release", &[("MOCK_VERSION", "11080")], newer_kernels),
    ("ptx_of_a_newer_release", &[("MOCK_VERSION", "12010"), ("MOCK_CAPABILITY", "100")], newer_kernels),
    ("machine_code_of_a_newer_minor_release", &[("MOCK_VERSION", "12010")], || drop(backend().expect("a device"))),
];

/// There is no device, for a reason that contains all `parts`, and the report still comes.
fn refuses(parts: &[&str]) {
    let text = backend().expect_err("no device").to_string();
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    crate::device::doctor::report();
}

fn no_gpu() {
    let text = backend().expect_err("no device").to_string();
    assert_eq!(text, "cuda device: there is no device 0, the driver shows 0");
    let findings = crate::device::doctor::report();
    assert!(findings.iter().any(|f| f.topic == "device" && f.remedy.is_some()), "{findings:?}");
}

fn stub() {
    refuses(&["does not start: CUDA_ERROR_STUB_LIBRARY (34): ", "LD_LIBRARY_PATH"]);
    let report: Vec<String> = crate::device::doctor::report().iter().map(ToString::to_string).collect();
    assert!(report.iter().any(|line| line.contains("CUDA_ERROR_STUB_LIBRARY (34)")), "{report:?}");
}

fn newer_kernels() {
    refuses(&["cannot load kernels that nvcc 12.2.140 made for Mock 0: install a newer driver"]);
}

/// On a driver that is too old.
pub(super) const ON_OLD: Case = ("old_driver", &[], || refuses(&["too old (it has no cuGetErrorString)"]));
