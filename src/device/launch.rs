//! A kernel launch with its parameters and its cost.

use super::memory::{DeviceId, View};
use super::Kernel;
use crate::{Error, Result};

/// The least work and traffic of a launch.
///
/// ```
/// use residuum::device::Cost;
///
/// let copy = Cost { flops: 0, bytes_read: 64, bytes_written: 64 };
/// let total: Cost = [copy, copy].into_iter().sum();
/// assert_eq!((total, total.bytes()), (copy + copy, 256));
/// ```
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

/// One kernel launch with its parameters bound: a grid of blocks of `kernel.threads` threads.
///
/// The promises made to [`new`](Self::new) hold for every value: `params` is the kernel's struct, and its pointers are
/// null or lie in `views`, which the launch keeps alive. `gate` holds an aligned f32.
///
/// ```
/// use residuum::device::{Arch, Cost, Device, Kernel, Launch, View};
///
/// /// The kernel's parameters; `kernels/` declares the struct again, and both sides assert its size.
/// #[repr(C)]
/// #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
/// struct Params {
///     y: u64,
///     count: u64,
/// }
/// static FILL: Kernel = Kernel::new::<Params>("my_fill_f32", 128, 0);
///
/// let Device::Kernels(backend) = Device::blueprint(Arch::Sm80) else { unreachable!() };
/// let y = View::whole(backend.allocate(4096)?);
/// let params = Params { y: y.address(), count: 1024 };
/// let cost = Cost { bytes_written: 4096, ..Cost::default() };
/// // SAFETY: the kernel takes a `Params` and writes `count` floats from `y` on, which are the view.
/// let launch = unsafe { Launch::new(&FILL, [8, 1, 1], &params, cost, vec![y]) };
/// assert_eq!(launch.grid(), [8, 1, 1]);
/// # Ok::<(), residuum::Error>(())
/// ```
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
    /// Binds `params` to `kernel`. The launch keeps `views` alive.
    ///
    /// # Safety
    /// * `kernel` describes the entry of its name: `P` is its parameter struct, `threads` the block that it is written
    ///   for, and `shared_bytes` at least the dynamic shared memory that it uses.
    /// * A pointer in `params` is null, if the kernel allows that, or points into one of `views`, which covers all that
    ///   the kernel reads and writes through it for these parameters and this grid.
    /// * If the kernel writes an element, no other thread of the launch accesses a byte of it through any pointer,
    ///   unless the kernel orders the two accesses. So two views may overlap if the kernel only reads them; if they are
    ///   slices of channels that share no element; or if each thread reads an element before it writes that element (an
    ///   in-place op, an output that accumulates). Launches on one queue run in order and may share anything.
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
        let limits = [i32::MAX as u32, 65_535, 65_535];
        assert!((0..3).all(|axis| (1..=limits[axis]).contains(&grid[axis])), "grid {grid:?} of {}", kernel.name);
        let mut words = vec![0u64; size_of::<P>().div_ceil(8)].into_boxed_slice();
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..size_of::<P>()].copy_from_slice(bytemuck::bytes_of(params));
        Self { kernel, grid, params: words, cost, views, gate: None }
    }

    /// Puts the launch behind a gate, an f32: if it holds 0 when the launch's turn comes, every thread returns before
    /// it reads or writes anything else. The cost assumes an open gate.
    ///
    /// # Panics
    /// If `gate` has less than 4 bytes or is not aligned to 4.
    pub fn gated(self, gate: View) -> Self {
        let sound = gate.bytes() >= 4 && gate.address().is_multiple_of(4);
        assert!(sound, "a gate of {} bytes at {:#x}", gate.bytes(), gate.address());
        Self { gate: Some(gate), ..self }
    }

    /// Fails if a view or the gate is another device's memory; a [`Backend`](super::Backend) checks it before a launch.
    pub fn check_device(&self, device: DeviceId) -> Result<()> {
        let mut owners = self.views.iter().chain(&self.gate).filter_map(View::device);
        let all = owners.all(|owner| owner == device);
        Error::check(all, self.kernel.name, || "a launch on memory of another device".into())
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

    /// The operations and bytes.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// The gate, if the launch has one.
    pub fn gate(&self) -> Option<&View> {
        self.gate.as_ref()
    }

    /// The memory that the launch touches, without the gate.
    pub fn views(&self) -> &[View] {
        &self.views
    }
}
