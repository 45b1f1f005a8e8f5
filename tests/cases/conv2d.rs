//! Convolutions that the tests and the benches run: real layers of the networks, scaled down, and odd sizes.

use residuum::ops::conv2d::{Conv2d, Spec};

/// A convolution with a name.
#[derive(Clone, Debug)]
pub struct Row {
    /// The network and layer, or what is unusual.
    pub name: String,
    /// The convolution.
    pub spec: Spec,
}

impl Row {
    fn stride(mut self, stride: [usize; 2]) -> Self {
        self.spec.stride = stride;
        self
    }

    fn padding(mut self, padding: [usize; 2]) -> Self {
        self.spec.padding = padding;
        self
    }

    fn dilation(mut self, dilation: [usize; 2]) -> Self {
        self.spec.dilation = dilation;
        self
    }

    fn groups(mut self, groups: usize) -> Self {
        self.spec.groups = groups;
        self
    }

    /// The checked convolution.
    pub fn conv(&self) -> Conv2d {
        Conv2d::new(self.spec).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

/// A dense convolution of `x` (N, H, W, C) without padding.
fn row(name: &str, [n, h, w, c]: [usize; 4], k: usize, kernel: [usize; 2]) -> Row {
    let spec = Spec { n, h, w, c, k, kernel, stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 };
    Row { name: name.to_string(), spec }
}

/// Layers of the networks with fewer images, pixels or channels; each keeps its special feature.
pub fn layers() -> Vec<Row> {
    vec![
        row("digits stem", [3, 8, 8, 1], 16, [3, 3]).padding([1, 1]),
        row("cifar stem", [2, 9, 9, 3], 16, [3, 3]).padding([1, 1]),
        row("cifar 16", [2, 8, 8, 16], 16, [3, 3]).padding([1, 1]),
        row("cifar 16 to 32", [2, 8, 8, 16], 32, [3, 3]).stride([2, 2]).padding([1, 1]),
        row("cifar 64", [1, 8, 8, 64], 64, [3, 3]).padding([1, 1]),
        row("cifar option B", [2, 8, 8, 16], 32, [1, 1]).stride([2, 2]),
        row("imagenet stem", [1, 21, 19, 3], 64, [7, 7]).stride([2, 2]).padding([3, 3]),
        row("bottleneck reduce", [1, 7, 7, 128], 32, [1, 1]),
        row("bottleneck expand", [1, 7, 7, 32], 128, [1, 1]),
        row("bottleneck 3x3 stride 2", [1, 10, 10, 32], 32, [3, 3]).stride([2, 2]).padding([1, 1]),
        row("last stage", [2, 7, 7, 96], 72, [3, 3]).padding([1, 1]),
        row("resnext 4 a group", [1, 7, 7, 32], 32, [3, 3]).padding([1, 1]).groups(8),
        row("resnext 8 a group, stride 2", [1, 8, 8, 32], 32, [3, 3]).stride([2, 2]).padding([1, 1]).groups(4),
        row("resnext 32 a group", [1, 7, 7, 64], 64, [3, 3]).padding([1, 1]).groups(2),
        row("depthwise", [1, 6, 6, 6], 6, [3, 3]).padding([1, 1]).groups(6),
        row("depthwise 16", [2, 6, 5, 16], 16, [3, 3]).padding([1, 1]).groups(16),
        row("dilated segmentation", [1, 9, 9, 16], 24, [3, 3]).padding([4, 4]).dilation([4, 4]),
        row("classifier", [10, 1, 1, 64], 10, [1, 1]),
        row("classifier of an image", [3, 2, 2, 16], 10, [2, 2]),
    ]
}

/// Sizes at which tiles, vectors and residues have tails, lack neighbours, or are empty.
pub fn odd() -> Vec<Row> {
    vec![
        row("all ones", [1, 1, 1, 1], 1, [1, 1]),
        row("one pixel of many", [1, 5, 5, 8], 8, [5, 5]),
        row("primes", [3, 7, 5, 7], 11, [3, 5]).padding([1, 2]),
        row("one channel too many", [1, 9, 8, 17], 33, [3, 3]).padding([1, 1]),
        row("one row too many", [1, 13, 5, 8], 8, [1, 1]),
        row("tail of the reduction", [1, 5, 6, 40], 16, [1, 1]),
        row("tile and one", [1, 1, 129, 8], 136, [1, 1]),
        row("stride beyond the kernel", [2, 7, 8, 8], 16, [1, 2]).stride([3, 4]),
        row("stride beyond the image", [2, 3, 2, 8], 8, [2, 1]).stride([10, 3]),
        row("padding beyond the kernel", [1, 4, 3, 8], 8, [1, 2]).padding([3, 4]).stride([2, 1]),
        row("padding only", [1, 1, 1, 8], 8, [3, 3]).padding([2, 3]).stride([2, 2]),
        row("residues without taps", [1, 9, 8, 8], 8, [3, 3]).stride([2, 2]).dilation([2, 2]).padding([2, 1]),
        row("residues of one tile and two", [1, 17, 17, 8], 8, [3, 3]).stride([2, 2]).padding([1, 1]),
        row("stride 4, dilation 2", [1, 11, 12, 8], 8, [4, 3]).stride([4, 4]).dilation([2, 2]).padding([3, 2]),
        row("stride 3, dilation 2", [1, 11, 10, 8], 16, [3, 3]).stride([3, 3]).dilation([2, 4]).padding([2, 4]),
        row("tall", [2, 17, 1, 3], 5, [9, 1]).padding([4, 0]),
        row("groups of one input", [1, 5, 5, 3], 12, [3, 3]).padding([1, 1]).groups(3),
        row("groups of one output", [1, 5, 5, 24], 3, [3, 3]).padding([1, 1]).groups(3),
        row("long reduction", [8, 9, 9, 8], 8, [3, 3]).padding([1, 1]),
    ]
}

/// Groups x stride x dilation x padding.
pub fn crossed() -> Vec<Row> {
    let mut rows = Vec::new();
    for (c, k, groups) in [(16, 16, 1), (16, 32, 2), (12, 8, 4)] {
        for stride in [[1, 1], [2, 1], [2, 2], [3, 2]] {
            for dilation in [[1, 1], [2, 1], [3, 2]] {
                for padding in [[0, 0], [1, 2]] {
                    let name =
                        format!("groups {groups}, stride {stride:?}, dilation {dilation:?}, padding {padding:?}");
                    let row = row(&name, [1, 9, 7, c], k, [3, 2]);
                    rows.push(row.stride(stride).dilation(dilation).padding(padding).groups(groups));
                }
            }
        }
    }
    rows
}

/// Groups of various widths, from depthwise to wide, that fill a tile about twice or not quite, crossed with stride x
/// dilation x padding: all combinations, or five that contain each value.
pub fn widths(all: bool) -> Vec<Row> {
    // Input channels, output channels, groups.
    let widths = [
        (1, 1, 6),
        (1, 1, 32),
        (1, 2, 24),
        (1, 64, 8),
        (2, 2, 8),
        (2, 4, 16),
        (3, 3, 8),
        (3, 5, 3),
        (3, 5, 16),
        (4, 4, 3),
        (4, 4, 12),
        (4, 8, 6),
        (5, 5, 8),
        (5, 3, 8),
        (6, 6, 4),
        (8, 8, 6),
        (8, 4, 4),
        (8, 1, 8),
        (12, 12, 4),
        (16, 16, 3),
        (16, 24, 2),
        (24, 24, 2),
        (32, 16, 2),
        (32, 32, 2),
        (64, 64, 2),
    ];
    let mut combinations = Vec::new();
    for (i, stride) in [[1, 1], [2, 1], [2, 2], [3, 2]].into_iter().enumerate() {
        for (j, dilation) in [[1, 1], [2, 1], [3, 2]].into_iter().enumerate() {
            for (l, padding) in [[0, 0], [1, 2]].into_iter().enumerate() {
                if all || ((i + j) % 3 == 0 && (i + l) % 2 == 0) || (i == 1 && j == 0 && l == 0) {
                    combinations.push((stride, dilation, padding));
                }
            }
        }
    }
    let mut rows = Vec::new();
    for (cg, kg, groups) in widths {
        for &(stride, dilation, padding) in &combinations {
            let name = format!(
                "{groups} groups of {cg} to {kg}, stride {stride:?}, dilation {dilation:?}, padding {padding:?}"
            );
            let row = row(&name, [1, 9, 7, groups * cg], groups * kg, [3, 2]);
            rows.push(row.stride(stride).dilation(dilation).padding(padding).groups(groups));
        }
    }
    rows
}

/// First layers: of one to four channels.
pub fn stems() -> Vec<Row> {
    vec![
        row("vgg stem", [1, 7, 9, 3], 64, [3, 3]).padding([1, 1]),
        row("alexnet stem", [1, 23, 21, 3], 24, [11, 11]).stride([4, 4]).padding([2, 2]),
        row("grey stem", [3, 8, 5, 1], 16, [5, 3]).padding([2, 1]),
        row("stem of two channels", [2, 6, 7, 2], 24, [3, 2]).stride([1, 2]).padding([1, 0]),
        row("stem of four channels", [2, 7, 6, 4], 16, [3, 3]).stride([2, 2]).padding([1, 1]),
        row("stem of odd outputs", [1, 6, 6, 3], 13, [3, 3]).padding([0, 2]),
        row("dilated stem", [1, 11, 9, 3], 72, [3, 4]).dilation([2, 3]).stride([3, 1]).padding([3, 1]),
        row("pixelwise stem", [2, 5, 5, 3], 8, [1, 1]),
    ]
}

/// The problems of `../shared/problems/conv2d.tsv`, two images each; `None` if there is no such file.
pub fn peers() -> Option<Vec<Row>> {
    let beside = || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let shared = std::env::var_os("RESIDUUM_SHARED").map_or_else(beside, Into::into);
    let text = std::fs::read_to_string(shared.join("problems/conv2d.tsv")).ok()?;
    let mut rows = Vec::new();
    for line in text.lines().skip(1) {
        let mut fields = line.split('\t');
        let name = fields.next().unwrap_or_default().to_string();
        let number = |f: &str| f.parse::<usize>().unwrap_or_else(|e| panic!("{name}: `{f}`: {e}"));
        let values: Vec<usize> = fields.map(number).collect();
        let [groups, c, k, h, w, p, q, r, s, u, v, ph, pw, dh, dw, ..] = values[..] else {
            panic!("{name}: {} fields", values.len());
        };
        let spec =
            Spec { n: 2, h, w, c, k, kernel: [r, s], stride: [u, v], padding: [ph, pw], dilation: [dh, dw], groups };
        let row = Row { name, spec };
        // Some problems pad one side only; the library pads both.
        if row.conv().output() == [p, q] {
            rows.push(row);
        }
    }
    Some(rows)
}
