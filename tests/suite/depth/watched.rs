//! The launches of a dropped block touch nothing on the simulator.

use std::sync::{Arc, Mutex};

use residuum::device::sim::SimOptions;
use residuum::device::{Arch, Backend, Cost, Device, Kernel, Launch, Memory, View};
use residuum::graph::Mode;
use residuum::tensor::DType;
use residuum::{Error, Result};

use super::{compile, distance, interpret, is_zero, network, patterns, run, state, Branches};

/// A simulator that compares memory before and after its launches. Memory starts as NaNs.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn Backend>,
    arenas: Mutex<Vec<Arc<dyn Memory>>>,
    /// Launches behind an open gate, behind a closed one, and without a gate.
    counts: Mutex<[usize; 3]>,
}

// SAFETY: every call is forwarded to one backend.
unsafe impl Backend for Watched {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn name(&self) -> String {
        self.inner.name()
    }

    fn arch(&self) -> Arch {
        self.inner.arch()
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Memory>> {
        let memory = self.inner.allocate(bytes)?;
        memory.write(0, &vec![0xFF; bytes])?;
        self.arenas.lock().unwrap().push(memory.clone());
        Ok(memory)
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let open = launch.gate().map(|gate| gate.read()).transpose()?.map(|bytes| bytes != 0f32.to_le_bytes());
        let content = || self.arenas.lock().unwrap().iter().map(contents).collect::<Result<Vec<_>>>();
        let before = if open == Some(false) { Some(content()?) } else { None };
        self.inner.launch(launch)?;
        let kind = [Some(true), Some(false), None].iter().position(|kind| *kind == open).unwrap_or(2);
        self.counts.lock().unwrap()[kind] += 1;
        match before {
            Some(before) if before != content()? => {
                Err(Error::invalid(launch.kernel().name, "it wrote behind a closed gate"))
            }
            _ => Ok(()),
        }
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }
}

fn contents(memory: &Arc<dyn Memory>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; memory.bytes()];
    memory.read(0, &mut bytes)?;
    Ok(bytes)
}

/// Any parameters of `N` words.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Words<const N: usize>([u64; N]);

// SAFETY: zeros are valid words.
unsafe impl<const N: usize> bytemuck::Zeroable for Words<N> {}
// SAFETY: an array of words.
unsafe impl<const N: usize> bytemuck::Pod for Words<N> {}

/// A launch of `kernel` whose parameters are all 4096, an inaccessible address.
fn launch_on_nothing(kernel: &'static Kernel) -> Launch {
    macro_rules! sized {
        ($($words:literal)*) => {
            match kernel.params_bytes {
                // SAFETY: the simulator catches accesses to these addresses.
                $(n if n == 8 * $words => unsafe {
                    Launch::new(kernel, [2, 1, 1], &Words([4096; $words]), Cost::default(), Vec::new())
                },)*
                n => panic!("{n} bytes of parameters of {}: add a size here", kernel.name),
            }
        };
    }
    sized!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39
        40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 257)
}

#[test]
fn no_kernel_touches_anything_behind_a_closed_gate() {
    let Ok(Device::Kernels(sim)) = Device::sim(SimOptions::default()) else { panic!("the simulator") };
    let memory = sim.allocate(8).unwrap();
    memory.write(0, bytemuck::cast_slice(&[0.0f32, 1.0])).unwrap();
    let gate = |at: usize| View::new(memory.clone(), at, 4).unwrap();
    let mut faults = 0;
    for kernel in residuum::kernels() {
        let launch = launch_on_nothing(kernel);
        let closed = sim.launch(&launch.clone().gated(gate(0)));
        assert!(closed.is_ok(), "{}: {closed:?}", kernel.name);
        faults += usize::from(sim.launch(&launch.gated(gate(4))).is_err());
    }
    let all = residuum::kernels().count();
    assert!(10 * faults > 9 * all, "behind an open gate only {faults} of {all} kernels fail on inaccessible memory");
}

#[test]
fn the_launches_of_a_dropped_block_write_nothing_and_nothing_reads_what_they_left_out() {
    let graph = network(Mode::Train, &Branches::Droppable);
    let state = state(&graph);
    let mut skipped = Vec::new();
    for open in patterns() {
        let Ok(Device::Kernels(inner)) = Device::sim(SimOptions::default()) else { panic!("the simulator") };
        let watched = Arc::new(Watched { inner, arenas: Mutex::default(), counts: Mutex::default() });
        let mut program = compile(&graph, &Device::Kernels(watched.clone()), DType::F32, &state, None);
        program.set_gates(&open).unwrap();
        *watched.counts.lock().unwrap() = [0; 3];
        let (found, expected) = (run(&mut program), interpret(&graph, &state, Some(&open)));
        for (name, tensor) in &found {
            let d = distance(tensor, &expected[name]);
            let both_zero = is_zero(tensor) && is_zero(&expected[name]);
            assert!(d <= 1e-4 || both_zero, "{name} with gates {open:?}: {d:e}");
        }
        let [ran, left_out, always] = *watched.counts.lock().unwrap();
        assert!(always > 10 && ran + left_out > 40, "{ran} {left_out} {always}");
        skipped.push((open, left_out));
    }
    // A block's launches are skipped if it is dropped, and their replacements if not, whatever happens to the others.
    let of = |pattern: [bool; 4]| skipped.iter().find(|(open, _)| *open == pattern).unwrap().1 as i64;
    let none = of([true; 4]);
    assert!((1..=8).contains(&none), "{none} launches are for a dropped block only");
    for (open, left_out) in &skipped {
        let alone = |block: usize| of(std::array::from_fn(|i| i != block)) - none;
        assert!((0..4).all(|block| alone(block) > 0), "dropping a block skips more launches than replace it");
        let expected: i64 = (0..4).filter(|&block| !open[block]).map(alone).sum();
        assert_eq!(*left_out as i64, none + expected, "{open:?}");
    }
}
