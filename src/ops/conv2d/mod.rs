//! Two-dimensional convolution: any kernel size, stride, padding, dilation and number of groups.
//!
//! Images are NHWC, weights KRSC. With `g` the group of output channel `k`, and `Cg = C / groups`:
//!
//! ```text
//! fwd    y[n,p,q,k]  = sum_{r,s,c} x[n,h,w, g*Cg + c] * w[k,r,s,c]
//! bwd_x  dx[n,h,w,c] = sum_{r,s,k} dy[n,p,q,k] * w[k,r,s,c]        over the p, q that read (h, w)
//! bwd_w  dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n,h,w, g*Cg + c]     in f32
//!        where h = p*stride_h - pad_h + r*dilation_h and w = q*stride_w - pad_w + s*dilation_w
//! ```
//!
//! Operands may be transformed as they are [loaded](super::load), results before they are [stored](super::store): batch
//! norms and ReLUs next to a convolution need no passes over memory of their own.
//!
//! A NaN or an infinity reaches only the sums of which it is a factor, even if kernels compute several narrow groups as
//! one. Padding is an exception: as in torch, some implementations multiply its zeros (the kernels, and on the CPU fwd
//! and bwd_w, unless the kernel is 1x1 without padding), others skip them (the reference). An infinite weight can thus
//! turn all of its channel to NaN, in y (fwd) or dx (bwd_x), and an infinite dy all of its output channel's dw.
//!
//! ```
//! use residuum::ops::conv2d::{Conv2d, Fwd, Node, Pass, Spec};
//! use residuum::ops::{store::Epilogue, HostIo, HostMut, HostOp, HostRef};
//!
//! let ([n, h, w, c, k], one) = ([1, 1, 3, 1, 1], [1, 1]);
//! let (kernel, padding) = ([1, 3], [0, 1]);
//! let conv = Conv2d::new(Spec { n, h, w, c, k, kernel, stride: one, padding, dilation: one, groups: 1 })?;
//! let (x, w, mut y) = ([1.0, 2.0, 3.0], [1.0, 0.0, -1.0], [f64::NAN; 3]);
//! let (x, w, y_out) = (HostRef::Real(&x).into(), HostRef::Real(&w), HostMut::Real(&mut y));
//! let call = Fwd { x, w, epilogue: Epilogue::default(), y: y_out, moments: None, end: None };
//! Node { conv, pass: Pass::fwd(false) }.reference(&mut HostIo::of(call));
//! assert_eq!(y, [-2.0, -2.0, 2.0]);
//! # Ok::<(), residuum::Error>(())
//! ```

mod host;
mod launch;
mod pass;
mod reference;

pub(crate) use self::launch::kernels;
pub use self::launch::Plan;
pub use self::pass::{Bwd, BwdBias, BwdW, BwdX, End, Fwd, Node, Pass};

use crate::tensor::TensorType;
use crate::{Error, Result};

/// The parameters of a convolution, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Images.
    pub n: usize,
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Input channels, over all groups.
    pub c: usize,
    /// Output channels, over all groups.
    pub k: usize,
    /// Kernel height and width, R and S.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub stride: [usize; 2],
    /// Zero rows above and below, and zero columns left and right.
    pub padding: [usize; 2],
    /// Vertical and horizontal distance of taps; 1 is dense.
    pub dilation: [usize; 2],
    /// Groups: output channels read only the input channels of their group.
    pub groups: usize,
}

impl Spec {
    /// The short form, without defaults: `n256 56x56 c64 k256 r3 s3 stride 2 pad 1 groups 32`.
    pub(super) fn summary(&self) -> String {
        let Self { n, h, w, c, k, kernel: [r, s], stride, padding, dilation, groups } = *self;
        let mut text = format!("n{n} {h}x{w} c{c} k{k} r{r} s{s}");
        for (what, [vertical, horizontal], usual) in
            [("stride", stride, 1), ("pad", padding, 0), ("dilation", dilation, 1)]
        {
            if vertical != horizontal {
                text += &format!(" {what} {vertical},{horizontal}");
            } else if vertical != usual {
                text += &format!(" {what} {vertical}");
            }
        }
        if groups > 1 {
            text += &format!(" groups {groups}");
        }
        text
    }
}

/// A convolution with a checked [`Spec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2d {
    spec: Spec,
    p: usize,
    q: usize,
}

