//! The networks' layers at full size, for the benches; the other tables scale them down for the tests. Each kind of
//! layer of a network is here once, with its network's training batch.

use residuum::ops::conv2d::{Bwd, BwdW, BwdX, End, Fwd};
use residuum::ops::load::{Affine, Load, Operand};
use residuum::ops::store::{Mask, Moments, Normalised};
use residuum::ops::{batch_norm, conv2d, cross_entropy, linear};
use residuum::ops::{pool, relu, shortcut, sum, Op};
use residuum::Result;

/// A layer of a network.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// The network, by the name in the table of models.
    pub network: &'static str,
    /// Its position in the network, without spaces.
    pub name: &'static str,
    /// Images in a training step.
    pub batch: usize,
    /// Height and width of the input.
    pub size: usize,
    /// Channels of the input.
    pub c: usize,
    /// The kind of layer.
    pub kind: Kind,
    /// True if the layer is run in every dtype, on behalf of all layers of its kind.
    pub every_dtype: bool,
}

/// Kinds of layers.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A convolution to `k` channels with a square kernel, padded by half of it.
    Conv {
        /// Output channels.
        k: usize,
        /// Height and width of the kernel.
        kernel: usize,
        /// Stride.
        stride: usize,
        /// Groups.
        groups: usize,
    },
    /// Batch norm with ReLU.
    BatchNorm,
    /// Addition with ReLU, and the ReLU's backward pass.
    Block,
    /// A maximum over 3x3, stride 2.
    StemPool,
    /// An average over 2x2, stride 2.
    Transition,
    /// The average of each channel.
    GlobalPool,
    /// An option-A shortcut to twice the channels, stride 2.
    Shortcut,
    /// The last linear layer; its number of classes.
    Classifier(usize),
    /// The loss over `c` classes.
    Loss,
}

/// The mask of a batch norm and its ReLU.
fn affine_mask(scaled: bool) -> Mask {
    Mask::Affine { y: (), scale: (), shift: (), mean: (), relu: true, scaled }
}

impl Layer {
    /// The ops of a training step on `batch` images: forward, then backward if there are such passes.
    pub fn passes(&self, batch: usize) -> Result<Vec<Op>> {
        let x = [batch, self.size, self.size, self.c];
        Ok(match self.kind {
            Kind::Conv { .. } => {
                use conv2d::Pass;
                let conv = conv2d::Conv2d::new(self.conv(batch))?;
                let passes = [Pass::fwd(false), Pass::BwdX(BwdX::default()), Pass::BwdW(BwdW::default())];
                passes.map(|pass| Op::Conv2d(conv2d::Node { conv, pass })).into()
            }
            Kind::BatchNorm => {
                let bn = batch_norm::BatchNorm::new(batch_norm::Spec { x, eps: 1e-5, momentum: 0.1 })?;
                vec![Op::BatchNorm(bn.train(true)?), Op::BatchNorm(bn.bwd(true))]
            }
            Kind::Block => {
                let bwd = relu::Node { shape: x.into(), pass: relu::Pass::Bwd };
                vec![Op::Sum(sum::Node { relu: true, ..sum::Node::of(x) }), Op::Relu(bwd)]
            }
            Kind::StemPool | Kind::Transition | Kind::GlobalPool => {
                let pool = pool::Pool::new(self.pool(x))?;
                vec![Op::Pool(pool.fwd()), Op::Pool(pool.bwd())]
            }
            Kind::Shortcut => {
                let shortcut = shortcut::Shortcut::new(shortcut::Spec { x, k: 2 * self.c, stride: 2, lead: 0 })?;
                let bwd = shortcut::Node { shortcut, pass: shortcut::Pass::Bwd };
                vec![Op::Shortcut(shortcut.fwd()), Op::Shortcut(bwd)]
            }
            Kind::Classifier(k) => {
                use linear::Pass;
                let linear = linear::Linear::new(linear::Spec { x, k })?;
                let backward = [Pass::BwdX, Pass::BwdW, Pass::BwdBias].map(|pass| linear::Node { linear, pass });
                std::iter::once(linear.fwd(true)).chain(backward).map(Op::Linear).collect()
            }
            Kind::Loss => {
                let spec = cross_entropy::Spec { n: batch, classes: self.c, smoothing: 0.0, grad_scale: 1.0 };
                let loss = cross_entropy::CrossEntropy::new(spec)?;
                let bwd = cross_entropy::Node { loss, pass: cross_entropy::Pass::Bwd(Default::default()) };
                vec![Op::CrossEntropy(loss.fwd()), Op::CrossEntropy(bwd)]
            }
        })
    }

