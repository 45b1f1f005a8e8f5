//! Copies, launches, recordings and their order.

use super::*;

pub(super) const CASES: &[Case] = &[
    ("copies_and_launches_keep_their_order", &[], order),
    ("copies_and_launches_keep_their_order_without_pools", &[("MOCK_POOLS", "0")], order),
    ("long_copies_are_split", &[], pieces),
    ("a_recording_owns_its_memory", &[], recording),
    ("copies_during_a_run_touch_no_place_in_use", &[], side),
    ("a_thousand_replays_allocate_nothing", &[], thousand_replays),
    ("a_thousand_replays_allocate_nothing_without_pools", &[("MOCK_POOLS", "0")], thousand_replays),
    ("time_is_measured_on_the_device", &[], time),
    ("a_foreign_stream_is_used_and_kept", &[], foreign_stream),
    ("memory_of_another_device_is_refused", &[], other_device),
];

fn order() {
    let device = backend().expect("a device");
    assert_eq!((device.kind(), device.arch(), &*device.name()), ("cuda", Arch::Sm90, "Mock 0"));
    let memory = device.allocate(4096).expect("memory");
    assert_eq!(memory.address() % 256, 0);
    let view = View::whole(memory.clone());
    // The source changes before the device has read it.
    let mut bytes = vec![7u8; 4096];
    for round in 0..20u8 {
        bytes.fill(round);
        memory.write(0, &bytes).expect("a copy");
        bytes.fill(0xFF);
        if round % 3 == 0 {
            let part = View::new(memory.clone(), 1024, 1024).expect("a view");
            device.launch(&launch(&FILL, &part, 9)).expect("a launch");
            let got = view.read().expect("a copy");
            assert!(got[..1024].iter().chain(&got[2048..]).all(|&b| b == round));
            assert!(got[1024..2048].chunks(4).all(|word| word == 9u32.to_le_bytes()));
        }
    }
    assert!(view.read().expect("a copy").iter().all(|&b| b == 19));
    let tail = View::new(memory.clone(), 4000, 96).expect("a view");
    tail.write(&[1; 96]).expect("a copy");
    memory.zero(4064, 16).expect("zeros");
    assert_eq!(tail.read().expect("a copy"), [&[1; 64][..], &[0; 16], &[1; 16]].concat());
    assert!(memory.zero(4095, 2).is_err() && memory.zero(usize::MAX, 2).is_err() && memory.zero(4096, 0).is_ok());
    assert!(memory.write(4095, &[0; 2]).is_err() && memory.read(0, &mut vec![0; 4097]).is_err());
    assert!(memory.write(usize::MAX, &[0; 2]).is_err());
    assert_eq!(device.allocate(0).expect("nothing").bytes(), 0);
    device.synchronize().expect("all well");

    // Launched, not waited for, and dropped.
    device.launch(&launch(&FILL, &view, 3)).expect("a launch");
    drop((view, tail, memory, device));
    assert_eq!(Mock::new().live(), [0; 7]);
}

fn pieces() {
    let device = backend().expect("a device");
    let bytes: Vec<u8> = (0..21 << 20).map(|i: u32| (i % 251) as u8).collect();
    let memory = device.allocate(bytes.len()).expect("memory");
    for _ in 0..3 {
        memory.write(0, &bytes).expect("a copy");
        memory.write(5, &bytes[5..700]).expect("a copy");
    }
    assert!(View::whole(memory).read().expect("a copy") == bytes);
    drop(device);
    assert_eq!(Mock::new().live(), [0; 7]);
}

fn recording() {
    let device = backend().expect("a device");
    let view = View::whole(device.allocate(1024).expect("memory"));
    let half = View::new(device.allocate(64).expect("memory"), 0, 64).expect("a view");
    let launches = vec![launch(&FILL, &view, 1), launch(&FILL, &half, 2), launch(&FILL, &view, 5)];
    let recording = Recording::new(device.clone(), launches).expect("a graph");
    assert_eq!(Mock::new().live()[4], 1, "one executable graph");
    view.write(&[0; 1024]).expect("a copy");
    assert!(view.read().expect("a copy").iter().all(|&b| b == 0), "recording runs nothing");
    drop((device, half));
    for _ in 0..3 {
        recording.replay().expect("a replay");
        assert!(view.read().expect("a copy").chunks(4).all(|word| word == 5u32.to_le_bytes()));
        view.write(&[0; 1024]).expect("a copy");
    }
    drop(view);
    recording.replay().expect("a replay");
    drop(recording);
    assert_eq!(Mock::new().live(), [0; 7]);
}

/// Two places in one memory, each the output of SHIFT before its input, and their recordings.
fn two_places(device: &Arc<dyn Backend>, words: usize) -> Result<(Arc<dyn Memory>, [Recording; 2])> {
    let memory = device.allocate(words * 16)?;
    memory.write(0, &vec![0; words * 16])?;
    let record = |place: usize| -> Result<Recording> {
        let whole = View::new(memory.clone(), place * words * 8, words * 8)?;
        let out = View::new(memory.clone(), place * words * 8, words * 4)?;
        let params = Params { y: out.address(), count: words as u64, value: 0, unused: 0 };
        // SAFETY: the parameters are the mock's, and the view is all that it reads and writes.
        let launch = unsafe { Launch::new(&SHIFT, [1, 1, 1], &params, Cost::default(), vec![whole]) };
        Recording::new(device.clone(), vec![launch])
    };
    Ok((memory.clone(), [record(0)?, record(1)?]))
}

fn output(memory: &Arc<dyn Memory>, place: usize, words: usize) -> Vec<u8> {
    let view = View::new(memory.clone(), place * words * 8, words * 4).expect("a view");
    view.read().expect("a copy")
}

