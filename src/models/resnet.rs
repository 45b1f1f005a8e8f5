//! Residual networks and their plain twins: He et al. 2015 and 2016, ResNeXt, wide networks. [`super`] has the names.
//!
//! `_average` is option A with 2x2 average pooling in place of subsampling, as in the stochastic-depth authors' code.
//!
//! The digits after `_survival` are p_L, the survival probability of the last block, without the decimal point: 05 is
//! 0.5, 08 0.8, 075 0.75. The probabilities decay linearly, p_l = 1 - l / L (1 - p_L) with l from 1 to L (Huang et al.
//! 2016, arXiv:1603.09382); with `_uniform` all are p_L.

use super::blocks::{average_pool, average_to, conv, max_pool, norm_relu, number, EPS};
use super::init::Scheme;
use super::{Architecture, Traits, CIFAR, IMAGENET};
use crate::graph::{Builder, ConvOptions, ValueId};
use crate::Result;

/// The ratio of a bottleneck's output channels to its planes.
const EXPANSION: usize = 4;

/// The first layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stem {
    /// 7x7 at stride 2, batch norm, ReLU, 3x3 max pooling at stride 2.
    ImageNet,
    /// 3x3, batch norm, ReLU.
    Cifar,
    /// 3x3 alone: the first unit has its own activation.
    CifarBare,
}

/// The residual branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1, 3x3 and 1x1 convolutions.
    Bottleneck {
        /// The groups of the 3x3 convolution.
        groups: usize,
        /// The channels of a group at 64 planes.
        width: usize,
        /// Puts the stride into the first 1x1, as in the paper, and not into the 3x3.
        stride_first: bool,
    },
}

/// The shortcut around the branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shortcut {
    /// None: a plain network.
    None,
    /// Option A: the identity; if the shape changes, subsampled and padded with zero channels at the end.
    Pad,
    /// Option A with 2x2 average pooling in place of subsampling.
    PadAverage,
    /// Option B: a 1x1 convolution if the shape changes.
    Project,
    /// Option C: a 1x1 convolution everywhere.
    ProjectAll,
}

/// The order of batch norm, ReLU and addition (He et al. 2016, figure 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// (a) conv BN ReLU conv BN (+) ReLU.
    Original,
    /// (b) conv BN ReLU conv (+) BN ReLU.
    BnAfterAdd,
    /// (c) conv BN ReLU conv BN ReLU (+).
    ReluBeforeAdd,
    /// (d) ReLU conv BN ReLU conv BN (+).
    ReluOnlyPreact,
    /// (e) BN ReLU conv BN ReLU conv (+).
    FullPreact,
}

/// Stochastic depth: the survival probabilities of the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Survival {
    /// The last block's, in thousandths.
    last: u32,
    /// All equal the last one's; else they decay linearly.
    uniform: bool,
}

impl Survival {
    /// The survival probability of block `l` of `blocks`, counted from 1.
    fn of(&self, l: usize, blocks: usize) -> f64 {
        let last = f64::from(self.last) / 1000.0;
        if self.uniform {
            last
        } else {
            1.0 - l as f64 / blocks as f64 * (1.0 - last)
        }
    }

