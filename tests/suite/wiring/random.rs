//! Random graphs: layers of every kind, each on an earlier value, with named outputs and droppable branches.

use residuum::graph::{Builder, ConvOptions, Mode, ValueId};
use residuum::ops::pool::{Kind, Window};
use residuum::Result;

use super::{check_seeds, Case, CLASSES, EPS};
use crate::machine;
use crate::random::Random;

/// The most channels of a concatenation.
const MOST_CHANNELS: usize = 48;

/// A graph that grows.
struct Growth {
    b: Builder,
    mode: Mode,
    random: Random,
    values: Vec<ValueId>,
    /// For each value, true if a layer reads it.
    read: Vec<bool>,
    outputs: Vec<String>,
    layers: usize,
}

impl Growth {
    fn new(seed: &str, mode: Mode) -> Self {
        let (mut b, mut random) = (Builder::new(mode), Random::new(seed));
        let mut one_of = |extents: &[usize]| extents[random.below(extents.len())];
        let shape =
            [one_of(&[1, 2, 3]), one_of(&[1, 2, 3, 5, 7]), one_of(&[1, 2, 4, 5, 7]), one_of(&[1, 2, 3, 3, 4, 5, 8])];
        let values = vec![b.input("input", shape)];
        Self { b, mode, random, values, read: vec![false], outputs: Vec::new(), layers: 0 }
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.random.below(all.len())]
    }

    fn name(&mut self) -> String {
        self.layers += 1;
        format!("layer{}", self.layers)
    }

    /// A value, mostly a late one or one that nothing reads.
    fn some(&mut self) -> usize {
        let n = self.values.len();
        let open: Vec<usize> = (0..n).filter(|&i| !self.read[i]).collect();
        match self.random.below(4) {
            0 => self.random.below(n),
            1 => n - 1 - self.random.below(n.min(4)),
            2 => n - 1,
            _ => self.one_of(&open),
        }
    }

    /// Another value whose N, H, W, C satisfy `fits`, or `i` itself.
    fn partner(&mut self, i: usize, fits: impl Fn([usize; 4]) -> bool) -> usize {
        let fitting: Vec<usize> =
            (0..self.values.len()).filter(|&j| j == i || fits(self.b.shape(self.values[j]))).collect();
        self.one_of(&fitting)
    }

    /// Adds a layer, unless it does not fit the value drawn for it.
    fn grow(&mut self) {
        let i = self.some();
        let x = self.values[i];
        let mut read = vec![i];
        let y = match self.random.below(20) {
            0..=5 => self.convolution(x),
            6..=10 => self.norm(x),
            11..=13 => self.b.relu(x).ok(),
            14 | 15 => {
                let shape = self.b.shape(x);
                read.push(self.partner(i, |other| other == shape));
                self.b.add(x, self.values[read[1]]).ok()
            }
            16 | 17 => {
                let pixels = self.b.shape(x);
                for _ in 0..=self.random.below(2) {
                    read.push(self.partner(i, |other| other[..3] == pixels[..3]));
                }
                self.concatenation(&read)
            }
            18 => self.pool(x),
            _ if self.random.below(2) == 0 => self.shortcut(x),
            _ => self.droppable(x),
        };
        let Some(y) = y else { return };
        read.into_iter().for_each(|i| self.read[i] = true);
        self.values.push(y);
        self.read.push(false);
    }

    fn convolution(&mut self, x: ValueId) -> Option<ValueId> {
        let [_, h, w, c] = self.b.shape(x);
        let divisors: Vec<usize> = (1..=c).filter(|g| c % g == 0).collect();
        let groups = if self.random.below(4) == 0 { self.one_of(&divisors) } else { 1 };
        let size = self.one_of(&[1, 1, 2, 3, 3]).min(h).min(w);
        let dilation = if size == 3 && h.min(w) >= 5 { 1 + self.random.below(2) } else { 1 };
        let options = ConvOptions {
            k: self.one_of(&[1usize, 2, 3, 4, 5, 8, 8, 12, 16]).next_multiple_of(groups),
            kernel: [size; 2],
            stride: [self.one_of(&[1, 1, 1, 2]); 2],
            padding: [size / 2 * dilation; 2],
            dilation: [dilation; 2],
            groups,
            bias: self.random.below(6) == 0,
        };
        let name = self.name();
        self.b.conv2d(&name, x, options).ok()
    }

    fn norm(&mut self, x: ValueId) -> Option<ValueId> {
        let [n, h, w, _] = self.b.shape(x);
        if n * h * w == 1 && self.mode == Mode::Train {
            return None;
        }
        let name = self.name();
        self.b.batch_norm(&name, x, EPS).ok()
    }

    fn concatenation(&mut self, parts: &[usize]) -> Option<ValueId> {
        let parts: Vec<ValueId> = parts.iter().map(|&i| self.values[i]).collect();
        let channels: usize = parts.iter().map(|&part| self.b.shape(part)[3]).sum();
        (channels <= MOST_CHANNELS).then(|| self.b.concat(&parts).ok()).flatten()
    }

    fn pool(&mut self, x: ValueId) -> Option<ValueId> {
        let [_, h, w, _] = self.b.shape(x);
        let kernel = 1 + self.random.below(3);
        let window = if self.random.below(3) == 0 {
            Window::Adaptive([1 + self.random.below(h), 1 + self.random.below(w)])
        } else {
            let (stride, padding) = (1 + self.random.below(2), self.random.below(kernel / 2 + 1));
            let ceil = self.random.below(2) == 0;
            Window::Sliding { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 2], ceil }
        };
        let averages = [false, true].map(|count_padding| Kind::Average { count_padding });
        let kind = self.one_of(&[Kind::Max, averages[0], averages[1]]);
        self.b.pool(x, window, kind).ok()
    }

    fn shortcut(&mut self, x: ValueId) -> Option<ValueId> {
        let (c, stride, more) = (self.b.shape(x)[3], 1 + self.random.below(2), self.random.below(4));
        let lead = self.random.below(more + 1);
        self.b.shortcut(x, c + more, stride, lead).ok()
    }

    /// A residual block with a droppable branch: a convolution with a batch norm after it, before it or none.
    fn droppable(&mut self, x: ValueId) -> Option<ValueId> {
        let [n, h, w, k] = self.b.shape(x);
        if n * h * w == 1 {
            return None;
        }
        let (conv, norm, kind) = (self.name(), self.name(), self.random.below(3));
        let options = ConvOptions { k, kernel: [3; 2], padding: [1; 2], ..Default::default() };
        let branch = self.b.branch(0.7, |b| {
            let mut y = x;
            if kind == 1 {
                y = b.batch_norm(&norm, y, EPS)?;
                y = b.relu(y)?;
            }
            y = b.conv2d(&conv, y, options)?;
            if kind == 0 {
                y = b.batch_norm(&norm, y, EPS)?;
            }
            Ok(y)
        });
        self.b.join(branch.ok()?, x).ok()
    }

    /// Names the last value.
    fn name_output(&mut self) {
        let name = format!("seen{}", self.values.len());
        self.b.output(&name, self.values[self.values.len() - 1]);
        self.outputs.push(name);
    }

    /// The sum of a linear layer over each value that nothing reads, some behind a batch norm, a ReLU or a pooling.
    fn logits(&mut self) -> Result<ValueId> {
        let open: Vec<ValueId> = (0..self.values.len()).filter(|&i| !self.read[i]).map(|i| self.values[i]).collect();
        let mut logits: Option<ValueId> = None;
        for mut x in open {
            if self.random.below(2) == 0 {
                x = self.norm(x).unwrap_or(x);
                x = if self.random.below(2) == 0 { self.b.relu(x)? } else { x };
            }
            if self.random.below(3) > 0 {
                let kind = self.one_of(&[Kind::Max, Kind::Average { count_padding: false }]);
                x = self.b.pool(x, Window::Adaptive([1; 2]), kind)?;
            }
            let name = self.name();
            let part = self.b.linear(&name, x, CLASSES)?;
            logits = Some(logits.map_or(Ok(part), |sum| self.b.add(sum, part))?);
        }
        Ok(logits.unwrap())
    }
}

/// The graph of `seed`; fails if only droppable branches read a value.
fn case(seed: usize) -> Result<Case> {
    let mode = if seed % 4 == 3 { Mode::Infer } else { Mode::Train };
    let mut growth = Growth::new(&format!("graph {seed}"), mode);
    for _ in 0..4 + growth.random.below(16) {
        growth.grow();
        if growth.random.below(25) == 0 {
            growth.name_output();
        }
    }
    let logits = growth.logits()?;
    Case::new(growth.b, logits, growth.outputs, &format!("data {seed}"))
}

#[test]
fn random_graphs() {
    check_seeds(if machine::asked("RESIDUUM_LONG") { 2000 } else { 150 }, case);
}