    /// The fused passes, with batch norms and ReLUs, that replace some of these in a training step on kernels.
    pub fn fused(&self, batch: usize) -> Result<Vec<Op>> {
        let shape = [batch, self.size, self.size, self.c];
        Ok(match self.kind {
            Kind::Conv { .. } => {
                let mut spec = self.conv(batch);
                if self.is_transition() {
                    (spec.h, spec.w) = (spec.h / 2, spec.w / 2); // pooled before
                }
                let conv = conv2d::Conv2d::new(spec)?;
                self.fused_conv(&conv).map(|pass| Op::Conv2d(conv2d::Node { conv, pass })).into()
            }
            Kind::Block => {
                let node = sum::Node { relu: true, ..sum::Node::of(shape) };
                let load = Load::Affine { affine: Affine::default(), relu: false };
                let form = sum::Fwd { a: Operand { value: (), load }, signs: Some(()), ..node.form };
                vec![Op::Sum(sum::Node { form, ..node })]
            }
            Kind::StemPool => {
                let pool = pool::Pool::new(self.pool(shape))?;
                let (load, mask) = (Load::Affine { affine: Affine::default(), relu: true }, affine_mask(false));
                let fwd = pool::Fwd { x: Operand { value: (), load }, y: (), index: Some(()) };
                let bwd = pool::Bwd { dy: (), index: Some(()), mask: Some(mask), dx: (), sums: Some(mask.sums()) };
                let passes = [pool::Pass::Fwd(fwd), pool::Pass::Bwd(bwd)];
                passes.map(|pass| Op::Pool(pool::Node { pool, pass })).into()
            }
            _ => Vec::new(),
        })
    }

    /// True for the convolution between two dense blocks.
    fn is_transition(&self) -> bool {
        self.name.starts_with("transition")
    }

    /// A convolution's forward pass and gradients by its position: the stem, after a pooling or beside a block, in a
    /// dense block, after the end of a block, inside a block.
    fn fused_conv(&self, conv: &conv2d::Conv2d) -> [conv2d::Pass; 2] {
        use conv2d::Pass;
        let corrected = |a: bool| Load::Corrected { y: (), a: a.then_some(()), b: (), c: () };
        let activated = Load::Affine { affine: Affine::default(), relu: true };
        let operand = |load| Operand { value: (), load };
        let moments = Some(Moments::default());
        let fwd = |x| Pass::Fwd(Fwd { x: operand(x), moments, ..Fwd::default() });
        let bwd = |dy, x, mask: Option<Mask>| {
            let sums = mask.map(|mask| mask.sums());
            Pass::Bwd(Bwd { dy: operand(dy), x: operand(x), mask, sums, ..Bwd::default() })
        };
        let pointwise = conv.spec().kernel == [1, 1];
        let dense = self.network.starts_with("densenet");
        let beside = conv.spec().stride != [1, 1] || conv.spec().k == self.c;
        if self.c <= 4 {
            let bwd_w = BwdW { dy: operand(corrected(true)), ..BwdW::default() };
            [fwd(Load::AsIs), Pass::BwdW(bwd_w)]
        } else if self.is_transition() || (pointwise && beside) {
            [fwd(Load::AsIs), bwd(corrected(true), Load::AsIs, None)]
        } else if dense {
            [fwd(activated), bwd(corrected(pointwise), activated, Some(affine_mask(pointwise)))]
        } else if pointwise && conv.spec().k < self.c {
            let end = Load::Sum { own: Some(Affine::default()), other: (), others: None };
            let fwd = Fwd { x: operand(end), moments, end: Some(End::default()), ..Fwd::default() };
            let mask = Mask::Signs { bits: (), first: Normalised::default(), second: None, gate: None };
            [Pass::Fwd(fwd), bwd(corrected(true), Load::AsIs, Some(mask))]
        } else {
            [fwd(activated), bwd(corrected(true), activated, Some(affine_mask(false)))]
        }
    }

