//! `alexnet`, as in torchvision: the single-column network of Krizhevsky 2014, without local response normalisation.
//!
//! Dropout (0.5 before the first two linear layers, in training only) is left out.

use super::blocks::{average_to, conv, max_pool};
use super::init::Scheme;
use super::{Architecture, Traits, IMAGENET};
use crate::graph::{Builder, ConvOptions, ValueId};
use crate::Result;

/// A layer of the convolutional part.
enum Layer {
    /// A convolution with bias and a ReLU: torch's index, output channels, kernel, stride, padding.
    Conv(usize, usize, usize, usize, usize),
    /// 3x3 max pooling at stride 2.
    Pool,
}

const FEATURES: [Layer; 8] = [
    Layer::Conv(0, 64, 11, 4, 2),
    Layer::Pool,
    Layer::Conv(3, 192, 5, 1, 2),
    Layer::Pool,
    Layer::Conv(6, 384, 3, 1, 1),
    Layer::Conv(8, 256, 3, 1, 1),
    Layer::Conv(10, 256, 3, 1, 1),
    Layer::Pool,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spec;

pub(super) fn parse(name: &str) -> Option<Spec> {
    (name == "alexnet").then_some(Spec)
}

impl Architecture for Spec {
    fn traits(&self) -> Traits {
        let (stem, head) = ("features.0", "classifier.6");
        Traits { data: IMAGENET, stem, head, scheme: Scheme::TORCH, stochastic: false }
    }

    fn layers(&self, b: &mut Builder, mut x: ValueId, classes: usize) -> Result<ValueId> {
        for layer in FEATURES {
            x = match layer {
                Layer::Conv(index, k, kernel, stride, padding) => {
                    let options = ConvOptions { padding: [padding; 2], bias: true, ..conv(k, kernel, stride) };
                    let y = b.conv2d(&format!("features.{index}"), x, options)?;
                    b.relu(y)?
                }
                Layer::Pool => max_pool(b, x, 3, 2, 0)?,
            };
        }
        x = average_to(b, x, 6)?;
        for name in ["classifier.1", "classifier.4"] {
            x = b.linear(name, x, 4096)?;
            x = b.relu(x)?;
        }
        b.linear("classifier.6", x, classes)
    }
}