    /// Splits `resnet20_cifar_survival05_uniform` into `resnet20_cifar` and its stochastic depth.
    fn split(name: &str) -> Option<(&str, Option<Self>)> {
        let Some((network, text)) = name.split_once("_survival") else { return Some((name, None)) };
        let (digits, uniform) = text.strip_suffix("_uniform").map_or((text, false), |digits| (digits, true));
        let known = (2..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let canonical = known && (digits.len() == 2 || !digits.ends_with('0'));
        let last: u32 = canonical.then(|| format!("{digits:0<4}").parse().ok()).flatten()?;
        (1..=1000).contains(&last).then_some((network, Some(Self { last, uniform })))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    stem: Stem,
    /// The channels of the stem and the planes of the first stage; each later stage doubles them and halves the size.
    planes: usize,
    block: Block,
    /// The number of units of each stage.
    stages: Vec<usize>,
    shortcut: Shortcut,
    order: Order,
    survival: Option<Survival>,
}

pub(super) fn parse(name: &str) -> Option<Spec> {
    let (name, survival) = Survival::split(name)?;
    let spec = parse_network(name)?;
    let droppable = survival.is_none() || spec.shortcut != Shortcut::None;
    droppable.then_some(Spec { survival, ..spec })
}

/// The network called `name`, without stochastic depth.
fn parse_network(name: &str) -> Option<Spec> {
    if let Some((body, suffix)) = name.split_once("_cifar") {
        return cifar(body, suffix);
    }
    let (kind, depth, suffix) = split_depth(name)?;
    match (kind, suffix) {
        ("resnet", "") => imagenet(depth, Shortcut::Project, bottleneck(1, 64, false)),
        ("resnet", "_v1") if depth >= 50 => imagenet(depth, Shortcut::Project, bottleneck(1, 64, true)),
        ("resnet", "_option_a") => imagenet(depth, Shortcut::Pad, bottleneck(1, 64, false)),
        ("resnet", "_option_c") => imagenet(depth, Shortcut::ProjectAll, bottleneck(1, 64, false)),
        ("plain", "") if depth < 50 => imagenet(depth, Shortcut::None, Block::Basic),
        ("resnext", _) if depth >= 50 => {
            let (groups, width) = cardinality(suffix)?;
            imagenet(depth, Shortcut::Project, bottleneck(groups, width, false))
        }
        ("wide_resnet", _) if depth >= 50 => {
            let factor = number(suffix.strip_prefix('_')?)?;
            imagenet(depth, Shortcut::Project, bottleneck(1, factor * 64, false))
        }
        _ => None,
    }
}

fn bottleneck(groups: usize, width: usize, stride_first: bool) -> Block {
    Block::Bottleneck { groups, width, stride_first }
}

/// Splits `resnext50_32x4d` into `resnext`, 50 and `_32x4d`.
fn split_depth(name: &str) -> Option<(&str, usize, &str)> {
    let start = name.find(|c: char| c.is_ascii_digit())?;
    let end = name[start..].find(|c: char| !c.is_ascii_digit()).map_or(name.len(), |i| start + i);
    Some((&name[..start], number(&name[start..end])?, &name[end..]))
}

/// Reads `_32x4d` as 32 groups of 4 channels.
fn cardinality(suffix: &str) -> Option<(usize, usize)> {
    let (groups, width) = suffix.strip_prefix('_')?.strip_suffix('d')?.split_once('x')?;
    Some((number(groups)?, number(width)?))
}

/// The table of He et al. 2015: two kinds of block, by depth.
fn imagenet(depth: usize, shortcut: Shortcut, deep: Block) -> Option<Spec> {
    let (stages, block) = match depth {
        18 => ([2, 2, 2, 2], Block::Basic),
        34 => ([3, 4, 6, 3], Block::Basic),
        50 => ([3, 4, 6, 3], deep),
        101 => ([3, 4, 23, 3], deep),
        152 => ([3, 8, 36, 3], deep),
        200 => ([3, 24, 36, 3], deep),
        _ => return None,
    };
    let stages = stages.to_vec();
    Some(Spec { stem: Stem::ImageNet, planes: 64, block, stages, shortcut, order: Order::Original, survival: None })
}

/// The networks for 32x32 images: `body` is the part of the name before `_cifar`, `suffix` the part after it.
fn cifar(body: &str, suffix: &str) -> Option<Spec> {
    let (kind, depth, form) = split_depth(body)?;
    let (stem, planes, block, (shortcut, order)) = match (kind, form) {
        ("plain", "") if suffix.is_empty() => (Stem::Cifar, 16, Block::Basic, (Shortcut::None, Order::Original)),
        ("resnet", "") => (Stem::Cifar, 16, Block::Basic, variant(suffix, Shortcut::Pad)?),
        ("resnet", "_bottleneck") => (Stem::Cifar, 16, bottleneck(1, 64, true), variant(suffix, Shortcut::Project)?),
        ("preact_resnet", "") if suffix.is_empty() => {
            (Stem::CifarBare, 16, bottleneck(1, 64, true), (Shortcut::Project, Order::FullPreact))
        }
        ("resnext", _) if suffix.is_empty() => {
            let (groups, width) = cardinality(form)?;
            (Stem::Cifar, 64, bottleneck(groups, width, false), (Shortcut::Project, Order::Original))
        }
        _ => return None,
    };
    let layers = if block == Block::Basic { 6 } else { 9 };
    let units = depth.checked_sub(2)? / layers;
    let spec = Spec { stem, planes, block, stages: vec![units; 3], shortcut, order, survival: None };
    (units > 0 && units * layers + 2 == depth).then_some(spec)
}

/// Reads a shortcut type and an activation order. [`Shortcut::ProjectAll`] is only defined for the original order.
fn variant(suffix: &str, default: Shortcut) -> Option<(Shortcut, Order)> {
    let kinds =
        [("_option_b", Shortcut::Project), ("_conv1x1", Shortcut::ProjectAll), ("_average", Shortcut::PadAverage)];
    let strip = |(text, shortcut)| Some((shortcut, suffix.strip_prefix::<&str>(text)?));
    let (shortcut, rest) = kinds.into_iter().find_map(strip).unwrap_or((default, suffix));
    let order = match rest {
        "" => Order::Original,
        "_bn_after_add" => Order::BnAfterAdd,
        "_relu_before_add" => Order::ReluBeforeAdd,
        "_relu_only_preact" => Order::ReluOnlyPreact,
        "_full_preact" => Order::FullPreact,
        _ => return None,
    };
    let defined = shortcut != Shortcut::ProjectAll || order == Order::Original;
    defined.then_some((shortcut, order))
}

impl Architecture for Spec {
    fn traits(&self) -> Traits {
        let data = if self.stem == Stem::ImageNet { IMAGENET } else { CIFAR };
        let stochastic = self.survival.is_some();
        Traits { data, stem: "conv1", head: "fc", scheme: Scheme::RESIDUAL, stochastic }
    }

    fn layers(&self, b: &mut Builder, x: ValueId, classes: usize) -> Result<ValueId> {
        let mut x = self.first_layers(b, x)?;
        let blocks = self.stages.iter().sum();
        let mut block = 0;
        for (stage, &units) in self.stages.iter().enumerate() {
            for unit in 0..units {
                block += 1;
                let stride = if stage > 0 && unit == 0 { 2 } else { 1 };
                let activated = stage == 0 && unit == 0 && self.stem != Stem::CifarBare;
                let (name, planes) = (format!("layer{}.{unit}", stage + 1), self.planes << stage);
                let survival = self.survival.map(|s| s.of(block, blocks));
                x = Unit { spec: self, name, planes, stride, activated, survival }.layers(b, x)?;
            }
        }
        x = match self.order {
            Order::FullPreact => norm_relu(b, "norm", x)?,
            Order::ReluOnlyPreact => b.relu(x)?,
            Order::Original | Order::BnAfterAdd | Order::ReluBeforeAdd => x,
        };
        x = average_to(b, x, 1)?;
        b.linear("fc", x, classes)
    }
}

impl Spec {
    fn first_layers(&self, b: &mut Builder, x: ValueId) -> Result<ValueId> {
        let (kernel, stride) = if self.stem == Stem::ImageNet { (7, 2) } else { (3, 1) };
        let x = b.conv2d("conv1", x, conv(self.planes, kernel, stride))?;
        match self.stem {
            Stem::ImageNet => norm_relu(b, "bn1", x).and_then(|x| max_pool(b, x, 3, 2, 1)),
            Stem::Cifar => norm_relu(b, "bn1", x),
            Stem::CifarBare => Ok(x),
        }
    }
}

/// A residual unit: a branch, a shortcut and their sum.
struct Unit<'a> {
    spec: &'a Spec,
    /// The prefix of the names of its layers.
    name: String,
    planes: usize,
    stride: usize,
    /// True if its input is already activated: the first unit after a stem with an activation.
    activated: bool,
    /// The survival probability of the branch, if it can be dropped.
    survival: Option<f64>,
}

impl Unit<'_> {
    fn layers(&self, b: &mut Builder, x: ValueId) -> Result<ValueId> {
        let y = match self.survival {
            Some(survival) => self.droppable(b, x, survival)?,
            None => self.sum(b, x)?,
        };
        match self.spec.order {
            Order::Original => b.relu(y),
            Order::BnAfterAdd => norm_relu(b, &self.layer("bn", self.convolutions().len()), y),
            Order::ReluBeforeAdd | Order::ReluOnlyPreact | Order::FullPreact => Ok(y),
        }
    }