    fn conv(&self, n: usize) -> conv2d::Spec {
        let Kind::Conv { k, kernel, stride, groups } = self.kind else { unreachable!("asked of convolutions only") };
        conv2d::Spec {
            n,
            h: self.size,
            w: self.size,
            c: self.c,
            k,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [kernel / 2; 2],
            dilation: [1, 1],
            groups,
        }
    }

    fn pool(&self, x: [usize; 4]) -> pool::Spec {
        let sliding = |kernel, padding| pool::Window::Sliding {
            kernel: [kernel; 2],
            stride: [2, 2],
            padding: [padding; 2],
            ceil: false,
        };
        let (window, kind) = match self.kind {
            Kind::StemPool => (sliding(3, 1), pool::Kind::Max),
            Kind::Transition => (sliding(2, 0), pool::Kind::Average { count_padding: true }),
            _ => (pool::Window::Adaptive([1, 1]), pool::Kind::Average { count_padding: false }),
        };
        pool::Spec { x, window, kind }
    }

    const fn every_dtype(mut self) -> Self {
        self.every_dtype = true;
        self
    }
}

const fn row(network: &'static str, batch: usize, name: &'static str, size: usize, c: usize, kind: Kind) -> Layer {
    Layer { network, name, batch, size, c, kind, every_dtype: false }
}

const fn conv(k: usize, kernel: usize, stride: usize) -> Kind {
    Kind::Conv { k, kernel, stride, groups: 1 }
}

/// A 3x3 of ResNeXt with 32 groups: as many channels out as in.
const fn grouped(k: usize, stride: usize) -> Kind {
    Kind::Conv { k, kernel: 3, stride, groups: 32 }
}

const fn resnet50(name: &'static str, size: usize, c: usize, kind: Kind) -> Layer {
    row("resnet50", 256, name, size, c, kind)
}

const fn resnext50(name: &'static str, size: usize, c: usize, kind: Kind) -> Layer {
    row("resnext50_32x4d", 256, name, size, c, kind)
}

const fn densenet121(name: &'static str, size: usize, c: usize, kind: Kind) -> Layer {
    row("densenet121", 256, name, size, c, kind)
}

const fn resnet110(name: &'static str, size: usize, c: usize, kind: Kind) -> Layer {
    row("resnet110_cifar", 128, name, size, c, kind)
}

