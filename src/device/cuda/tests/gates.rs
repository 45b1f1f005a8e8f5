//! Recordings of launches behind gates, with conditional nodes and without.

use super::*;

/// Settings under which a driver has no conditional nodes.
const OLD: &[(&str, &str)] = &[("MOCK_VERSION", "12030")];
const DISABLED: &[(&str, &str)] = &[("RESIDUUM_CONDITIONAL", "0")];

pub(super) const CASES: &[Case] = &[
    ("a_gate_is_read_when_its_launch_runs", &[], gate),
    ("a_gate_is_read_when_its_launch_runs_on_an_old_driver", OLD, gate),
    ("each_run_behind_a_gate_is_the_body_of_a_node", &[], nodes),
    ("many_conditions_are_set_in_turn", &[], many),
    ("a_thousand_replays_skip_and_allocate_nothing", &[], thousand_replays),
    ("a_thousand_replays_return_and_allocate_nothing", OLD, thousand_replays),
    ("launches_return_on_an_old_driver", OLD, || {
        falls_back(IMAGES, "the driver is for CUDA 12.3, they came with 12.4")
    }),
    ("launches_return_when_nodes_are_disabled", DISABLED, || falls_back(IMAGES, "RESIDUUM_CONDITIONAL is 0")),
    ("launches_return_without_the_kernel", &[], without_kernel),
    ("a_call_that_fails_costs_the_nodes_at_most", &[], node_failures),
    ("a_call_that_fails_in_a_capture_leaves_nothing", DISABLED, capture_failures),
];

/// On a driver without the functions.
pub(super) const ON_PLAIN: Case = ("launches_return_without_the_functions", &[], || {
    falls_back(IMAGES, "the driver lacks the functions");
});

fn gate() {
    let device = backend().expect("a device");
    let (view, gate) = [16, 4].map(|bytes| View::whole(device.allocate(bytes).expect("memory"))).into();
    let gated = launch(&FILL, &view, 7).gated(gate.clone());
    let recording = Recording::new(device.clone(), vec![launch(&FILL, &view, 1), gated.clone()]).expect("a graph");
    for open in [true, false, true] {
        gate.write(&f32::from(u8::from(open)).to_le_bytes()).expect("a copy");
        recording.replay().expect("a replay");
        let expected: u32 = if open { 7 } else { 1 };
        assert_eq!(view.read().expect("a copy"), expected.to_le_bytes().repeat(4), "recorded");
        view.write(&[0; 16]).expect("a copy");
        device.launch(&gated).expect("a launch");
        let expected: u32 = if open { 7 } else { 0 };
        assert_eq!(view.read().expect("a copy"), expected.to_le_bytes().repeat(4), "launched");
    }
    drop((view, gate, gated));
    recording.replay().expect("it keeps the gate");
    drop((recording, device));
    assert_eq!(Mock::new().live(), [0; 7]);
}

/// The gates of ten launches, numbered from 1 on.
const PLAN: [Option<usize>; 10] = [None, None, Some(0), Some(0), None, Some(1), Some(0), Some(1), Some(1), None];

/// The plan as a graph, with conditional nodes and without.
const WITH_NODES: &str = "1 2 set4 if( 3 4 ) 5 if( 6 ) if( 7 ) if( 8 9 ) 10";
const WITHOUT: &str = "1 2 3 4 5 6 7 8 9 10";

const PATTERNS: [[bool; 2]; 4] = [[true, true], [false, true], [true, false], [false, false]];

/// Two gates and the launches of a plan. Each launch writes its number to a word of its own.
struct Scene {
    device: Arc<dyn Backend>,
    gates: View,
    words: View,
    launches: Vec<Launch>,
}

impl Scene {
    fn new(device: Arc<dyn Backend>) -> Self {
        let [gates, words] = [8, 4 * PLAN.len()].map(|bytes| View::whole(device.allocate(bytes).expect("memory")));
        let launch = |(i, &gate): (usize, &Option<usize>)| {
            let launch = launch(&FILL, &words.part(4 * i, 4).expect("a word"), i as u32 + 1);
            match gate {
                Some(gate) => launch.gated(gates.part(4 * gate, 4).expect("a gate")),
                None => launch,
            }
        };
        let launches = PLAN.iter().enumerate().map(launch).collect();
        Self { device, gates, words, launches }
    }

