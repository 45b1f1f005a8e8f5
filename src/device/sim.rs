//! The simulator: the kernels of `kernels/`, compiled by the host's C++ compiler and run on fibers under an adversary.
//!
//! It tests kernels and launch code on any machine; it is no back end for real work. `docs/notes/simulator.md` says what
//! it checks. Needs the feature `sim`; without it [`Device::sim`] says so.

#[cfg(feature = "sim")]
mod backend;
#[cfg(feature = "sim")]
mod ffi;
#[cfg(feature = "sim")]
pub mod probe;

use std::fmt;
use std::str::FromStr;

use super::{Arch, Device};
use crate::{Error, Result};

/// In which order the threads of a launch run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// Block after block, the ready thread of the lowest number first.
    InOrder,
    /// The same backwards.
    Reverse,
    /// Several blocks at once, any ready thread.
    Random,
    /// Several blocks at once, the warp of the highest priority; priorities change at barriers and at random moments,
    /// the more often the larger `depth` is. 2 and 3 find most ordering bugs.
    Priority {
        /// How many orderings must go wrong together for the bugs that it looks for.
        depth: u32,
    },
}

impl Schedule {
    /// Every schedule that a kernel is tested under.
    pub const ALL: [Self; 5] =
        [Self::InOrder, Self::Reverse, Self::Random, Self::Priority { depth: 2 }, Self::Priority { depth: 3 }];
}

/// When an asynchronous copy happens, between its issue and the wait that ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Copies {
    /// At its issue.
    Early,
    /// At the wait; until then the destination is poisoned.
    Late,
    /// Each at one of the two.
    Random,
}

/// How tensor cores add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// As A100, bit for bit.
    Sm80,
    /// As H100 and H200, bit for bit.
    Sm90,
    /// In f32, by fused multiply-adds: fast, and the same where sums are exact.
    Exact,
}

/// How a simulated device behaves.
///
/// The default is the fastest: threads in order, exact sums; copies are late, which costs nothing and finds lax waits.
/// Tests run the other schedules too. For a replay, `RESIDUUM_SIM_SCHEDULE` (`in-order`, `reverse`, `random`,
/// `priority:2`), `RESIDUUM_SIM_SEED` and `RESIDUUM_SIM_COPIES` (`early`, `late`, `random`) override every device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SimOptions {
    /// Whose kernels are chosen, and how much shared memory a block may have.
    pub arch: Arch,
    /// The order of threads.
    pub schedule: Schedule,
    /// The moment of asynchronous copies.
    pub copies: Copies,
    /// The sums of tensor cores.
    pub arithmetic: Arithmetic,
    /// The alignment of buffers in bytes: 16 to 4096. At 16 a buffer ends at a page that cannot be touched, so that one
    /// element too far is a fault; at 256 up to 255 bytes lie between, which only notice writes.
    pub alignment: usize,
    /// Whether results of approximate instructions are up to two units in the last place off.
    pub approximate: bool,
    /// Whether the bytes that launches touch are counted, for `probe::traffic`; the kernels are then those that
    /// `probe::load_counted` has loaded.
    pub traffic: bool,
    /// The seed of all that is random.
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

impl Device {
    /// A simulated device. Fails without the feature `sim`, and where an overriding variable cannot be read.
    pub fn sim(options: SimOptions) -> Result<Self> {
        let options = options.overridden()?;
        #[cfg(feature = "sim")]
        return Ok(Self::Kernels(backend::new(options)?));
        #[cfg(not(feature = "sim"))]
        Err(Error::NoDevice {
            device: "sim",
            reason: format!("not built in ({options}); build with `--features sim` and a C++ compiler"),
        })
    }
}

impl SimOptions {
    /// With what the environment asks for.
    fn overridden(mut self) -> Result<Self> {
        if let Ok(text) = std::env::var("RESIDUUM_SIM_SCHEDULE") {
            self.schedule = text.parse()?;
        }
        if let Ok(text) = std::env::var("RESIDUUM_SIM_COPIES") {
            self.copies = text.parse()?;
        }
        if let Ok(text) = std::env::var("RESIDUUM_SIM_SEED") {
            self.seed = text.parse().map_err(|_| {
                Error::invalid("RESIDUUM_SIM_SEED", format!("`{text}` is not a number from 0 to 2^64 - 1"))
            })?;
        }
        Ok(self)
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':').map_or((text, None), |(name, depth)| (name, Some(depth))) {
            ("in-order", None) => return Ok(Self::InOrder),
            ("reverse", None) => return Ok(Self::Reverse),
            ("random", None) => return Ok(Self::Random),
            ("priority", None) => return Ok(Self::Priority { depth: 2 }),
            ("priority", Some(depth)) => {
                if let Ok(depth) = depth.parse() {
                    return Ok(Self::Priority { depth });
                }
            }
            _ => {}
        }
        Err(Error::invalid("schedule", format!("`{text}`; expected in-order, reverse, random or priority:DEPTH")))
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

impl FromStr for Copies {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "early" => Ok(Self::Early),
            "late" => Ok(Self::Late),
            "random" => Ok(Self::Random),
            _ => Err(Error::invalid("copies", format!("`{text}`; expected early, late or random"))),
        }
    }
}

impl fmt::Display for SimOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copies = match self.copies {
            Copies::Early => "early",
            Copies::Late => "late",
            Copies::Random => "random",
        };
        write!(f, "schedule {}, copies {copies}, {:?} sums, seed {}", self.schedule, self.arithmetic, self.seed)
    }
}
