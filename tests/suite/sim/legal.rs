//! Whatever CUDA allows works, with the same bits under every schedule.

use residuum::device::sim::{probe, Copies, Schedule, SimOptions};

use super::Run;

fn every_way() -> impl Iterator<Item = SimOptions> {
    Schedule::ALL.into_iter().flat_map(|schedule| {
        [Copies::Early, Copies::Late, Copies::Random].into_iter().flat_map(move |copies| {
            (1..4).map(move |seed| SimOptions { schedule, copies, seed, ..SimOptions::default() })
        })
    })
}

fn every_way_gives(run: &Run<'_>, expected: &[u32]) {
    for options in every_way() {
        let y = run.go(options).unwrap();
        assert_eq!(&y[..expected.len()], expected, "{} with {options}", run.kernel);
    }
}

#[test]
fn grids_of_many_blocks() {
    let x: Vec<u32> = (0..1000).collect();
    let expected: Vec<u32> = (1..1001).collect();
    let run = Run { kernel: "sim_test_add_one", grid: [4, 4, 1], x: &x, y: &[0; 1000], n: 1000, ..Run::default() };
    every_way_gives(&run, &expected);
}

#[test]
fn barriers_do_not_wait_for_exited_threads() {
    for n in [1, 31, 32, 33, 64] {
        let x: Vec<u32> = (0..64).map(|i| i * i).collect();
        let sum = x[..n].iter().sum();
        every_way_gives(&Run { kernel: "sim_test_block_sum", x: &x, y: &[0], n: n as u32, ..Run::default() }, &[sum]);
    }
}

#[test]
fn collectives_give_what_the_isa_says() {
    let x: Vec<u32> = (0..64).map(|i| (i * 37 + 11) % 101).collect();
    let warp = |i: usize| &x[i / 32 * 32..i / 32 * 32 + 32];
    let expected: Vec<u32> = (0..64)
        .flat_map(|i| {
            let (w, l) = (warp(i), i % 32);
            let own = x[i];
            [
                w[5],
                w[l / 8 * 8 + (l + 3) % 8],
                if l >= 3 { w[l - 3] } else { own },
                if l % 16 + 3 < 16 { w[l + 3] } else { own },
                w[l ^ 9],
                w.iter().enumerate().map(|(j, v)| (v & 1) << j).sum(),
                u32::from(w.contains(&77)) | 2,
                w.iter().sum(),
                (*w.iter().min().unwrap()).wrapping_sub(50),
                *w.iter().max().unwrap(),
                x.iter().map(|v| v & 1).sum(),
                1,
                if l < 16 { w[l ^ 1] } else { w[l ^ 2] },
                u32::MAX,
                w[l ^ 1],
                (w[l ^ 1] as f32).to_bits(),
            ]
        })
        .collect();
    every_way_gives(&Run { kernel: "sim_test_collectives", x: &x, y: &[0; 1024], ..Run::default() }, &expected);
}

#[test]
fn the_last_block_sees_all_others() {
    let x: Vec<u32> = (0..40).collect();
    let run = Run { kernel: "sim_test_last_block", grid: [40, 1, 1], x: &x, y: &[0; 42], n: 40, ..Run::default() };
    every_way_gives(&run, &[1560]);
}

#[test]
fn shared_memory_starts_poisoned_and_short_copies_are_filled_with_zeros() {
    let poison = u32::MAX;
    every_way_gives(
        &Run { kernel: "sim_test_partial_copy", x: &[1, 2], y: &[0; 10], ..Run::default() },
        &[poison, poison, poison, poison, 1, 2, 0, 0, 2, 0],
    );
}

#[test]
fn fresh_memory_is_poisoned() {
    let sim = super::backend(SimOptions::default());
    let memory = sim.allocate(33).unwrap();
    let mut bytes = [0; 33];
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0xff; 33]);
    assert!(memory.read(1, &mut bytes).is_err());
}

#[test]
fn alignment_is_kept() {
    for alignment in [16, 256, 4096] {
        let sim = super::backend(SimOptions { alignment, ..SimOptions::default() });
        for bytes in [0, 1, 15, 17, 255, 256, 4096, 100_000] {
            let memory = sim.allocate(bytes).unwrap();
            assert_eq!(memory.address() % alignment as u64, 0, "{bytes} bytes aligned to {alignment}");
            assert_eq!(memory.bytes(), bytes);
        }
    }
}