    fn record(&self) -> Result<Recording> {
        Recording::new(self.device.clone(), self.launches.clone())
    }

    /// Replays with these gates and checks the words.
    fn replay(&self, recording: &Recording, open: [bool; 2]) {
        self.gates.write(bytemuck::cast_slice(&open.map(|open| f32::from(u8::from(open))))).expect("a copy");
        self.words.write(&[0; 4 * PLAN.len()]).expect("a copy");
        recording.replay().expect("a replay");
        let found: Vec<u32> = bytemuck::pod_collect_to_vec(&self.words.read().expect("a copy"));
        let ran = |i: usize| PLAN[i].is_none_or(|gate| open[gate]);
        let expected: [u32; PLAN.len()] = std::array::from_fn(|i| if ran(i) { i as u32 + 1 } else { 0 });
        assert_eq!(found, expected, "gates {open:?}");
    }
}

fn nodes() {
    let scene = Scene::new(backend().expect("a device"));
    let mock = Mock::new();
    let recording = scene.record().expect("a graph");
    assert_eq!(mock.shape(), WITH_NODES);
    assert_eq!(mock.live()[4], 2, "the executable graph and its source");
    let outside = PLAN.iter().filter(|gate| gate.is_none()).count() + 1;
    for open in PATTERNS {
        let before = mock.kernels_run();
        scene.replay(&recording, open);
        let behind = PLAN.iter().filter(|gate| gate.is_some_and(|gate| open[gate])).count();
        assert_eq!(mock.kernels_run() - before, (outside + behind) as i64, "kernels started with gates {open:?}");
    }
    // Two recordings of the launches live side by side, and each keeps its memory, also under way.
    let other = scene.record().expect("a second graph");
    scene.replay(&other, [true, false]);
    let Scene { device, gates, words, launches } = scene;
    drop((gates, words, launches));
    recording.replay().expect("it keeps gates and words");
    drop((recording, other));
    device.synchronize().expect("the memory was still there");
    assert_eq!(
        skips(&open(IMAGES, None).expect("a device")),
        "conditional graph nodes skip the launches of a closed block"
    );
    drop(device);
    assert_eq!(mock.live(), [0; 7]);
}

fn many() {
    let device = backend().expect("a device");
    let mock = Mock::new();
    let [gates, words] = [(); 2].map(|()| View::whole(device.allocate(4 * 300).expect("memory")));
    let part = |view: &View, i: usize| view.part(4 * i, 4).expect("a word");
    let launches = (0..300).map(|i| launch(&FILL, &part(&words, i), 1).gated(part(&gates, i))).collect();
    let recording = Recording::new(device.clone(), launches).expect("a graph");
    assert!(mock.shape().starts_with("set128 set128 set44 if( 1 ) if( 1 ) "), "{}", mock.shape());
    let open: Vec<u32> = (0..300).map(|i| u32::from(i % 7 < 3)).collect();
    let values: Vec<f32> = open.iter().map(|&open| open as f32).collect();
    gates.write(bytemuck::cast_slice(&values)).expect("a copy");
    words.write(&[0; 4 * 300]).expect("a copy");
    let before = mock.kernels_run();
    recording.replay().expect("a replay");
    assert_eq!(bytemuck::pod_collect_to_vec::<u8, u32>(&words.read().expect("a copy")), open);
    assert_eq!(mock.kernels_run() - before, 3 + i64::from(open.iter().sum::<u32>()));
    drop((device, gates, words, recording));
    assert_eq!(mock.live(), [0; 7]);
}

