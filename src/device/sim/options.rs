//! Options of a simulated device.

use std::fmt;
use std::str::FromStr;

use crate::device::Arch;
use crate::{Error, Result};

/// The order in which the threads of a launch run.
///
/// ```
/// use residuum::device::sim::Schedule;
///
/// assert_eq!("priority:3".parse::<Schedule>()?, Schedule::Priority { depth: 3 });
/// # Ok::<(), residuum::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// Block after block, the ready thread of the lowest number first.
    InOrder,
    /// Last block and last thread first.
    Reverse,
    /// Several blocks at once, any ready thread.
    Random,
    /// Several blocks at once, the warp of the highest priority. Priorities change at barriers and at random moments,
    /// more often with a larger `depth`. 2 and 3 find most ordering bugs.
    Priority {
        /// The number of ordering constraints that together trigger a bug.
        depth: u32,
    },
}

impl Schedule {
    /// Every schedule that kernels are tested under.
    pub const ALL: [Self; 5] =
        [Self::InOrder, Self::Reverse, Self::Random, Self::Priority { depth: 2 }, Self::Priority { depth: 3 }];
}

/// The time of an asynchronous copy, between its issue and the wait that ends it.
///
/// ```
/// assert_eq!("late".parse::<residuum::device::sim::Copies>()?, residuum::device::sim::Copies::Late);
/// # Ok::<(), residuum::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Copies {
    /// At its issue.
    Early,
    /// At the wait; until then the destination is poisoned.
    Late,
    /// At one of the two, drawn for each copy.
    Random,
}

/// The arithmetic of tensor cores.
///
/// ```
/// use residuum::device::sim::{Arithmetic, SimOptions};
///
/// let as_a100 = SimOptions { arithmetic: Arithmetic::Sm80, ..SimOptions::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Like an A100, bit for bit.
    Sm80,
    /// Like an H100 or H200, bit for bit.
    Sm90,
    /// By f32 fused multiply-adds: fast, and equal to the others if all sums are exact.
    Exact,
}

/// The behaviour of a simulated device.
///
/// The default is the fastest: threads in order, exact sums. Its copies are late, which costs nothing and exposes
/// missing waits. Tests run the other schedules too. To replay a failure, the variables of `docs/SWITCHES.md` override
/// every device's options.
///
/// ```
/// use residuum::device::sim::{Schedule, SimOptions};
/// use residuum::device::Device;
///
/// let options = SimOptions { schedule: Schedule::Random, seed: 7, ..SimOptions::default() };
/// match Device::sim(options) {
///     Ok(device) => assert_eq!(device.kind(), "sim"),
///     Err(error) => println!("without the feature `sim`: {error}"),
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SimOptions {
    /// The generation whose kernels run, which also limits a block's shared memory.
    pub arch: Arch,
    /// The order of threads.
    pub schedule: Schedule,
    /// The time of asynchronous copies.
    pub copies: Copies,
    /// The arithmetic of tensor cores.
    pub arithmetic: Arithmetic,
    /// The alignment of buffers in bytes, 16 to 4096. At 16 a buffer ends at a guard page, so an access one element too
    /// far faults. At 256 a gap of up to 255 bytes may come before the guard page, in which only writes are detected.
    pub alignment: usize,
    /// True to perturb the results of approximate instructions by up to two units in the last place.
    pub approximate: bool,
    /// True to count the bytes that launches touch, for `probe::traffic`, on kernels from `probe::load_counted`.
    pub traffic: bool,
    /// The seed of every random choice.
    pub seed: u64,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            arch: Arch::Sm80,
            schedule: Schedule::InOrder,
            copies: Copies::Late,
            arithmetic: Arithmetic::Exact,
            alignment: 16,
            approximate: false,
            traffic: false,
            seed: 1,
        }
    }
}

impl SimOptions {
    /// These options, overridden by the environment.
    pub(super) fn overridden(self) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let schedule = variable("RESIDUUM_SIM_SCHEDULE").map_or(Ok(self.schedule), |text| text.parse())?;
        let copies = variable("RESIDUUM_SIM_COPIES").map_or(Ok(self.copies), |text| text.parse())?;
        let wrong = |text| Error::invalid("RESIDUUM_SIM_SEED", format!("`{text}` is not a number from 0 to 2^64 - 1"));
        let seed = |text: String| text.parse().map_err(|_| wrong(text));
        let seed = variable("RESIDUUM_SIM_SEED").map_or(Ok(self.seed), seed)?;
        Ok(Self { schedule, copies, seed, ..self })
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "expected in-order, reverse, random or priority:DEPTH";
        let found = match text {
            "in-order" => Some(Self::InOrder),
            "reverse" => Some(Self::Reverse),
            "random" => Some(Self::Random),
            "priority" => Some(Self::Priority { depth: 2 }),
            _ => text.strip_prefix("priority:").and_then(|n| n.parse().ok()).map(|depth| Self::Priority { depth }),
        };
        found.ok_or_else(|| Error::invalid("schedule", format!("`{text}`; {expected}")))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InOrder => f.write_str("in-order"),
            Self::Reverse => f.write_str("reverse"),
            Self::Random => f.write_str("random"),
            Self::Priority { depth } => write!(f, "priority:{depth}"),
        }
    }
}

const COPIES: [(Copies, &str); 3] = [(Copies::Early, "early"), (Copies::Late, "late"), (Copies::Random, "random")];

impl FromStr for Copies {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = COPIES.iter().find(|(_, name)| *name == text).map(|(copies, _)| *copies);
        found.ok_or_else(|| Error::invalid("copies", format!("`{text}`; expected early, late or random")))
    }
}

impl fmt::Display for SimOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (schedule, copies) = (self.schedule, COPIES[self.copies as usize].1);
        write!(f, "schedule {schedule}, copies {copies}, {:?} sums, seed {}", self.arithmetic, self.seed)
    }
}
