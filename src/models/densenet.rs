//! Densely connected networks (Huang et al. 2017, arXiv:1608.06993), with torchvision's tensor names. [`super`] has
//! the names of the networks.
//!
//! A layer is BN ReLU conv3x3 to k channels, with B (bottlenecks) preceded by BN ReLU conv1x1 to 4k; its input is the
//! channels of all earlier layers of its block. A transition is BN ReLU conv1x1 and 2x2 average pooling; with C
//! (compression) it halves the channels. The ImageNet networks have B and C. The first convolution has 2k channels, or
//! 16 in the CIFAR networks without B and C: this reproduces the published counts.
//!
//! Dropout (0.2 after each convolution, which the paper uses without augmentation only) is left out.

use super::blocks::{average_to, conv, max_pool, norm_relu, number};
use super::init::Scheme;
use super::{Architecture, Traits, CIFAR, IMAGENET};
use crate::graph::{Builder, ValueId};
use crate::ops::pool::{Kind, Window};
use crate::Result;

/// The ratio of a bottleneck's output channels to the growth rate.
const BOTTLENECK: usize = 4;

/// The first layers and the default input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stem {
    /// 7x7 at stride 2, batch norm, ReLU, 3x3 max pooling at stride 2.
    ImageNet,
    /// 3x3 alone: the first layer has its own activation.
    Cifar,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    stem: Stem,
    /// Channels of the first convolution.
    first: usize,
    /// Growth rate: the channels that a layer adds.
    growth: usize,
    /// B: a layer has a 1x1 convolution before its 3x3.
    bottleneck: bool,
    /// C: a transition halves the channels.
    compression: bool,
    /// Layers of each block.
    blocks: Vec<usize>,
}

pub(super) fn parse(name: &str) -> Option<Spec> {
    let rest = name.strip_prefix("densenet")?;
    if let Some(body) = rest.strip_suffix("_cifar") {
        return cifar(body);
    }
    let (growth, blocks) = match rest {
        "121" => (32, [6, 12, 24, 16]),
        "161" => (48, [6, 12, 36, 24]),
        "169" => (32, [6, 12, 32, 32]),
        "201" => (32, [6, 12, 48, 32]),
        "264" => (32, [6, 12, 64, 48]),
        _ => return None,
    };
    let (first, blocks) = (2 * growth, blocks.to_vec());
    Some(Spec { stem: Stem::ImageNet, first, growth, bottleneck: true, compression: true, blocks })
}

/// The networks for 32x32 images: `_bc100_k12` of `densenet_bc100_k12_cifar`.
fn cifar(body: &str) -> Option<Spec> {
    let (form, growth) = body.split_once("_k")?;
    let digits = form.find(|c: char| c.is_ascii_digit())?;
    let (bottleneck, compression) = match &form[..digits] {
        "" => (false, false),
        "_b" => (true, false),
        "_c" => (false, true),
        "_bc" => (true, true),
        _ => return None,
    };
    let (depth, growth) = (number(&form[digits..])?, number(growth)?);
    let (layers, convolutions) = (depth.checked_sub(4)?, if bottleneck { 6 } else { 3 });
    if layers == 0 || layers % convolutions != 0 {
        return None;
    }
    let first = if bottleneck && compression { 2 * growth } else { 16 };
    let blocks = vec![layers / convolutions; 3];
    Some(Spec { stem: Stem::Cifar, first, growth, bottleneck, compression, blocks })
}

impl Architecture for Spec {
    fn traits(&self) -> Traits {
        let data = if self.stem == Stem::ImageNet { IMAGENET } else { CIFAR };
        Traits { data, stem: "features.conv0", head: "classifier", scheme: Scheme::DENSE, stochastic: false }
    }

    fn layers(&self, b: &mut Builder, x: ValueId, classes: usize) -> Result<ValueId> {
        let mut x = match self.stem {
            Stem::ImageNet => {
                let x = b.conv2d("features.conv0", x, conv(self.first, 7, 2))?;
                let x = norm_relu(b, "features.norm0", x)?;
                max_pool(b, x, 3, 2, 1)?
            }
            Stem::Cifar => b.conv2d("features.conv0", x, conv(self.first, 3, 1))?,
        };
        for (block, &layers) in (1..).zip(&self.blocks) {
            for layer in 1..=layers {
                let new = self.layer(b, &format!("features.denseblock{block}.denselayer{layer}"), x)?;
                x = b.concat(&[x, new])?;
            }
            if block < self.blocks.len() {
                x = self.transition(b, &format!("features.transition{block}"), x)?;
            }
        }
        let last = if self.stem == Stem::ImageNet { "features.norm5" } else { "features.norm_final" };
        x = norm_relu(b, last, x)?;
        x = average_to(b, x, 1)?;
        b.linear("classifier", x, classes)
    }
}

impl Spec {
    /// A dense layer: the channels that it adds to `x`.
    fn layer(&self, b: &mut Builder, name: &str, x: ValueId) -> Result<ValueId> {
        let x = norm_relu(b, &format!("{name}.norm1"), x)?;
        if !self.bottleneck {
            return b.conv2d(&format!("{name}.conv1"), x, conv(self.growth, 3, 1));
        }
        let x = b.conv2d(&format!("{name}.conv1"), x, conv(BOTTLENECK * self.growth, 1, 1))?;
        let x = norm_relu(b, &format!("{name}.norm2"), x)?;
        b.conv2d(&format!("{name}.conv2"), x, conv(self.growth, 3, 1))
    }

    /// The transition between two blocks.
    fn transition(&self, b: &mut Builder, name: &str, x: ValueId) -> Result<ValueId> {
        let c = b.shape(x)[3];
        let k = if self.compression { c / 2 } else { c };
        let x = norm_relu(b, &format!("{name}.norm"), x)?;
        let x = b.conv2d(&format!("{name}.conv"), x, conv(k, 1, 1))?;
        let window = Window::Sliding { kernel: [2; 2], stride: [2; 2], padding: [0; 2], ceil: false };
        b.pool(x, window, Kind::Average { count_padding: false })
    }
}