    /// The sum of branch and shortcut, or the branch alone.
    fn sum(&self, b: &mut Builder, x: ValueId) -> Result<ValueId> {
        let entry = self.entry(b, x)?;
        let branch = self.branch(b, entry)?;
        // The shortcut of a unit that changes the shape starts from the activated input, in every order.
        let from = if self.changes_shape(b, x) { entry } else { x };
        match self.shortcut(b, from)? {
            Some(shortcut) => b.add(branch, shortcut),
            None => Ok(branch),
        }
    }

    /// The sum with a branch that may be dropped. An activation that the shortcut reads stays outside the branch.
    fn droppable(&self, b: &mut Builder, x: ValueId, survival: f64) -> Result<ValueId> {
        let shared = if self.changes_shape(b, x) { Some(self.entry(b, x)?) } else { None };
        let branch = b.branch(survival, |b| {
            let entry = shared.map_or_else(|| self.entry(b, x), Ok)?;
            self.branch(b, entry)
        })?;
        let shortcut = self.shortcut(b, shared.unwrap_or(x))?.unwrap_or(x);
        b.join(branch, shortcut)
    }

    /// The input of the branch: activated in the pre-activation orders.
    fn entry(&self, b: &mut Builder, x: ValueId) -> Result<ValueId> {
        match self.spec.order {
            _ if self.activated => Ok(x),
            Order::FullPreact => norm_relu(b, &self.layer("bn", 1), x),
            Order::ReluOnlyPreact => b.relu(x),
            Order::Original | Order::BnAfterAdd | Order::ReluBeforeAdd => Ok(x),
        }
    }

