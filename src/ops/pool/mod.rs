//! Max and average pooling of images `[N,H,W,C]` to `[N,P,Q,C]`, with sliding windows (floor or ceil mode) or adaptive
//! ones (global pooling among them).
//!
//! ```text
//! max  y = the maximum over the window's pixels inside the image. Backward: dy goes to the first maximum in row-major
//!      order. A NaN is the largest number; among several NaNs dy goes to the last, as in torch
//! avg  y = sum over the window / divisor; divisor = the pixels inside the image, or with `count_padding` the pixels
//!      inside the padded image
//! ```
//!
//! In ceil mode a window that would start past the image and its upper-left padding is dropped, as in torch and Caffe.
//! A single window may be larger than the padded image, as in torch; it is clipped. Adaptive windows run from
//! `floor(i H / P)` to `ceil((i + 1) H / P)`.
//!
//! A batch norm and a ReLU before the pooling may be fused: applied as x is [loaded](super::load), and dx is masked
//! before it is [stored](super::store).
//!
//! ```
//! use residuum::ops::pool::{Bwd, Kind, Pool, Spec, Window};
//! use residuum::ops::{HostIo, HostMut, HostOp, HostRef};
//!
//! let (x, window) = ([1, 2, 2, 1], Window::Adaptive([1, 1]));
//! let op = Pool::new(Spec { x, window, kind: Kind::Average { count_padding: false } })?.bwd();
//! let (dy, mut dx) = ([8.0], [f64::NAN; 4]);
//! let (dy, dx_out) = (HostRef::Real(&dy), HostMut::Real(&mut dx));
//! op.reference(&mut HostIo::of(Bwd { dy, index: None, mask: None, dx: dx_out, sums: None }));
//! assert_eq!(dx, [2.0; 4]);
//! # Ok::<(), residuum::Error>(())
//! ```

mod host;
mod launch;
mod reference;

pub(crate) use launch::KERNELS;

use super::load::Operand;
use super::norm::gradient::scratch_bytes;
use super::operands::{call, Call, Operands, Written};
use super::store::{Mask, Sums};
use super::{Gradient, Io, Op, Operator, Source};
use crate::device::{Launch, Target};
use crate::tensor::{is_addressable, TensorType};
use crate::{Error, Result};

/// The windows of a pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Window {
    /// At a fixed stride.
    Sliding {
        /// Height and width.
        kernel: [usize; 2],
        /// Vertical and horizontal stride.
        stride: [usize; 2],
        /// Rows above and below, columns left and right; at most half the kernel.
        padding: [usize; 2],
        /// True to round the number of windows up.
        ceil: bool,
    },
    /// P by Q windows, spread over the image. `[1, 1]` is global pooling.
    Adaptive([usize; 2]),
}

/// The reduction over a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The maximum.
    Max,
    /// The mean.
    Average {
        /// True if the divisor counts padding.
        count_padding: bool,
    },
}

/// The parameters of a pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// N, H, W, C of the input.
    pub x: [usize; 4],
    /// The windows.
    pub window: Window,
    /// The reduction.
    pub kind: Kind,
}

/// A pooling with a checked [`Spec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    spec: Spec,
    p: usize,
    q: usize,
}

