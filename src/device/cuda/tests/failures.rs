//! Errors of a device that runs.

use super::*;

pub(super) const CASES: &[Case] = &[
    ("a_fault_is_reported_by_every_later_call", &[], fault),
    ("a_synchronous_device_names_the_launch", &[("RESIDUUM_SYNC", "1")], synchronous),
    ("running_out_of_memory_is_no_fault", &[], out_of_memory),
    ("limits_are_checked_before_the_launch", &[], limits),
    ("a_failure_of_any_call_is_an_error", &[], any_failure),
];

fn fault() {
    let device = backend().expect("a device");
    let view = View::whole(device.allocate(1024).expect("memory"));
    assert!(device.failure().is_none());
    device.launch(&launch(&FILL, &view, 1)).expect("a launch");
    device.launch(&launch(&TRAP, &view, 1)).expect("it fails later");
    let text = device.synchronize().expect_err("the trap").to_string();
    for part in [
        "cuda:0 Mock 0: waiting for the device",
        "mock_fill on 2x3x4 blocks of 128, mock_trap on 2x3x4",
        "CUDA_ERROR_ILLEGAL_ADDRESS (700)",
        "restart the process",
        "RESIDUUM_SYNC=1",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let again = [
        device.synchronize(),
        device.launch(&launch(&FILL, &view, 1)),
        view.write(&[0; 4]),
        view.read().map(|_| ()),
        device.allocate(64).map(|_| ()),
        Recording::new(device.clone(), vec![launch(&FILL, &view, 1)]).map(|_| ()),
        device.time(&mut || Ok(())).map(|_| ()),
    ];
    assert!(again.iter().all(|r| r.as_ref().is_err_and(|e| e.to_string() == text)), "{again:?}");
    assert_eq!(device.failure().map(|e| e.to_string()), Some(text));
}

fn synchronous() {
    let device = backend().expect("a device");
    let view = View::whole(device.allocate(1024).expect("memory"));
    device.launch(&launch(&FILL, &view, 1)).expect("a launch");
    let text = device.launch(&launch(&TRAP, &view, 1)).expect_err("the trap").to_string();
    assert!(text.contains("mock_trap on 2x3x4 blocks of 128 threads") && text.contains("of 1024 bytes"), "{text}");
    assert!(!text.contains("mock_fill"), "{text}");
}

fn out_of_memory() {
    let device = backend().expect("a device");
    let mock = Mock::new();
    mock.set("mock_limit", 10_000);
    let first = device.allocate(6_000).expect("it fits");
    let error = device.allocate(6_000).expect_err("too much");
    assert!(matches!(error, Error::OutOfMemory { bytes: Some(6_000), .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("Mock 0, 4000 of 10000 are free: a program needs 6000 bytes"), "{text}");
    // The driver keeps freed memory until the pool is trimmed.
    drop(first);
    let again = device.allocate(9_000).expect("the first one's memory came back");
    View::whole(again).write(&[1; 9_000]).expect("the device still works");
    assert!(device.failure().is_none());
}

fn limits() {
    let device = backend().expect("a device");
    let view = View::whole(device.allocate(64).expect("memory"));
    device.launch(&launch(&LARGE, &view, 1)).expect("100 KiB, once allowed");
    for (kernel, part) in [
        (&TOO_LARGE, "307200 bytes of shared memory"),
        (&TOO_WIDE, "2048 threads"),
        (&ABSENT, "unknown embedded kernel `mock_absent`; did you mean mock_fill"),
    ] {
        let text = device.launch(&launch(kernel, &view, 1)).expect_err("refused").to_string();
        assert!(text.contains(part), "{text}");
    }
    device.synchronize().expect("nothing was launched that fails");

    const BROKEN_IMAGES: Images = Images { fatbins: &[("broken", &BROKEN.0)], ..IMAGES };
    let device = Cuda(open(BROKEN_IMAGES, None).expect("images load later"));
    let view = View::whole(device.allocate(64).expect("memory"));
    let text = device.launch(&launch(&FILL, &view, 1)).expect_err("no image").to_string();
    assert!(text.contains("loading the kernels of broken") && text.contains("nvcc 12.2.140 for sm_80"), "{text}");
}

/// A small use of every call.
fn scenario() -> Result<()> {
    let device = backend()?;
    let memory = device.allocate(1 << 12)?;
    let view = View::whole(memory.clone());
    memory.write(0, &[1; 4096])?;
    device.launch(&launch(&LARGE, &view, 2))?;
    let recording = Recording::new(device.clone(), vec![launch(&FILL, &view, 3), launch(&FILL, &view, 4)])?;
    recording.replay()?;
    if let Some(side) = memory.clone().side_queue()? {
        side.write(0, 0, &[9; 64])?;
        side.join()?;
        recording.replay()?;
        side.release(0)?;
    }
    assert!(view.read()?.chunks(4).all(|word| word == 4u32.to_le_bytes()));
    device.time(&mut || recording.replay())?;
    device.synchronize()
}

/// Fails each call of the driver in turn: always an error, never a panic.
fn any_failure() {
    scenario().expect("without failures");
    let mock = Mock::new();
    mock.set("mock_fail_at", -1);
    scenario().expect("without failures");
    let calls = mock.calls();
    assert!(calls > 40, "{calls} calls");
    let mut survived = 0;
    for call in 0..calls {
        mock.set("mock_fail_at", call);
        match scenario() {
            Ok(()) => survived += 1,
            Err(error) => assert!(error.to_string().contains("(999)"), "call {call}: {error}"),
        }
    }
    mock.set("mock_fail_at", -1);
    assert!(survived < calls / 2, "most failures are reported; the rest are in destructors");
    scenario().expect("the device works again");
}
