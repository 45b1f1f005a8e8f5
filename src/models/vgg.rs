//! VGG (Simonyan and Zisserman 2014) as in torchvision: `vgg{11|13|16|19}[_bn]`.
//!
//! Dropout (0.5 after the first two linear layers, in training only) is left out.

use super::blocks::{average_to, conv, max_pool, norm_relu};
use super::init::Scheme;
use super::{Architecture, Traits, IMAGENET};
use crate::graph::{Builder, ConvOptions, ValueId};
use crate::Result;

/// Output channels of the 3x3 convolutions of each stage.
const WIDTHS: [usize; 5] = [64, 128, 256, 512, 512];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    /// The convolutions of each stage, which a pooling ends.
    stages: [usize; 5],
    /// Adds a batch norm after each convolution.
    norm: bool,
}

pub(super) fn parse(name: &str) -> Option<Spec> {
    let depth = name.strip_prefix("vgg")?;
    let (depth, norm) = depth.strip_suffix("_bn").map_or((depth, false), |d| (d, true));
    let stages = match depth {
        "11" => [1, 1, 2, 2, 2],
        "13" => [2, 2, 2, 2, 2],
        "16" => [2, 2, 3, 3, 3],
        "19" => [2, 2, 4, 4, 4],
        _ => return None,
    };
    Some(Spec { stages, norm })
}

impl Architecture for Spec {
    fn traits(&self) -> Traits {
        let (stem, head) = ("features.0", "classifier.6");
        Traits { data: IMAGENET, stem, head, scheme: Scheme::VGG, stochastic: false }
    }

    fn layers(&self, b: &mut Builder, mut x: ValueId, classes: usize) -> Result<ValueId> {
        // Torch counts every layer of the sequence: convolution, (batch norm,) ReLU, pooling.
        let mut index = 0;
        for (convolutions, k) in self.stages.into_iter().zip(WIDTHS) {
            for _ in 0..convolutions {
                x = b.conv2d(&format!("features.{index}"), x, ConvOptions { bias: true, ..conv(k, 3, 1) })?;
                let norm = format!("features.{}", index + 1);
                x = if self.norm { norm_relu(b, &norm, x)? } else { b.relu(x)? };
                index += if self.norm { 3 } else { 2 };
            }
            x = max_pool(b, x, 2, 2, 0)?;
            index += 1;
        }
        x = average_to(b, x, 7)?;
        for name in ["classifier.0", "classifier.3"] {
            x = b.linear(name, x, 4096)?;
            x = b.relu(x)?;
        }
        b.linear("classifier.6", x, classes)
    }
}