/// Every layer.
#[rustfmt::skip]
pub const LAYERS: &[Layer] = &[
    resnet50("stem",                  224, 3,    conv(64, 7, 2)),
    resnet50("stage1_first_reduce",   56,  64,   conv(64, 1, 1)),
    resnet50("stage1_reduce",         56,  256,  conv(64, 1, 1)),
    resnet50("stage1_3x3",            56,  64,   conv(64, 3, 1)).every_dtype(),
    resnet50("stage1_expand",         56,  64,   conv(256, 1, 1)).every_dtype(),
    resnet50("stage2_first_reduce",   56,  256,  conv(128, 1, 1)),
    resnet50("stage2_3x3_stride2",    56,  128,  conv(128, 3, 2)),
    resnet50("stage2_projection",     56,  256,  conv(512, 1, 2)),
    resnet50("stage2_reduce",         28,  512,  conv(128, 1, 1)),
    resnet50("stage2_3x3",            28,  128,  conv(128, 3, 1)),
    resnet50("stage2_expand",         28,  128,  conv(512, 1, 1)),
    resnet50("stage3_3x3_stride2",    28,  256,  conv(256, 3, 2)),
    resnet50("stage3_projection",     28,  512,  conv(1024, 1, 2)),
    resnet50("stage3_reduce",         14,  1024, conv(256, 1, 1)),
    resnet50("stage3_3x3",            14,  256,  conv(256, 3, 1)).every_dtype(),
    resnet50("stage3_expand",         14,  256,  conv(1024, 1, 1)),
    resnet50("stage4_3x3_stride2",    14,  512,  conv(512, 3, 2)),
    resnet50("stage4_projection",     14,  1024, conv(2048, 1, 2)),
    resnet50("stage4_reduce",         7,   2048, conv(512, 1, 1)),
    resnet50("stage4_3x3",            7,   512,  conv(512, 3, 1)),
    resnet50("stage4_expand",         7,   512,  conv(2048, 1, 1)),
    resnet50("stem_norm",             112, 64,   Kind::BatchNorm),
    resnet50("stage1_norm",           56,  256,  Kind::BatchNorm).every_dtype(),
    resnet50("stage4_norm",           7,   2048, Kind::BatchNorm),
    resnet50("stage1_block_end",      56,  256,  Kind::Block).every_dtype(),
    resnet50("stage3_block_end",      14,  1024, Kind::Block),
    resnet50("stem_pool",             112, 64,   Kind::StemPool),
    resnet50("global_pool",           7,   2048, Kind::GlobalPool),
    resnet50("classifier",            1,   2048, Kind::Classifier(1000)),
    resnet50("loss",                  1,   1000, Kind::Loss),
    resnext50("stage1_3x3",           56,  128,  grouped(128, 1)),
    resnext50("stage1_expand",        56,  128,  conv(256, 1, 1)),
    resnext50("stage2_3x3_stride2",   56,  256,  grouped(256, 2)),
    resnext50("stage2_3x3",           28,  256,  grouped(256, 1)).every_dtype(),
    resnext50("stage3_3x3_stride2",   28,  512,  grouped(512, 2)),
    resnext50("stage3_3x3",           14,  512,  grouped(512, 1)),
    resnext50("stage4_3x3_stride2",   14,  1024, grouped(1024, 2)),
    resnext50("stage4_3x3",           7,   1024, grouped(1024, 1)),
    densenet121("block1_first_1x1",   56,  64,   conv(128, 1, 1)),
    densenet121("block1_last_1x1",    56,  224,  conv(128, 1, 1)),
    densenet121("block1_3x3",         56,  128,  conv(32, 3, 1)),
    densenet121("transition1_1x1",    56,  256,  conv(128, 1, 1)),
    densenet121("transition1_pool",   56,  128,  Kind::Transition),
    densenet121("block2_last_1x1",    28,  480,  conv(128, 1, 1)),
    densenet121("block2_3x3",         28,  128,  conv(32, 3, 1)),
    densenet121("block3_last_1x1",    14,  992,  conv(128, 1, 1)),
    densenet121("block3_3x3",         14,  128,  conv(32, 3, 1)),
    densenet121("transition3_1x1",    14,  1024, conv(512, 1, 1)),
    densenet121("block4_last_1x1",    7,   992,  conv(128, 1, 1)),
    densenet121("block4_3x3",         7,   128,  conv(32, 3, 1)),
    resnet110("stem",                 32,  3,    conv(16, 3, 1)),
    resnet110("stage1_3x3",           32,  16,   conv(16, 3, 1)).every_dtype(),
    resnet110("stage2_3x3_stride2",   32,  16,   conv(32, 3, 2)),
    resnet110("stage2_3x3",           16,  32,   conv(32, 3, 1)),
    resnet110("stage3_3x3_stride2",   16,  32,   conv(64, 3, 2)),
    resnet110("stage3_3x3",           8,   64,   conv(64, 3, 1)),
    resnet110("stage1_norm",          32,  16,   Kind::BatchNorm),
    resnet110("stage2_shortcut",      32,  16,   Kind::Shortcut),
    resnet110("classifier",           1,   64,   Kind::Classifier(10)),
];
