//! Devices behind one small interface.
//!
//! A [`Device`] is the CPU, or a [`Backend`] that runs the library's kernels: a GPU (`cuda`) or the simulator (`sim`).
//! Both take the same [`Launch`]es; nothing outside this folder names cudarc or the simulator.

mod allocator;
mod blueprint;
pub mod conditions;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod doctor;
#[cfg(feature = "cuda")]
pub mod embedded;
mod foreign;
mod gpu;
mod recording;
mod select;
mod side;
pub mod sim;
pub(crate) mod table;
pub mod threads;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::allocator::ExitWhereMemoryEnds;
pub use self::gpu::Gpu;
pub use self::recording::{Recording, Replay};
pub use self::side::SideQueue;
use crate::tensor::memory::filled;
use crate::tensor::DType;
use crate::{Error, Result};

/// Where a graph runs.
#[derive(Clone, Debug)]
pub enum Device {
    /// The CPU, in plain Rust.
    Cpu,
    /// A device that runs the library's kernels.
    Kernels(Arc<dyn Backend>),
}

impl Device {
    /// The CPU.
    pub fn cpu() -> Self {
        Self::Cpu
    }

    /// `cpu`, `cuda`, `sim` or `blueprint`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Kernels(b) => b.kind(),
        }
    }
}

/// A generation of GPUs, for which kernels are chosen: all that a generation needs besides its kernels and its row of
/// `build/arch.rs` is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// Compute capability 8.0 and later: `mma.sync`, `cp.async`.
    Sm80 = 80,
    /// Compute capability 9.0: Hopper.
    Sm90 = 90,
}

impl Arch {
    /// Every generation.
    pub const ALL: [Self; 2] = [Self::Sm80, Self::Sm90];

    /// The names of all, for messages: `sm_80 or sm_90`.
    pub fn known() -> String {
        Self::ALL.map(|arch| arch.to_string()).join(" or ")
    }

    /// Bytes of shared memory that a block may take.
    pub fn shared_limit(self) -> u32 {
        match self {
            Self::Sm80 => 163 * 1024,
            Self::Sm90 => 227 * 1024,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", *self as u32)
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|arch| arch.to_string() == text).ok_or_else(|| format!("expected {}", Self::known()))
    }
}

/// For whom an op chooses its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The generation of the device.
    pub arch: Arch,
    /// The storage type of the program.
    pub dtype: DType,
}

impl Target {
    /// The same device, for kernels that compute in f32.
    pub fn in_f32(self) -> Self {
        Self { dtype: DType::F32, ..self }
    }
}

/// A device that runs the library's kernels.
pub trait Backend: fmt::Debug + Send + Sync {
    /// `cuda`, `sim` or `blueprint`.
    fn kind(&self) -> &'static str;

    /// The device's own name, for people.
    fn name(&self) -> String;

    /// The generation whose kernels it runs.
    fn arch(&self) -> Arch;

    /// Reserves `bytes` bytes at an address that is a multiple of 256, or of what [`sim::SimOptions::alignment`] says.
    /// The content is undefined.
    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Memory>>;

    /// Puts one launch on the device's queue.
    fn launch(&self, launch: &Launch) -> Result<()>;

    /// What repeats `launches` faster than launching them one by one, if the device has such; runs nothing. For
    /// [`Recording`], which keeps the launches alive for it.
    fn record(&self, launches: &[Launch]) -> Result<Option<Box<dyn Replay>>> {
        let _ = launches;
        Ok(None)
    }

    /// Bytes of the device's memory that are free for everyone, where the device can tell.
    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    /// Waits for all launches; reports the first failure since the last call.
    fn synchronize(&self) -> Result<()>;

    /// The time that the device takes for what `work` puts on its queue, waits of the queue for `work` included: by the
    /// device's own clock where it has one, else by the host's. Returns when all of it has ended.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.synchronize()?;
        let start = Instant::now();
        work()?;
        self.synchronize()?;
        Ok(start.elapsed())
    }

    /// The error after which this process can use the device no more; every call answers with it. A service that finds
    /// one must restart.
    fn failure(&self) -> Option<Error> {
        None
    }
}

/// A range of device memory, freed when dropped.
pub trait Memory: fmt::Debug + Send + Sync {
    /// The device address of the first byte.
    fn address(&self) -> u64;

    /// The number of bytes.
    fn bytes(&self) -> usize;

    /// Copies `src` to `offset`, ordered after earlier launches.
    fn write(&self, offset: usize, src: &[u8]) -> Result<()>;

    /// Sets the `bytes` bytes from `offset` on to 0, ordered after earlier launches. Takes no memory of that size.
    fn zero(&self, offset: usize, bytes: usize) -> Result<()>;

    /// Copies from `offset` to `dst`, ordered after earlier launches, and waits for it.
    fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()>;

    /// A second queue, for copies to this memory beside the launches; `None` where the device has none.
    fn side_queue(self: Arc<Self>) -> Result<Option<Box<dyn SideQueue>>> {
        Ok(None)
    }
}

/// A part of a [`Memory`], kept alive by it.
#[derive(Clone, Debug)]
pub struct View {
    memory: Arc<dyn Memory>,
    offset: usize,
    bytes: usize,
}

impl View {
    /// The `bytes` bytes from `offset` on; fails where they leave the memory.
    pub fn new(memory: Arc<dyn Memory>, offset: usize, bytes: usize) -> Result<Self> {
        match offset.checked_add(bytes) {
            Some(end) if end <= memory.bytes() => Ok(Self { memory, offset, bytes }),
            _ => Err(Error::invalid("view", format!("bytes {offset}..+{bytes} of a buffer of {}", memory.bytes()))),
        }
    }