fn thousand_replays() {
    let scene = Scene::new(backend().expect("a device"));
    let recording = scene.record().expect("a graph");
    let mock = Mock::new();
    (0..10).for_each(|i| scene.replay(&recording, PATTERNS[i % 4]));
    let (live, [allocations, pinned, graphs, kernels]) = (mock.live(), mock.counts());
    let pattern = |i: usize| [i * 7 % 5 < 2, i * 11 % 3 < 2];
    (0..1_000).for_each(|i| scene.replay(&recording, pattern(i)));
    assert_eq!(mock.counts(), [allocations, pinned, graphs + 1_000, kernels], "one graph launch a step, no allocation");
    assert_eq!(mock.live(), live);
    drop((scene, recording));
    assert_eq!(mock.live(), [0; 7]);
}

/// As in a build by nvcc before CUDA 12.4.
fn without_kernel() {
    let entries: Vec<_> = IMAGES.entries.iter().filter(|(name, _)| name.starts_with("mock")).copied().collect();
    falls_back(Images { entries: entries.leak(), ..IMAGES }, "unknown embedded kernel `gate_conditions_f32`");
}

/// Without conditional nodes, because of `reason`, gated launches start and return at once.
fn falls_back(images: Images, reason: &str) {
    let context = open(images, None).expect("a device");
    let (said, mock) = (skips(&context), Mock::new());
    assert!(said.starts_with("the launches of a closed block return at once") && said.contains(reason), "{said}");
    let scene = Scene::new(Arc::new(Cuda(context)));
    let recording = scene.record().expect("a graph");
    assert_eq!((&*mock.shape(), mock.live()[4]), (WITHOUT, 1));
    for open in PATTERNS {
        let before = mock.kernels_run();
        scene.replay(&recording, open);
        assert_eq!(mock.kernels_run() - before, PLAN.len() as i64, "kernels started with gates {open:?}");
    }
    drop((scene, recording));
    assert_eq!(mock.live(), [0; 7]);
}

/// Records while each call of the driver fails in turn. Every recording replays and nothing leaks. Returns the number
/// of calls, and of graphs recorded with nodes and without.
fn failures() -> (usize, usize, usize) {
    let scene = Scene::new(backend().expect("a device"));
    let mock = Mock::new();
    // Loads the kernels and makes all staging buffers.
    let recording = scene.record().expect("a graph");
    (0..20).for_each(|i| scene.replay(&recording, PATTERNS[i % 4]));
    drop(recording);
    mock.set("mock_fail_at", -1);
    drop(scene.record().expect("without failures"));
    let (calls, live) = (mock.calls(), mock.live());
    let (mut with, mut without) = (0, 0);
    for call in 0..calls {
        mock.set("mock_fail_at", call);
        let recording = scene.record();
        mock.set("mock_fail_at", -1);
        // cudarc reports a failure in a destructor at the next call.
        let _ = scene.device.synchronize();
        match recording {
            Ok(recording) => {
                let shape = mock.shape();
                assert!([WITH_NODES, WITHOUT].contains(&&*shape), "call {call}: {shape}");
                *(if shape == WITHOUT { &mut without } else { &mut with }) += 1;
                PATTERNS.iter().for_each(|&open| scene.replay(&recording, open));
            }
            Err(error) => assert!(error.to_string().contains("(999)"), "call {call}: {error}"),
        }
        assert_eq!(mock.live(), live, "call {call} leaks");
    }
    (calls as usize, with, without)
}

/// If a call for the nodes fails, the recording becomes a graph without them.
fn node_failures() {
    let (calls, _, without) = failures();
    // A graph, a handle and a node for each of four runs, a node for each launch and the setter, the executable graph.
    let own = 1 + 4 + 4 + PLAN.len() + 1 + 1;
    assert!(without >= own, "{without} of {calls} failing calls cost the nodes, expected {own} or more");
}

fn capture_failures() {
    let (calls, with, without) = failures();
    // Each launch, the start and end of the capture, and the executable graph.
    let own = PLAN.len() + 3;
    let failed = calls - without;
    assert!(with == 0 && failed >= own, "{failed} of {calls} calls fail a capture, expected {own} or more");
}
