//! Random residual networks: blocks with their layers in any order, some of them droppable, and additions of any
//! values.

use residuum::graph::{Builder, ConvOptions, Mode, ValueId};
use residuum::ops::pool::{Kind, Window};
use residuum::Result;

use super::{check_seeds, Case, CLASSES, EPS};
use crate::machine;
use crate::random::Random;

/// The channels of every value.
const CHANNELS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layer {
    Conv,
    Norm,
    Relu,
    Add,
    /// A block whose branch may be dropped.
    Block,
}
use Layer::{Add, Block, Conv, Norm, Relu};

/// The layers of droppable branches.
const BRANCHES: [&[Layer]; 9] = [
    &[Conv],
    &[Conv, Norm],
    &[Norm, Relu, Conv],
    &[Norm, Conv, Norm],
    &[Conv, Norm, Relu],
    &[Norm, Relu, Conv, Norm],
    &[Conv, Norm, Relu, Conv, Norm],
    &[Norm, Relu, Conv, Norm, Relu, Conv],
    &[Conv, Norm, Relu, Conv, Norm, Relu, Conv, Norm],
];

struct Value {
    id: ValueId,
    made_by: Layer,
    /// True if a layer reads it.
    read: bool,
}

struct Network {
    b: Builder,
    random: Random,
    values: Vec<Value>,
    layers: usize,
}

impl Network {
    fn new(seed: usize) -> Result<Self> {
        let (mut b, random) = (Builder::new(Mode::Train), Random::new(&format!("blocks {seed}")));
        // Several tiles of rows, or less than one.
        let input = b.input("input", if seed.is_multiple_of(2) { [2, 8, 9, CHANNELS] } else { [1, 3, 5, CHANNELS] });
        let mut network = Self { b, random, values: Vec::new(), layers: 0 };
        let id = network.layer(input, Conv)?;
        network.values.push(Value { id, made_by: Conv, read: false });
        Ok(network)
    }

    /// A value, mostly one that nothing reads.
    fn some(&mut self) -> usize {
        let open: Vec<usize> = (0..self.values.len()).filter(|&i| !self.values[i].read).collect();
        match self.random.below(4) {
            0 => self.random.below(self.values.len()),
            _ => open[self.random.below(open.len())],
        }
    }

    /// A layer to follow one of that kind, most often as in a network.
    fn next(&mut self, made_by: Layer) -> Layer {
        let of_20 = match made_by {
            Conv => [(14, Norm), (4, Add), (2, Relu)].as_slice(),
            Norm => &[(9, Relu), (7, Add), (3, Conv), (1, Block)],
            Relu => &[(15, Conv), (2, Add), (2, Block), (1, Norm)],
            Add | Block => &[(6, Relu), (4, Norm), (5, Conv), (2, Block), (3, Add)],
        };
        let mut left = self.random.below(20);
        for &(share, layer) in of_20 {
            if left < share {
                return layer;
            }
            left -= share;
        }
        unreachable!("the shares are 20")
    }

    /// A convolution, a batch norm or a ReLU of `x`.
    fn layer(&mut self, x: ValueId, layer: Layer) -> Result<ValueId> {
        self.layers += 1;
        let name = format!("layer{}", self.layers);
        match layer {
            Conv => {
                let size = [1, 1, 3][self.random.below(3)];
                let bias = self.random.below(8) == 0;
                let (kernel, padding) = ([size; 2], [size / 2; 2]);
                self.b.conv2d(&name, x, ConvOptions { k: CHANNELS, kernel, padding, bias, ..Default::default() })
            }
            Norm => self.b.batch_norm(&name, x, EPS),
            _ => self.b.relu(x),
        }
    }

    /// A block of `x` whose branch may be dropped.
    fn block(&mut self, x: ValueId) -> Result<ValueId> {
        let layers = BRANCHES[self.random.below(BRANCHES.len())];
        let first = self.layers;
        self.layers += layers.len();
        let sizes: Vec<usize> = layers.iter().map(|_| [1, 3][self.random.below(2)]).collect();
        let branch = self.b.branch(0.7, |b| {
            let mut y = x;
            for (i, (layer, size)) in layers.iter().zip(sizes).enumerate() {
                let name = format!("layer{}", first + 1 + i);
                let (kernel, padding) = ([size; 2], [size / 2; 2]);
                y = match layer {
                    Conv => b.conv2d(&name, y, ConvOptions { k: CHANNELS, kernel, padding, ..Default::default() })?,
                    Norm => b.batch_norm(&name, y, EPS)?,
                    _ => b.relu(y)?,
                };
            }
            Ok(y)
        })?;
        self.b.join(branch, x)
    }

    fn grow(&mut self) -> Result<()> {
        let i = self.some();
        let Value { id: x, made_by, .. } = self.values[i];
        let layer = self.next(made_by);
        let id = match layer {
            Add => {
                let j = self.some();
                self.values[j].read = true;
                self.b.add(x, self.values[j].id)?
            }
            Block => self.block(x)?,
            layer => self.layer(x, layer)?,
        };
        self.values[i].read = true;
        self.values.push(Value { id, made_by: layer, read: false });
        Ok(())
    }

    /// The sum of a linear layer over the mean pixel of each value that nothing reads.
    fn logits(&mut self) -> Result<ValueId> {
        let open: Vec<ValueId> = self.values.iter().filter(|v| !v.read).map(|v| v.id).collect();
        let mut logits: Option<ValueId> = None;
        for x in open {
            let mean = self.b.pool(x, Window::Adaptive([1; 2]), Kind::Average { count_padding: false })?;
            self.layers += 1;
            let part = self.b.linear(&format!("layer{}", self.layers), mean, CLASSES)?;
            logits = Some(logits.map_or(Ok(part), |sum| self.b.add(sum, part))?);
        }
        Ok(logits.unwrap())
    }
}

/// The network of `seed`; fails if only droppable branches read a value.
fn case(seed: usize) -> Result<Case> {
    let mut network = Network::new(seed)?;
    for _ in 0..5 + network.random.below(16) {
        network.grow()?;
    }
    let logits = network.logits()?;
    Case::new(network.b, logits, Vec::new(), &format!("blocks data {seed}"))
}

#[test]
fn random_residual_networks() {
    check_seeds(if machine::asked("RESIDUUM_LONG") { 1000 } else { 80 }, case);
}