impl Pool {
    /// Fails if an extent is 0, the padding is more than half the kernel (rounded down), no window fits, or a maximum
    /// is over more than 256 pixels inside the image. torch allows such windows. Here the index of a maximum is a byte,
    /// a quarter of the traffic of a 32-bit index; the networks of [`models`](crate::models) need at most 9 pixels.
    pub fn new(spec: Spec) -> Result<Self> {
        let check = |holds, problem: &dyn Fn() -> String| Error::check(holds, "pool", problem);
        let (x, [_, h, w, _]) = (spec.x, spec.x);
        check(!x.contains(&0), &|| format!("input {x:?} has a zero extent"))?;
        let addressable = is_addressable(&x) && h.max(w) <= i32::MAX as usize;
        check(addressable, &|| format!("input {x:?}, more than any memory holds"))?;
        let (p, q) = match spec.window {
            Window::Adaptive([p, q]) => (p, q),
            Window::Sliding { kernel, stride, padding, ceil } => {
                check(!kernel.contains(&0) && !stride.contains(&0), &|| {
                    format!("kernel {kernel:?} and stride {stride:?}, expected at least 1")
                })?;
                check((0..2).all(|i| padding[i] <= kernel[i] / 2), &|| {
                    format!("a padding of {padding:?}, expected at most half the kernel {kernel:?}")
                })?;
                // torch's `pooling_output_shape`; intermediate values may be negative.
                let count = |size: usize, i: usize| -> usize {
                    let [size, kernel, stride, padding] = [size, kernel[i], stride[i], padding[i]].map(|v| v as i128);
                    let up = if ceil { stride - 1 } else { 0 };
                    let windows = (size + 2 * padding - kernel + up).div_euclid(stride) + 1;
                    let beyond = ceil && (windows - 1) * stride >= size + padding;
                    usize::try_from(windows - i128::from(beyond)).unwrap_or(0)
                };
                let (p, q) = (count(h, 0), count(w, 1));
                check(p > 0 && q > 0, &|| {
                    format!("a window of {kernel:?} padded by {padding:?} does not fit {h}x{w}")
                })?;
                (p, q)
            }
        };
        check(p > 0 && q > 0, &|| format!("an output of {p}x{q}"))?;
        let pool = Self { spec, p, q };
        let most = pool.most_pixels();
        let fits = spec.kind != Kind::Max || most <= 256;
        check(fits, &|| format!("a maximum over {most} pixels, expected at most 256"))?;
        Ok(pool)
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Output height and width.
    pub fn output(&self) -> [usize; 2] {
        [self.p, self.q]
    }

    /// x, `[N,H,W,C]`.
    pub fn x(&self) -> TensorType {
        TensorType::real(self.spec.x)
    }

    /// The shape of y, `[N,P,Q,C]`.
    pub fn y_shape(&self) -> [usize; 4] {
        [self.spec.x[0], self.p, self.q, self.spec.x[3]]
    }

    /// The rows (`axis` 0) or columns (`axis` 1) of window `i` inside the image.
    pub fn span(&self, axis: usize, i: usize) -> std::ops::Range<usize> {
        let size = self.spec.x[1 + axis];
        match self.spec.window {
            Window::Adaptive(count) => i * size / count[axis]..((i + 1) * size).div_ceil(count[axis]),
            Window::Sliding { kernel, stride, padding, .. } => {
                let start = i.saturating_mul(stride[axis]);
                start.saturating_sub(padding[axis]).min(size)
                    ..start.saturating_add(kernel[axis]).saturating_sub(padding[axis]).min(size)
            }
        }
    }

    /// The divisor of window `(i, j)`.
    pub fn divisor(&self, i: usize, j: usize) -> usize {
        let along = |axis: usize, i: usize| match (self.spec.window, self.spec.kind) {
            (Window::Sliding { kernel, stride, padding, .. }, Kind::Average { count_padding: true }) => {
                let padded = padding[axis].saturating_mul(2).saturating_add(self.spec.x[1 + axis]);
                let start = i.saturating_mul(stride[axis]);
                start.saturating_add(kernel[axis]).min(padded).saturating_sub(start)
            }
            _ => self.span(axis, i).len(),
        };
        along(0, i).saturating_mul(along(1, j))
    }

    /// The forward pass without a batch norm.
    pub fn fwd(self) -> Node {
        Node { pool: self, pass: Pass::Fwd(Fwd { index: self.has_index(), ..Fwd::default() }) }
    }

    /// The backward pass without a mask.
    pub fn bwd(self) -> Node {
        Node { pool: self, pass: Pass::Bwd(Bwd { index: self.has_index(), ..Bwd::default() }) }
    }

    pub(super) fn has_index(&self) -> Option<()> {
        (self.spec.kind == Kind::Max).then_some(())
    }

    /// The most pixels of a window.
    fn most_pixels(&self) -> usize {
        let most = |axis: usize, count: usize| (0..count).map(|i| self.span(axis, i).len()).max().unwrap_or(0);
        most(0, self.p) * most(1, self.q)
    }

    /// The pixels of all windows together, in one channel of an image.
    fn taken(&self) -> usize {
        let along = |axis: usize, count: usize| (0..count).map(|i| self.span(axis, i).len()).sum::<usize>();
        along(0, self.p) * along(1, self.q)
    }
}

call! {
    /// The forward pass.
    pub struct Fwd {
        reads {
            /// `[N,H,W,C]`, loaded as it is or through a batch norm.
            x: Operand<I> [operand],
        }
        writes {
            /// `[N,P,Q,C]`.
            y: O [one],
            /// For a maximum, `[N,P,Q,C]`, bytes: its row-major position in the clipped window.
            index: Option<O> [maybe],
        }
    }

    /// The backward pass.
    pub struct Bwd {
        reads {
            /// The gradient of y, `[N,P,Q,C]`.
            dy: I [one],
            /// For a maximum, the forward pass's index.
            index: Option<I> [maybe],
            /// The transform of dx before it is stored.
            mask: Option<Mask<I>> [maybe_group],
        }
        writes {
            /// The gradient of x, `[N,H,W,C]`; may be accumulated.
            dx: O [one],
            /// The sums of the masked dx.
            sums: Option<Sums<O>> [maybe_group],
        }
    }
}

/// One pass with its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// [`Fwd`].
    Fwd(Fwd),
    /// [`Bwd`].
    Bwd(Bwd),
}