#[test]
fn shared_memory_is_aligned_to_128_bytes_and_not_always_to_more() {
    let run =
        Run { kernel: "sim_test_alignment", shared: 4096, grid: [64, 1, 1], x: &[0], y: &[1; 64], ..Run::default() };
    for options in every_way() {
        assert!(run.go(options).unwrap().iter().all(|at| at % 128 == 0), "{options}");
    }
    let random = SimOptions { schedule: Schedule::Random, ..SimOptions::default() };
    let mut found = run.go(random).unwrap();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, (0..8).map(|i| i * 128).collect::<Vec<_>>());
}

#[test]
fn approximate_results_are_at_most_two_units_off() {
    let x: Vec<u32> = (0..64).map(|i| (i as f32 * 0.37 + 0.01).to_bits()).collect();
    let run = Run { kernel: "sim_test_approximate", x: &x, y: &[0; 128], ..Run::default() };
    let exact = run.go(SimOptions::default()).unwrap();
    let near = run.go(SimOptions { approximate: true, ..SimOptions::default() }).unwrap();
    let mut off: Vec<i32> = exact.iter().zip(&near).map(|(&e, &n)| n as i32 - e as i32).collect();
    off.sort_unstable();
    off.dedup();
    assert_eq!(off, [-2, -1, 0, 1, 2]);
    for (pair, &x) in exact.chunks(2).zip(&x) {
        let v = f64::from(f32::from_bits(x));
        for (&found, expected) in pair.iter().zip([v.exp(), v.sqrt().recip()]) {
            assert!((i64::from(found) - i64::from((expected as f32).to_bits())).abs() <= 1, "{v}");
        }
    }
}

#[test]
fn kernels_are_unique() {
    let mut names: Vec<_> = probe::kernels().into_iter().map(|(name, ..)| name).collect();
    names.sort();
    assert!(names.windows(2).all(|w| w[0] != w[1]), "a name twice among {names:?}");
}

#[test]
fn conversions_are_those_of_half() {
    use residuum::half::{bf16, f16};
    for bits in 0..=u16::MAX {
        let (found, expected) = (probe::from_f16(bits), f16::from_bits(bits).to_f32());
        assert!(found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()), "f16 {bits:#06x}");
    }
    let same = |found: u16, expected: u16, nan: bool, v: f32| {
        let expected = if nan { 0x7fff } else { expected };
        assert_eq!(found, expected, "{v:e} ({:#010x})", v.to_bits());
    };
    // Every 16-bit number, its neighbours and the ties between them; then a stride through all of f32.
    let near = (0..=u16::MAX).flat_map(|bits| {
        [f16::from_bits(bits).to_f32().to_bits(), u32::from(bits) << 16].into_iter().flat_map(|b| {
            [0, 1, 0xffff_ffff, 0x1000, 0xfff, 0x1001, 0x8000, 0x7fff, 0x8001].map(|d: u32| b.wrapping_add(d))
        })
    });
    for bits in near.chain((0..=u32::MAX).step_by(9973)) {
        let v = f32::from_bits(bits);
        same(probe::to_f16(v), f16::from_f32(v).to_bits(), v.is_nan(), v);
        same(probe::to_bf16(v), bf16::from_f32(v).to_bits(), v.is_nan(), v);
    }
}

#[test]
fn pairs_are_two_conversions_behind_a_relu_or_not() {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::NAN,
        f32::INFINITY,
        -f32::INFINITY,
        65520.0,
        -65519.0,
        1e-7,
        -1e-30,
        1e39f64 as f32,
    ];
    let x: Vec<u32> = (0..128).map(|i| special[i * i / 2 % special.len()].to_bits() + (i % 3) as u32).collect();
    let found =
        Run { kernel: "sim_test_pairs", x: &x, y: &[0; 256], ..Run::default() }.go(SimOptions::default()).unwrap();
    let relu = |v: f32| if v <= 0.0 { 0.0 } else { v };
    let pair =
        |convert: &dyn Fn(f32) -> u16, low: f32, high: f32| u32::from(convert(low)) | u32::from(convert(high)) << 16;
    for (words, pairs) in x.chunks(2).zip(found.chunks(4)) {
        let [low, high] = [f32::from_bits(words[0]), f32::from_bits(words[1])];
        let (f16, bf16) = (&probe::to_f16 as &dyn Fn(f32) -> u16, &probe::to_bf16 as &dyn Fn(f32) -> u16);
        let expected = [
            pair(f16, low, high),
            pair(f16, relu(low), relu(high)),
            pair(bf16, low, high),
            pair(bf16, relu(low), relu(high)),
        ];
        assert_eq!(pairs, expected, "{low:e}, {high:e}");
    }
}
