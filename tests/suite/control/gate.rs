//! The kernels of gates: the draw, bit for bit as on the host, the clearing of dropped branches' gradients, and the
//! conditions of a graph's nodes.

use residuum::control::gate::{draw, launches, thresholds, Buffers, UNIT};
use residuum::device::{conditions, View};

use crate::harness::{machines, Machine, Random, Sweep};

fn upload(machine: &Machine, bytes: &[u8]) -> View {
    let memory = machine.backend.allocate(bytes.len()).unwrap();
    memory.write(0, bytes).unwrap();
    View::whole(memory)
}

fn words(machine: &Machine, words: &[u32]) -> View {
    upload(machine, bytemuck::cast_slice(words))
}

fn read<T: bytemuck::Pod>(view: &View) -> Vec<T> {
    bytemuck::pod_collect_to_vec(&view.read().unwrap())
}

/// One range for each block, in another order than the blocks; the longest takes several rounds of the grid.
fn ranges(blocks: usize) -> (Vec<u32>, usize, usize) {
    let mut random = Random::new("ranges");
    let (mut at, mut longest) = (0, 0);
    let mut pairs: Vec<[u32; 2]> = (0..blocks)
        .map(|block| {
            let len = if block == 1 { 70_000 } else { random.below(700) };
            let start = at + random.below(3);
            at = start + len;
            longest = longest.max(len);
            [start as u32, at as u32]
        })
        .collect();
    pairs.reverse();
    (pairs.as_flattened().to_vec(), at * UNIT, longest * UNIT)
}

#[test]
fn the_kernel_draws_what_the_host_draws_and_clears_the_rest() {
    for (blocks, steps) in [(1, 3), (54, 2), (600, 2)] {
        let survival: Vec<f64> = (0..blocks).map(|l| 1.0 - l as f64 / blocks as f64).collect();
        let thresholds = thresholds(&survival).unwrap();
        let (pairs, len, longest) = ranges(blocks);
        for machine in machines(Sweep::Schedules) {
            let (seed, first) = (0xFEDC_BA98_7654_3210u64, u32::MAX - 1);
            let control = words(machine, &[1, first, seed as u32, (seed >> 32) as u32]);
            let [thresholds_view, ranges] = [words(machine, &thresholds), words(machine, &pairs)];
            let [gates, closed] = [0; 2].map(|_| upload(machine, &vec![0xFF; 4 * blocks]));
            for step in 0..steps {
                let grad = words(machine, &vec![f32::to_bits(3.0); len]);
                let buffers = Buffers {
                    control: &control,
                    thresholds: &thresholds_view,
                    gates: &gates,
                    closed: &closed,
                    grad: Some((&grad, &ranges)),
                    blocks,
                    longest,
                };
                launches(&buffers).iter().for_each(|launch| machine.backend.launch(launch).unwrap());
                let open = draw(&thresholds, seed, first.wrapping_add(step));
                let found: Vec<f32> = read(&gates);
                let label = format!("{blocks} blocks, step {step} on {}", machine.label);
                assert!(found.iter().zip(&open).all(|(&gate, &open)| gate == f32::from(u8::from(open))), "{label}");
                assert!(read::<f32>(&closed).iter().zip(&found).all(|(closed, gate)| closed + gate == 1.0), "{label}");
                let next = first.wrapping_add(step + 1);
                assert_eq!(read::<u32>(&control), [1, next, seed as u32, (seed >> 32) as u32], "{label}");

                let mut expected = vec![3.0f32; len];
                for (pair, _) in pairs.chunks_exact(2).zip(&open).filter(|(_, &open)| !open) {
                    expected[pair[0] as usize * UNIT..pair[1] as usize * UNIT].fill(0.0);
                }
                assert!(read::<f32>(&grad) == expected, "{label}: cleared");
            }
        }
    }
}

#[test]
fn gates_that_are_given_stay_and_still_clear() {
    for machine in machines(Sweep::Quick) {
        let (control, thresholds) = (words(machine, &[0, 7, 1, 2]), words(machine, &[1 << 24, 0]));
        let [gates, closed] = [[0, f32::to_bits(1.0)], [f32::to_bits(1.0), 0]].map(|gates| words(machine, &gates));
        let (grad, ranges) = (words(machine, &[f32::to_bits(5.0); 16]), words(machine, &[1, 2, 2, 4]));
        let (control_view, thresholds, grads) = (&control, &thresholds, Some((&grad, &ranges)));
        let (gates_view, closed_view, longest) = (&gates, &closed, 2 * UNIT);
        let buffers = Buffers {
            control: control_view,
            thresholds,
            gates: gates_view,
            closed: closed_view,
            grad: grads,
            blocks: 2,
            longest,
        };
        launches(&buffers).iter().for_each(|launch| machine.backend.launch(launch).unwrap());
        assert_eq!(read::<f32>(&gates), [0.0, 1.0]);
        assert_eq!(read::<f32>(&closed), [1.0, 0.0]);
        assert_eq!(read::<u32>(&control), [0, 7, 1, 2], "no step is counted");
        let expected: Vec<f32> = (0..16).map(|i| if (4..8).contains(&i) { 0.0 } else { 5.0 }).collect();
        assert_eq!(read::<f32>(&grad), expected);
    }
}

#[test]
fn a_condition_is_set_where_its_gate_is_open() {
    // A GPU has conditions in graphs only; on the simulator a condition's handle is its address.
    for machine in machines(Sweep::Schedules).filter(|machine| machine.backend.kind() == "sim") {
        for count in [1, 5, 128, 300] {
            let mut random = Random::new("conditions");
            // NaN counts as open, as for the launches themselves.
            let values: Vec<f32> = (0..count).map(|_| [0.0, -0.0, 1.0, 0.5, f32::NAN][random.below(5)]).collect();
            let gates = words(machine, &values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
            let set = words(machine, &vec![7; count]);
            let handle = |i: usize| set.address() + 4 * (count - 1 - i) as u64;
            let pairs: Vec<(View, u64)> = (0..count).map(|i| (gates.part(4 * i, 4).unwrap(), handle(i))).collect();
            // SAFETY: every handle is the address of a word that outlives the launches.
            let launches = unsafe { conditions::launches(&pairs) };
            assert_eq!(launches.len(), usize::div_ceil(count, 128));
            launches.iter().for_each(|launch| machine.backend.launch(launch).unwrap());
            let expected: Vec<u32> = values.iter().rev().map(|&v| u32::from(v != 0.0)).collect();
            assert_eq!(read::<u32>(&set), expected, "{count} on {}", machine.label);
        }
    }
}