    /// The whole of `memory`.
    pub fn whole(memory: Arc<dyn Memory>) -> Self {
        let bytes = memory.bytes();
        Self { memory, offset: 0, bytes }
    }

    /// The `bytes` bytes from byte `offset` of this view on; fails where they leave it.
    pub fn part(&self, offset: usize, bytes: usize) -> Result<Self> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Self::new(self.memory.clone(), self.offset + offset, bytes),
            _ => Err(Error::invalid("view", format!("bytes {offset}..+{bytes} of a view of {}", self.bytes))),
        }
    }

    /// The device address of the first byte.
    pub fn address(&self) -> u64 {
        self.memory.address() + self.offset as u64
    }

    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies `src` to the start of the view.
    pub fn write(&self, src: &[u8]) -> Result<()> {
        if src.len() > self.bytes {
            return Err(Error::invalid("view", format!("{} bytes written to a view of {}", src.len(), self.bytes)));
        }
        self.memory.write(self.offset, src)
    }

    /// Copies the whole view to the host.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut dst = filled("a copy of device memory", 0, self.bytes)?;
        self.memory.read(self.offset, &mut dst)?;
        Ok(dst)
    }
}

/// An entry point of the embedded kernels: `<op>_<pass>_<dtype>[_<tile>][_<form>][_sm<NN>]`.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// The name of the entry.
    pub name: &'static str,
    /// Bytes of its one parameter struct; asserted equal on the device's side by a test.
    pub params_bytes: usize,
    /// Threads in a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// The only generation of GPUs that runs it; `None` for a kernel that all run.
    pub family: Option<Arch>,
}

impl Kernel {
    /// The entry `name` that takes a `P` by value.
    pub const fn new<P: bytemuck::Pod>(name: &'static str, threads: u32, shared_bytes: u32) -> Self {
        Self { name, params_bytes: size_of::<P>(), threads, shared_bytes, family: None }
    }
}

/// Work and traffic: what a launch needs at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: u64,
    /// Bytes read from global memory, each once.
    pub bytes_read: u64,
    /// Bytes written to global memory, each once.
    pub bytes_written: u64,
}

impl Cost {
    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.bytes_read.saturating_add(self.bytes_written)
    }
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, o: Self) -> Self {
        Self {
            flops: self.flops.saturating_add(o.flops),
            bytes_read: self.bytes_read.saturating_add(o.bytes_read),
            bytes_written: self.bytes_written.saturating_add(o.bytes_written),
        }
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), std::ops::Add::add)
    }
}

/// One kernel launch with its parameters bound: a grid of `kernel.threads`-thread blocks.
#[derive(Clone, Debug)]
pub struct Launch {
    kernel: &'static Kernel,
    grid: [u32; 3],
    params: Box<[u64]>,
    cost: Cost,
    views: Vec<View>,
    gate: Option<View>,
}

impl Launch {
    /// Binds `params` to `kernel`. `views` are kept alive as long as the launch.
    ///
    /// # Safety
    /// `P` is the kernel's parameter struct; every pointer in `params` is null where the kernel allows it or points
    /// into one of `views`, which covers all that the kernel reads and writes there for these parameters and this grid.
    ///
    /// # Panics
    /// If the size of `P` is not the kernel's, or the grid is empty or beyond CUDA's limits (2^31 - 1, 65,535, 65,535).
    pub unsafe fn new<P: bytemuck::Pod>(
        kernel: &'static Kernel,
        grid: [u32; 3],
        params: &P,
        cost: Cost,
        views: Vec<View>,
    ) -> Self {
        assert_eq!(size_of::<P>(), kernel.params_bytes, "parameter bytes of {}", kernel.name);
        assert!(
            grid.iter().all(|&g| g > 0) && grid[0] <= i32::MAX as u32 && grid[1] <= 65_535 && grid[2] <= 65_535,
            "grid {grid:?} of {}",
            kernel.name
        );
        let mut words = vec![0u64; size_of::<P>().div_ceil(8)].into_boxed_slice();
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..size_of::<P>()].copy_from_slice(bytemuck::bytes_of(params));
        Self { kernel, grid, params: words, cost, views, gate: None }
    }

    /// The same launch behind a gate, an f32: where it holds 0 when the launch's turn comes, every thread returns before
    /// it reads or writes anything else. The cost stays that of an open gate.
    ///
    /// # Panics
    /// If `gate` is of less than 4 bytes or not aligned to them.
    pub fn gated(self, gate: View) -> Self {
        let sound = gate.bytes() >= 4 && gate.address().is_multiple_of(4);
        assert!(sound, "a gate of {} bytes at {:#x}", gate.bytes(), gate.address());
        Self { gate: Some(gate), ..self }
    }

    /// The entry point.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// Blocks in x, y and z.
    pub fn grid(&self) -> [u32; 3] {
        self.grid
    }

    /// The bytes of the parameter struct.
    pub fn params(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.params)[..self.kernel.params_bytes]
    }

    /// What it computes and moves.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// What decides whether it runs, where something does.
    pub fn gate(&self) -> Option<&View> {
        self.gate.as_ref()
    }

    /// The memory that it touches, but for the gate.
    pub fn views(&self) -> &[View] {
        &self.views
    }
}
