//! The loads and masks of the fused kernels: their operands, bound, and their parameters.

use super::bind::{int, Matrix};
use super::fused::params::{DataGradientParams, ForwardParams, WeightGradientParams, ACTIVATE, MASK, SCALED};
use super::product::{address, flag, stride, Bound};
use crate::device::View;
use crate::ops::load::{Affine, Load};
use crate::ops::store::{sign_bytes, Mask, Normalised};
use crate::ops::Arg;
use crate::tensor::DType;
use crate::{Error, Result};

/// Binds the operands besides the product's own, and collects them.
#[derive(Default)]
pub struct Reader<'a> {
    pub read: Vec<Matrix<'a>>,
}

/// The scale, the shift and the flag of the ReLU of an x loaded as an activation.
#[derive(Clone, Copy, Default)]
pub struct Activating<'a> {
    pub scale: Option<Matrix<'a>>,
    pub shift: Option<Matrix<'a>>,
    flag: i32,
}

/// The operands of a correction, if any.
#[derive(Default)]
pub struct Correcting<'a> {
    y: Option<Matrix<'a>>,
    a: Option<Matrix<'a>>,
    b: Option<Matrix<'a>>,
    c: Option<Matrix<'a>>,
}

/// The operands of a mask, if any.
#[derive(Default)]
pub struct Masking<'a> {
    bits: Option<Matrix<'a>>,
    y: [Option<Matrix<'a>>; 2],
    mean: [Option<Matrix<'a>>; 2],
    scale: Option<Matrix<'a>>,
    shift: Option<Matrix<'a>>,
    gate: Option<Matrix<'a>>,
    flags: i32,
}

impl<'a> Reader<'a> {
    /// Binds per-channel f32 numbers.
    fn numbers(&mut self, what: &str, arg: &'a Arg, channels: usize) -> Result<Matrix<'a>> {
        self.read.push(Matrix::dense(what, &arg.view, [1, channels], 4)?);
        Ok(self.read[self.read.len() - 1])
    }

    /// Binds an activation with elements of `elem` bytes.
    pub fn pixels(&mut self, what: &str, arg: &'a Arg, dims: [usize; 2], elem: usize) -> Result<Matrix<'a>> {
        self.read.push(Matrix::pixels(what, arg, dims, elem)?);
        Ok(self.read[self.read.len() - 1])
    }

    /// Binds a scale and a shift.
    pub fn affine(&mut self, affine: Option<Affine<&'a Arg>>, channels: usize) -> Result<Activating<'a>> {
        let Some(Affine { scale, shift }) = affine else { return Ok(Activating::default()) };
        let (scale, shift) = (self.numbers("scale", scale, channels)?, self.numbers("shift", shift, channels)?);
        Ok(Activating { scale: Some(scale), shift: Some(shift), flag: 0 })
    }

    /// Binds the operands of the load of x.
    pub fn activating(&mut self, load: Load<&'a Arg>, channels: usize) -> Result<Activating<'a>> {
        match load {
            Load::AsIs => Ok(Activating::default()),
            Load::Affine { affine, relu } => {
                Ok(Activating { flag: flag(ACTIVATE, relu), ..self.affine(Some(affine), channels)? })
            }
            _ => Err(Error::unsupported("conv2d", "an x that is neither as it is nor a batch norm's input")),
        }
    }

    /// Binds the operands of the load of dy.
    pub fn correcting(&mut self, load: Load<&'a Arg>, dims: [usize; 2], dtype: DType) -> Result<Correcting<'a>> {
        match load {
            Load::AsIs => Ok(Correcting::default()),
            Load::Corrected { y, a, b, c } => Ok(Correcting {
                y: Some(self.pixels("y", y, dims, dtype.bytes())?),
                a: a.map(|a| self.numbers("a", a, dims[1])).transpose()?,
                b: Some(self.numbers("b", b, dims[1])?),
                c: Some(self.numbers("c", c, dims[1])?),
            }),
            _ => Err(Error::unsupported("conv2d", "a load of dy as an activation")),
        }
    }

    /// Binds the operands of the mask of dx.
    pub fn masking(&mut self, mask: Option<Mask<&'a Arg>>, dims: [usize; 2], dtype: DType) -> Result<Masking<'a>> {
        let ([rows, channels], mut masking) = (dims, Masking::default());
        let Some(mask) = mask else { return Ok(masking) };
        for (i, Normalised { y, mean }) in mask.normalised().into_iter().enumerate() {
            masking.y[i] = Some(self.pixels("y of the mask", y, dims, dtype.bytes())?);
            masking.mean[i] = Some(self.numbers("mean", mean, channels)?);
        }
        match mask {
            Mask::Affine { scale, shift, relu, scaled, .. } => {
                masking.scale = Some(self.numbers("scale", scale, channels)?);
                masking.shift = Some(self.numbers("shift", shift, channels)?);
                masking.flags = flag(MASK, relu) | flag(SCALED, scaled);
            }
            Mask::Signs { bits, gate, .. } => {
                masking.bits = Some(self.pixels("signs", bits, [rows, sign_bytes(channels)], 1)?);
                masking.gate = gate.map(|gate| self.numbers("gate", gate, 1)).transpose()?;
            }
        }
        Ok(masking)
    }
}

impl<'a> Activating<'a> {
    /// Adds the operands that are loaded with x to `bound`.
    pub fn beside(&self, bound: &mut Bound<'a>) {
        bound.beside.x.extend([self.scale, self.shift].into_iter().flatten());
    }
}

impl<'a> Correcting<'a> {
    /// Adds the operands that are loaded with dy to `bound`.
    pub fn beside(&self, bound: &mut Bound<'a>) {
        bound.beside.y = [self.y, self.a, self.b, self.c].into_iter().flatten().collect();
    }
}

impl<'a> Masking<'a> {
    /// Adds the operands that are read as dx is stored to `bound`.
    pub fn beside(&self, bound: &mut Bound<'a>) {
        bound.beside.out.extend(self.y.into_iter().flatten());
    }
}

pub fn forward(bound: &Bound<'_>, x: &Activating<'_>, tiles: &[View]) -> Result<ForwardParams> {
    let mut gather = bound.gather_params()?;
    gather.flags |= x.flag;
    Ok(ForwardParams {
        gather,
        x_scale: address(x.scale),
        x_shift: address(x.shift),
        mean: tiles.first().map_or(0, View::address),
        m2: tiles.get(1).map_or(0, View::address),
    })
}

pub fn data_gradient(
    bound: &Bound<'_>,
    correcting: &Correcting<'_>,
    masking: &Masking<'_>,
    tiles: &[View],
) -> Result<DataGradientParams> {
    let mut gather = bound.gather_params()?;
    gather.flags |= masking.flags;
    (gather.scale, gather.shift) = (address(masking.scale), address(masking.shift));
    let formed = bound.formed();
    let m_tiles = formed.tiles()[0];
    Ok(DataGradientParams {
        gather,
        y: address(correcting.y),
        a: address(correcting.a),
        b: address(correcting.b),
        c: address(correcting.c),
        bits: address(masking.bits),
        y0: address(masking.y[0]),
        y1: address(masking.y[1]),
        mean0: address(masking.mean[0]),
        mean1: address(masking.mean[1]),
        sums: tiles.first().map_or(0, View::address),
        gate: address(masking.gate),
        y_stride: stride(correcting.y),
        bits_stride: stride(masking.bits),
        y0_stride: stride(masking.y[0]),
        y1_stride: stride(masking.y[1]),
        m_tiles: int(m_tiles)?,
        bands: int(m_tiles * formed.shape.residues)?,
    })
}

pub fn weight_gradient(
    bound: &Bound<'_>,
    correcting: &Correcting<'_>,
    activating: &Activating<'_>,
) -> Result<WeightGradientParams> {
    let mut weight = bound.weight_params()?;
    weight.flags |= activating.flag;
    Ok(WeightGradientParams {
        weight,
        y: address(correcting.y),
        a: address(correcting.a),
        b: address(correcting.b),
        c: address(correcting.c),
        x_scale: address(activating.scale),
        x_shift: address(activating.shift),
        y_stride: stride(correcting.y),
        unused: 0,
    })
}