impl Conv2d {
    /// Fails if an extent, a stride or a dilation is 0, the groups do not divide the channels, the kernel is larger
    /// than the padded input, or an image, the weights or all pixels are 2^31 elements or more.
    pub fn new(spec: Spec) -> Result<Self> {
        let Spec { n, h, w, c, k, kernel: [r, s], stride, padding, dilation, groups } = spec;
        let check = |holds, problem: &dyn Fn() -> String| Error::check(holds, "conv2d", problem);
        let positive = [n, h, w, c, k, r, s, groups].iter().chain(&stride).chain(&dilation).all(|&extent| extent > 0);
        check(positive, &|| format!("{spec:?} has a zero where at least 1 is needed"))?;
        check(c % groups == 0 && k % groups == 0, &|| {
            format!("{groups} groups do not divide {c} input and {k} output channels")
        })?;
        let extent = |size: usize, taps: usize, i: usize| -> Option<usize> {
            let span = dilation[i].checked_mul(taps - 1)?.checked_add(1)?;
            let padded = padding[i].checked_mul(2)?.checked_add(size)?;
            Some(padded.checked_sub(span)? / stride[i] + 1)
        };
        let (Some(p), Some(q)) = (extent(h, r, 0), extent(w, s, 1)) else {
            let input = format!("an input of {h}x{w} padded by {padding:?}");
            let problem = format!("a {r}x{s} kernel of dilation {dilation:?} does not fit {input}");
            return Err(Error::invalid("conv2d", problem));
        };
        let fits = |dims: &[usize]| {
            dims.iter().try_fold(1usize, |a, &d| a.checked_mul(d)).is_some_and(|len| len <= i32::MAX as usize)
        };
        let tensors = [&[h, w, c][..], &[p, q, k], &[n, h, w], &[n, p, q], &[k, r, s, c / groups]];
        check(tensors.into_iter().all(fits), &|| {
            format!("{spec:?} is larger than 2^31 - 1 elements an image, weights or pixels")
        })?;
        Ok(Self { spec, p, q })
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Output height and width.
    pub fn output(&self) -> [usize; 2] {
        [self.p, self.q]
    }

    /// `x[N,H,W,C]`.
    pub fn x(&self) -> TensorType {
        let Spec { n, h, w, c, .. } = self.spec;
        TensorType::real([n, h, w, c])
    }

    /// The shape of w, `[K,R,S,C/groups]`.
    pub fn w_shape(&self) -> [usize; 4] {
        let Spec { k, kernel: [r, s], c, groups, .. } = self.spec;
        [k, r, s, c / groups]
    }

    /// `y[N,P,Q,K]`.
    pub fn y(&self) -> TensorType {
        TensorType::real(self.y_shape())
    }

    fn y_shape(&self) -> [usize; 4] {
        [self.spec.n, self.p, self.q, self.spec.k]
    }

    /// A convolution whose kernel covers the image, as a 1x1 convolution of images of one pixel.
    pub(super) fn flattened(&self) -> Self {
        let Spec { h, w, c, .. } = self.spec;
        debug_assert_eq!((self.spec.kernel, self.p, self.q), ([h, w], 1, 1));
        let spec = Spec { h: 1, w: 1, c: h * w * c, kernel: [1, 1], ..self.spec };
        Self { spec, ..*self }
    }

    /// True if a forward pass can load x as the end of a residual block ([`Load::Sum`](super::load::Load)): each
    /// element is loaded by the tiles of one row, 8 channels at a time. The kernel must be 1x1 with stride 1, no
    /// padding, one group and a multiple of 8 channels.
    pub fn can_load_sum(&self) -> bool {
        let s = self.spec;
        s.kernel == [1, 1] && s.stride == [1, 1] && s.padding == [0, 0] && s.groups == 1 && s.c.is_multiple_of(8)
    }

    /// True for the rows (`axis` 0) or columns (`axis` 1) of x that a tap reaches.
    fn reached(&self, axis: usize) -> Vec<bool> {
        let Spec { h, w, kernel, stride, padding, dilation, .. } = self.spec;
        let mut reached = vec![false; [h, w][axis]];
        for i in 0..self.output()[axis] {
            for tap in 0..kernel[axis] {
                let at = (i * stride[axis] + tap * dilation[axis]).checked_sub(padding[axis]);
                if let Some(reached) = at.and_then(|at| reached.get_mut(at)) {
                    *reached = true;
                }
            }
        }
        reached
    }

    /// Multiply-adds of one pass, including padding.
    pub fn macs(&self) -> u64 {
        let [_, r, s, cg] = self.w_shape();
        self.y().shape.len() as u64 * (r * s * cg) as u64
    }
}