fn side() {
    let device = backend().expect("a device");
    let (memory, recordings) = two_places(&device, 64).expect("two places");
    let side = memory.clone().side_queue().expect("a stream").expect("a stream of the device's own");
    assert!(side.write(0, 1000, &[0; 100]).is_err() && side.write(2, 0, &[0]).is_err() && side.release(2).is_err());
    let fill = |place: usize, byte: u8| side.write(place, place * 512 + 256, &[byte; 256]).expect("a copy");
    for step in 0..20u8 {
        let place = usize::from(step % 2);
        fill(place, step);
        side.join().expect("an order");
        recordings[place].replay().expect("a replay");
        side.release(place).expect("a mark");
        // The next batches for this place come while its run may not have begun. They use up the staging buffers, but
        // the second stream must not stop.
        (0..9).for_each(|other| fill(place, 100 + other));
        assert!(output(&memory, place, 64).iter().all(|&b| b == step), "step {step} read its own input");
    }
    drop((side, memory, recordings, device));
    assert_eq!(Mock::new().live(), [0; 7]);
}

fn thousand_replays() {
    let device = backend().expect("a device");
    let (memory, recordings) = two_places(&device, 64).expect("two places");
    let side = memory.clone().side_queue().expect("a stream").expect("a stream of the device's own");
    let mock = Mock::new();
    let step = |i: usize| {
        let place = i % 2;
        side.write(place, place * 512 + 256, &[i as u8; 256]).expect("a copy");
        side.join().expect("an order");
        recordings[place].replay().expect("a replay");
        side.release(place).expect("a mark");
        assert!(output(&memory, place, 64).iter().all(|&b| b == i as u8), "step {i}");
    };
    (0..10).for_each(step);
    let (live, free, counts) = (mock.live(), device.free_bytes().expect("an answer"), mock.counts());
    (0..1_000).for_each(step);
    let [allocations, pinned, graphs, kernels] = counts;
    assert_eq!(mock.counts(), [allocations, pinned, graphs + 1_000, kernels], "one graph launch a step, no allocation");
    assert_eq!((mock.live(), device.free_bytes().expect("an answer")), (live, free));
    assert!(free.is_some());

    // Another library's stream gets all work, so there is no side queue.
    let foreign = Cuda(open(IMAGES, Some(mock.stream(true))).expect("a device"));
    assert!(foreign.allocate(64).expect("memory").side_queue().expect("an answer").is_none());
}

fn time() {
    let device = backend().expect("a device");
    let view = View::whole(device.allocate(1024).expect("memory"));
    let fill = launch(&FILL, &view, 1);
    // Earlier work is not counted. The mock's clock ticks a millisecond for each piece of work, the last event too.
    device.launch(&fill).expect("a launch");
    for count in [0u64, 1, 5] {
        let taken = device.time(&mut || (0..count).try_for_each(|_| device.launch(&fill))).expect("a time");
        assert_eq!(taken, std::time::Duration::from_millis(count + 1));
    }
    assert!(view.read().expect("a copy").chunks(4).all(|word| word == 1u32.to_le_bytes()));
    let text = device.time(&mut || device.launch(&launch(&ABSENT, &view, 1))).expect_err("no kernel").to_string();
    assert!(text.contains("mock_absent"), "{text}");
    drop((fill, view, device));
    assert_eq!(Mock::new().live(), [0; 7]);
}

fn foreign_stream() {
    drop(backend().expect("a device"));
    let mock = Mock::new();
    let (ours, theirs) = (mock.stream(true), mock.stream(false));
    // SAFETY: it has this type and takes any stream of the mock.
    let idle = |stream| unsafe { mock.symbol::<unsafe extern "C" fn(u64) -> i32>("mock_idle")(stream) };
    let text = open(IMAGES, Some(theirs)).expect_err("another context").to_string();
    assert!(text.contains("opening the device"), "{text}");
    let device = Cuda(open(IMAGES, Some(ours)).expect("a device"));

    let mut words = vec![0u32; 64];
    // SAFETY: the memory of the mock is the host's, and outlives the launches.
    let view = unsafe { View::foreign(words.as_mut_ptr() as u64, 256) };
    assert!(view.read().is_err() && view.write(&[0]).is_err());
    device.launch(&launch(&FILL, &view, 4)).expect("a launch");
    assert_eq!(idle(ours), 0, "the work is on the caller's stream");
    device.synchronize().expect("all well");
    assert_eq!(words, [4; 64]);
    let replay = device.record(&Arc::from([launch(&FILL, &view, 8)])).expect("a graph").expect("a graph");
    replay.replay().expect("a replay");
    drop((replay, device));
    assert_eq!(words, [8; 64], "dropping waits");
    assert_eq!(mock.live(), [0; 7], "and destroys nothing of the caller's");
    assert_eq!(idle(ours), 1);
}

/// Another context of the same GPU has another stream, which would not wait for the memory's.
fn other_device() {
    let (device, other) = (backend().expect("a device"), backend().expect("a second one"));
    let [own, foreign] = [&device, &other].map(|d| View::whole(d.allocate(64).expect("memory")));
    let refused = |launch: Launch| {
        let found = [device.launch(&launch), Recording::new(device.clone(), vec![launch]).map(drop)];
        found.iter().all(|r| r.as_ref().is_err_and(|e| e.to_string().contains("memory of another device")))
    };
    assert!(refused(launch(&FILL, &foreign, 1)) && refused(launch(&FILL, &own, 1).gated(foreign.clone())));
    device.launch(&launch(&FILL, &own, 1)).expect("its own memory");
    let Device::Kernels(blueprint) = Device::blueprint(Arch::Sm90) else { unreachable!("it takes launches") };
    assert!(refused(launch(&FILL, &View::whole(blueprint.allocate(64).expect("addresses")), 1)));
}