/// A pooling's pass in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The pooling.
    pub pool: Pool,
    /// The pass.
    pub pass: Pass,
}

impl Operator for Node {
    fn name(&self) -> &'static str {
        match (self.pool.spec.kind, self.pass) {
            (Kind::Max, Pass::Fwd(_)) => "pool_max_fwd",
            (Kind::Max, Pass::Bwd(_)) => "pool_max_bwd",
            (Kind::Average { .. }, Pass::Fwd(_)) => "pool_avg_fwd",
            (Kind::Average { .. }, Pass::Bwd(_)) => "pool_avg_bwd",
        }
    }

    fn summary(&self) -> String {
        format!("{} to {}x{}", self.pool.x().shape.summary(), self.pool.p, self.pool.q)
    }

    fn operands(&self) -> Operands {
        let (x, y) = (self.pool.x(), TensorType::real(self.pool.y_shape()));
        let shape = self.pool.spec.x;
        let index = || TensorType::byte(self.pool.y_shape());
        match self.pass {
            Pass::Fwd(form) => Operands::of(Fwd {
                x: form.x.types(x, shape[3]),
                y: y.into(),
                index: form.index.map(|()| index().into()),
            }),
            Pass::Bwd(form) => Operands::of(Bwd {
                dy: y.into(),
                index: form.index.map(|()| index().into()),
                mask: form.mask.map(|mask| mask.types(shape)),
                dx: Written::accumulated(x),
                sums: form.mask.map(|mask| mask.sum_types(shape)),
            }),
        }
    }

    fn flops(&self) -> u64 {
        let ([n, h, w, c], taken) = (self.pool.spec.x, self.pool.taken());
        let each = match self.pass {
            Pass::Fwd(form) if form.x.load.is_as_it_is() => taken,
            Pass::Fwd(_) => 3 * taken,
            Pass::Bwd(Bwd { mask: None, .. }) => taken.max(h * w),
            Pass::Bwd(_) => taken + 6 * h * w,
        };
        (n * c * each) as u64
    }

    fn gradient(&self, _needed: &[bool]) -> Result<Vec<Gradient>> {
        let form = match self.pass {
            Pass::Fwd(form) if form.x.load.is_as_it_is() => form,
            _ => {
                let why = "only the forward pass has one; differentiate before fusing";
                return Err(Error::unsupported(format!("gradient of {}", self.name()), why));
            }
        };
        let Fwd { x, y, index } = form.places();
        let call =
            Bwd { dy: Source::Grad(y), index: index.map(Source::Output), mask: None, dx: Some(x.value), sums: None };
        Ok(vec![Gradient::node(Op::Pool(self.pool.bwd()), call)])
    }

    fn scratch_bytes(&self, target: Target) -> usize {
        match self.pass {
            Pass::Bwd(Bwd { mask: Some(mask), .. }) => scratch_bytes(mask, self.pool.spec.x, target.dtype),
            _ => 0,
        }
    }

    fn launches(&self, target: Target, io: &Io<'_>) -> Result<Vec<Launch>> {
        launch::launches(self, target, io)
    }
}
