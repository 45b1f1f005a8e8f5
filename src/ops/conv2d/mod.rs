//! Two-dimensional convolution: any kernel size, stride, padding, dilation and number of groups.
//!
//! With `g` the group of output channel `k`, and `Cg = C / groups`:
//!
//! ```text
//! fwd    y[n,p,q,k]  = sum_{r,s,c} x[n,h,w, g*Cg + c] * w[k,r,s,c]
//! bwd_x  dx[n,h,w,c] = sum_{r,s,k} dy[n,p,q,k] * w[k,r,s,c]        over the p, q that read (h, w)
//! bwd_w  dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n,h,w, g*Cg + c]     in f32
//!        where h = p*stride_h - pad_h + r*dilation_h and w = q*stride_w - pad_w + s*dilation_w
//! ```
//!
//! An operand may be transformed while it is [loaded](super::load), and what is done to a result before it is
//! [stored](super::store) comes from the ops behind it: batch norms and ReLUs next to a convolution cost no pass over
//! memory of their own.
//!
//! A NaN or an infinity reaches the sums that have it as a factor, and no others: also where kernels compute several
//! narrow groups as one. But for the zeros beside an image: as in torch it depends on the way whether they are
//! multiplied (the kernels do it, and on the CPU fwd and bwd_w, unless 1x1 without padding; the reference does not). So
//! an infinite weight can make NaN of all of the channel that it leads to, y's in fwd and dx's in bwd_x, and an
//! infinite dy of all of its output channel's dw.

mod host;
mod launch;
mod pass;
mod reference;

pub(crate) use self::launch::kernels;
pub use self::launch::Plan;
pub use self::pass::{Bwd, BwdBias, BwdW, BwdX, End, Fwd, Node, Pass};

use crate::tensor::TensorType;
use crate::{Error, Result};

/// What a convolution is; all fields in elements.
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
    /// Zero rows above and below, zero columns left and right.
    pub padding: [usize; 2],
    /// Distance between kernel taps; 1 is dense.
    pub dilation: [usize; 2],
    /// Groups; channels of one group see only their own.
    pub groups: usize,
}

impl Spec {
    /// What it is in a few words: `n256 56x56 c64 k256 r3 s3 stride 2 pad 1 groups 32`; what is usual is left out.
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

/// A convolution whose shapes have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2d {
    spec: Spec,
    p: usize,
    q: usize,
}

impl Conv2d {
    /// Checks `spec`. Fails where an extent, a stride or a dilation is 0, where the groups do not divide the channels,
    /// where the kernel is larger than the padded input, or where a tensor has 2^31 elements or more in one image.
    pub fn new(spec: Spec) -> Result<Self> {
        let Spec { n, h, w, c, k, kernel: [r, s], stride, padding, dilation, groups } = spec;
        let bad = |problem: String| Err(Error::invalid("conv2d", problem));
        if [n, h, w, c, k, r, s, groups, stride[0], stride[1], dilation[0], dilation[1]].contains(&0) {
            return bad(format!("{spec:?} has a zero where at least 1 is needed"));
        }
        if c % groups != 0 || k % groups != 0 {
            return bad(format!("{groups} groups do not divide {c} input and {k} output channels"));
        }
        let extent = |size: usize, taps: usize, i: usize| -> Option<usize> {
            let span = dilation[i].checked_mul(taps - 1)?.checked_add(1)?;
            let padded = padding[i].checked_mul(2)?.checked_add(size)?;
            Some(padded.checked_sub(span)? / stride[i] + 1)
        };
        let (Some(p), Some(q)) = (extent(h, r, 0), extent(w, s, 1)) else {
            return bad(format!(
                "a {r}x{s} kernel of dilation {dilation:?} does not fit an input of {h}x{w} padded by {padding:?}"
            ));
        };
        let fits = |dims: &[usize]| {
            dims.iter().try_fold(1usize, |a, &d| a.checked_mul(d)).is_some_and(|len| len <= i32::MAX as usize)
        };
        if !fits(&[h, w, c])
            || !fits(&[p, q, k])
            || !fits(&[k, r, s, c / groups])
            || !fits(&[n, h, w])
            || !fits(&[n, p, q])
        {
            return bad(format!("{spec:?} is larger than 2^31 - 1 elements an image, weights or pixels"));
        }
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

    /// The shape of `w`: `[K,R,S,C/groups]`.
    pub fn w_shape(&self) -> [usize; 4] {
        let Spec { k, kernel: [r, s], c, groups, .. } = self.spec;
        [k, r, s, c / groups]
    }

    /// `y[N,P,Q,K]`.
    pub fn y(&self) -> TensorType {
        TensorType::real([self.spec.n, self.p, self.q, self.spec.k])
    }

    /// For a kernel that covers the image: the same sums as a 1x1 convolution over images of one pixel.
    pub(super) fn flattened(&self) -> Self {
        let Spec { h, w, c, .. } = self.spec;
        debug_assert_eq!((self.spec.kernel, self.p, self.q), ([h, w], 1, 1));
        let spec = Spec { h: 1, w: 1, c: h * w * c, kernel: [1, 1], ..self.spec };
        Self { spec, ..*self }
    }

    /// Whether a forward pass can load the end of a residual block ([`Load::Sum`](super::load::Load)): each element of
    /// x is loaded by the tiles of one row, in pieces of 8 channels. That is so for 1x1 kernels with stride 1, no
    /// padding, one group and a multiple of 8 channels.
    pub fn can_load_sum(&self) -> bool {
        let s = self.spec;
        s.kernel == [1, 1] && s.stride == [1, 1] && s.padding == [0, 0] && s.groups == 1 && s.c.is_multiple_of(8)
    }

    /// Which rows (`axis` 0) or columns (`axis` 1) of x a tap of the kernel reaches.
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

    /// Multiply-adds of one pass, padding counted.
    pub fn macs(&self) -> u64 {
        let [_, r, s, cg] = self.w_shape();
        self.y().shape.len() as u64 * (r * s * cg) as u64
    }
}