    /// The convolutions with their batch norms and ReLUs.
    fn branch(&self, b: &mut Builder, mut x: ValueId) -> Result<ValueId> {
        let convolutions = self.convolutions();
        let last = convolutions.len();
        for (i, options) in (1..).zip(convolutions) {
            x = b.conv2d(&self.layer("conv", i), x, options)?;
            x = match self.spec.order {
                Order::FullPreact if i < last => norm_relu(b, &self.layer("bn", i + 1), x)?,
                Order::FullPreact => x,
                Order::BnAfterAdd if i == last => x,
                Order::Original | Order::ReluOnlyPreact if i == last => b.batch_norm(&self.layer("bn", i), x, EPS)?,
                _ => norm_relu(b, &self.layer("bn", i), x)?,
            };
        }
        Ok(x)
    }

    fn convolutions(&self) -> Vec<ConvOptions> {
        let (planes, stride) = (self.planes, self.stride);
        match self.spec.block {
            Block::Basic => vec![conv(planes, 3, stride), conv(planes, 3, 1)],
            Block::Bottleneck { groups, width, stride_first } => {
                let k = planes * width / 64 * groups;
                let [first, second] = if stride_first { [stride, 1] } else { [1, stride] };
                vec![conv(k, 1, first), ConvOptions { groups, ..conv(k, 3, second) }, conv(planes * EXPANSION, 1, 1)]
            }
        }
    }

    fn channels(&self) -> usize {
        match self.spec.block {
            Block::Basic => self.planes,
            Block::Bottleneck { .. } => self.planes * EXPANSION,
        }
    }

    fn changes_shape(&self, b: &Builder, x: ValueId) -> bool {
        self.stride != 1 || b.shape(x)[3] != self.channels()
    }

    /// The value to add to the branch; `None` in a plain network.
    fn shortcut(&self, b: &mut Builder, x: ValueId) -> Result<Option<ValueId>> {
        let changes = self.changes_shape(b, x);
        Ok(Some(match self.spec.shortcut {
            Shortcut::None => return Ok(None),
            Shortcut::ProjectAll => self.projection(b, x)?,
            Shortcut::Project if changes => self.projection(b, x)?,
            Shortcut::Pad if changes => b.shortcut(x, self.channels(), self.stride, 0)?,
            Shortcut::PadAverage if changes => {
                let x = if self.stride == 1 { x } else { average_pool(b, x, self.stride)? };
                b.shortcut(x, self.channels(), 1, 0)?
            }
            Shortcut::Pad | Shortcut::PadAverage | Shortcut::Project => x,
        }))
    }

    /// A 1x1 convolution. Its output is normalised, unless its input is (full pre-activation).
    fn projection(&self, b: &mut Builder, x: ValueId) -> Result<ValueId> {
        let y = b.conv2d(&self.layer("downsample.", 0), x, conv(self.channels(), 1, self.stride))?;
        match self.spec.order {
            Order::FullPreact => Ok(y),
            _ => b.batch_norm(&self.layer("downsample.", 1), y, EPS),
        }
    }

    fn layer(&self, kind: &str, i: usize) -> String {
        format!("{}.{kind}{i}", self.name)
    }
}
