//! The table: every op with finite inputs.

use residuum::ops::batch_norm::{self, BatchNorm};
use residuum::ops::conv2d::{self, BwdBias, BwdW, BwdX, Conv2d, Fwd, Plan};
use residuum::ops::cross_entropy::{self, CrossEntropy};
use residuum::ops::load::{Load, Operand};
use residuum::ops::norm::{self, Coefficients, Gradient};
use residuum::ops::pool::{self, Kind, Pool};
use residuum::ops::store::{Epilogue, Mask};
use residuum::ops::{concat, linear, relu, shortcut, sum, Call, Op, Operator};
use residuum::tensor::{Elem, TensorType};

use crate::cases::conv2d_fused::{BOTH, DATA, ENDS, FORWARD, WEIGHT};
use crate::cases::elementwise::term;
use crate::cases::norm::MASKS;
use crate::cases::pool::{CASES, LARGE_AVERAGES};
use crate::harness::{reference, Case, Data, Launcher, Random};

/// An op with finite inputs, and the special roles of some operands.
pub struct Row {
    /// The op and its tensors; its judge is not used.
    pub case: Case,
    /// Inputs that also select between others, so that a NaN need not reach their dependents.
    chooses: Vec<usize>,
    /// Inputs that are multiplied by gradients, which may be 0: an infinity in one reaches its channel's sums.
    multiplied: Vec<usize>,
    /// Outputs after a ReLU: closed for all finite numbers, it may be open for an infinity of either sign.
    pub rectified: Vec<usize>,
    /// Outputs that are counts and so are never NaN.
    pub counts: Vec<usize>,
}

impl Row {
    fn new(name: impl Into<String>, op: Op) -> Self {
        let name = name.into();
        let mut random = Random::new(&name);
        let inputs = op.operator().inputs().iter().map(|ty| draw(&mut random, ty)).collect();
        let types = op.operator().outputs();
        let updates = op.operator().updates().iter().map(|&i| draw(&mut random, &types[i])).collect();
        let case = Case::exact(name, op, inputs).updating(updates);
        Self { case, chooses: Vec::new(), multiplied: Vec::new(), rectified: Vec::new(), counts: Vec::new() }
    }

    fn choosing(mut self, inputs: impl IntoIterator<Item = usize>) -> Self {
        self.chooses.extend(inputs);
        self
    }

    fn multiplying(mut self, inputs: impl IntoIterator<Item = usize>) -> Self {
        self.multiplied.extend(inputs);
        self
    }

    fn sliced(mut self) -> Self {
        self.case = self.case.sliced();
        self
    }

    /// True if tensor `i` also selects between others.
    pub fn chooses(&self, i: usize) -> bool {
        self.chooses.contains(&i)
    }

    /// True if the number at `at` is multiplied by gradients of 0 on its way to element `i` of an output.
    pub fn meets_zeros(&self, (tensor, element): (usize, usize), i: usize) -> bool {
        let types = self.case.op.operator().inputs();
        let channels = types.get(tensor).and_then(|ty| ty.shape.dims().last().copied()).unwrap_or(1);
        self.multiplied.contains(&tensor) && i % channels == element % channels
    }

    /// True for a plain convolution, whose sums have the reference's infinities.
    pub fn is_convolution(&self) -> bool {
        matches!(&self.case.op, Op::Conv2d(node) if node.pass.is_plain())
    }

    /// True if input `i` is a branch's gate.
    pub fn is_gate(&self, i: usize) -> bool {
        !self.case.op.operator().behind_gate().inputs.is_empty() && i + 1 == self.case.inputs.len()
    }

    /// True if the number at `at` is multiplied by zeros on its way to element `i` of output `o`: the padding's, though
    /// these products are not part of the sum (for an infinite weight or, in a weight's gradient, an infinite dy; see
    /// [`conv2d`](residuum::ops::conv2d)), or those left by a ReLU before the convolution.
    pub fn zeros(&self, (tensor, element): (usize, usize), o: usize, i: usize) -> bool {
        use conv2d::Pass;
        let node = match &self.case.op {
            Op::Conv2d(node) => node,
            Op::Linear(node) if node.pass == linear::Pass::BwdX => {
                let [.., c] = node.linear.w_shape();
                return tensor == linear::BwdX::<()>::default().places().w && i % c == element % c;
            }
            _ => return false,
        };
        let (conv, loaded) = (node.conv, |operand: Operand<usize>| {
            let mut inputs = Vec::new();
            operand.map("", |_, input| inputs.push(input));
            inputs
        });
        let (dy, w, dw) = match node.pass.places() {
            Pass::Fwd(call) => (Vec::new(), Some(call.w), None),
            Pass::BwdX(call) => (Vec::new(), Some(call.w), None),
            Pass::BwdW(call) => (loaded(call.dy), None, Some(call.dw)),
            Pass::Bwd(call) => (loaded(call.dy), Some(call.w), Some(call.dw)),
            Pass::BwdBias(_) => return false,
        };
        let (spec, [_, r, s, cg]) = (conv.spec(), conv.w_shape());
        if dw == Some(o) {
            return dy.contains(&tensor) && element % spec.k == i / (r * s * cg);
        }
        if w != Some(tensor) {
            return false;
        }
        let k = element / (r * s * cg);
        if !matches!(node.pass, Pass::Fwd(_)) {
            i % spec.c == k / (spec.k / spec.groups) * cg + element % cg
        } else {
            i % spec.k == k
        }
    }
}

/// Numbers away from 0: of either sign in the storage type, around 1 in f32. Gates are open.
fn draw(random: &mut Random, ty: &TensorType) -> Data {
    let len = ty.shape.len();
    match ty.elem {
        Elem::Real => Data::Real(random.reals(len, -1.25, 1.25).iter().map(|v| v + 0.25 * v.signum()).collect()),
        Elem::Stat => Data::Real(random.reals(len, 0.5, 1.5)),
        Elem::Index => Data::Index(vec![0; len]),
        Elem::Byte => Data::Byte((0..len).map(|_| random.below(256) as u8).collect()),
    }
}

const SHAPE: [usize; 4] = [2, 3, 3, 13];

/// Ops that treat every element alike.
pub fn elementwise() -> Vec<Row> {
    let mut rows = Vec::new();
    for shape in [SHAPE, [1, 2, 2, 24]] {
        for relu in [false, true] {
            let plain = sum::Node { relu, ..sum::Node::of(shape) };
            let gated = sum::Node { form: sum::Fwd { gate: Some(()), ..plain.form }, ..plain.clone() };
            let scaled = sum::Node { share: 0.5, ..plain.clone() };
            let ends = [[false, false], [true, false], [true, true]].map(|[a, b]| {
                let (a, b) = (term(a, false), term(b, !relu));
                let form = sum::Fwd { a, b, gate: (!relu).then_some(()), signs: Some(()), ..plain.form };
                sum::Node { form, ..plain.clone() }
            });
            let nodes = [plain, gated, scaled].into_iter().chain(ends);
            rows.extend(nodes.map(|node| Row::new(format!("{node:?}"), Op::Sum(node))));
        }
        let op = |pass| Op::Relu(relu::Node { shape: shape.into(), pass });
        rows.push(Row::new(format!("relu fwd {shape:?}"), op(relu::Pass::Fwd)));
        rows.push(
            Row::new(format!("relu bwd {shape:?}"), op(relu::Pass::Bwd)).choosing([<relu::Bwd>::default().places().y]),
        );
        let spec = shortcut::Spec { x: shape, k: shape[3] + 5, stride: 2, lead: 2 };
        for pass in [shortcut::Pass::Fwd, shortcut::Pass::Bwd] {
            let shortcut = shortcut::Shortcut::new(spec).unwrap();
            let op = Op::Shortcut(shortcut::Node { shortcut, pass });
            rows.push(Row::new(format!("shortcut {pass:?} {spec:?}"), op));
        }
        let spec = concat::Spec { pixels: [shape[0], shape[1], shape[2]], channels: vec![shape[3], 8, 3] };
        for pass in [concat::Pass::Fwd, concat::Pass::Bwd] {
            let concat = concat::Concat::new(spec.clone()).unwrap();
            rows.push(Row::new(format!("concat {pass:?} {spec:?}"), Op::Concat(concat::Node { concat, pass })));
        }
    }
    rows.into_iter().map(Row::sliced).collect()
}

/// Batch norms, whole and in pieces.
pub fn norms() -> Vec<Row> {
    let mut rows = Vec::new();
    for shape in [SHAPE, [5, 9, 9, 24]] {
        let bn = BatchNorm::new(batch_norm::Spec { x: shape, eps: 1e-5, momentum: 0.1 }).unwrap();
        for relu in [false, true] {
            let forward = [bn.train(relu).unwrap(), bn.infer(relu), bn.fold(relu, 0.5)];
            let row = |node: batch_norm::Node| {
                Row::new(format!("{} {shape:?} relu {relu}", node.name()), Op::BatchNorm(node))
            };
            rows.extend(forward.map(row));
            let at = batch_norm::Bwd { y: relu.then_some(()), ..batch_norm::Bwd::<()>::default() }.places();
            rows.push(row(bn.bwd(relu)).choosing(at.y).multiplying([at.x]));
        }
        let row = |pass| Row::new(format!("{pass:?} {shape:?}"), Op::Norm(norm::Node { x: shape, pass }));
        rows.extend([norm::Pass::Measure, norm::Pass::Scale { eps: 1e-5, momentum: 0.1 }].map(row));
        for (lazy, bias) in [(false, false), (true, false), (false, true)] {
            // A bias before a batch norm has a gradient only if numbers are not finite.
            let (a, dbias) = ((!lazy).then_some(()), bias.then_some(()));
            let pass =
                norm::Pass::Coefficients { form: Coefficients { a, dbias, ..Coefficients::default() }, eps: 1e-5 };
            rows.push(row(pass).multiplying(0..if bias { 5 } else { 0 }));
        }
        for &mask in MASKS {
            let form = Gradient { mask, sums: mask.sums(), ..Gradient::default() };
            let at = form.places().mask;
            rows.push(row(norm::Pass::Gradient(form)).choosing(masks(at)).multiplying(factors(at)));
        }
    }
    rows.into_iter().map(Row::sliced).collect()
}

/// The operands of a mask that decide whether a ReLU was open.
fn masks(mask: Mask<usize>) -> Vec<usize> {
    match mask {
        Mask::Affine { y, scale, shift, relu: true, .. } => vec![y, scale, shift],
        _ => Vec::new(),
    }
}

/// The operands of a mask that multiply the gradient: y and mean of each batch norm, and a scale.
fn factors(mask: Mask<usize>) -> Vec<usize> {
    let of_norms = mask.normalised().into_iter().flat_map(|n| [*n.y, *n.mean]);
    match mask {
        Mask::Affine { scale, scaled: true, .. } => of_norms.chain([scale]).collect(),
        _ => of_norms.collect(),
    }
}

/// Poolings, plain and fused.
pub fn poolings() -> Vec<Row> {
    let mut rows = Vec::new();
    let some = [&CASES[1], &CASES[3], &CASES[5], &CASES[6], &CASES[13], &LARGE_AVERAGES[1]];
    for (i, row) in some.into_iter().enumerate() {
        for kind in [Kind::Max, Kind::Average { count_padding: i % 2 == 0 }] {
            let pool = Pool::new(pool::Spec { x: row.x, window: row.window, kind }).unwrap();
            rows.push(Row::new(format!("pool {kind:?} {row:?}"), Op::Pool(pool.fwd())));
            let form = pool::Bwd { index: (kind == Kind::Max).then_some(()), ..pool::Bwd::default() };
            let index = |row: Row| {
                let x = draw(&mut Random::new(&row.case.name), &pool.x());
                let mut row = row;
                if let Some(at) = form.places().index {
                    row.case.inputs[at] = reference(&Op::Pool(pool.fwd()), &[x], &[]).remove(1);
                }
                row
            };
            rows.push(index(Row::new(format!("pool bwd {kind:?} {row:?}"), Op::Pool(pool.bwd()))));
            let fused = |pass| Op::Pool(pool::Node { pool, pass });
            let relu = i % 2 == 0;
            let fwd = pool::Fwd { x: term(true, relu), y: (), index: form.index };
            let op = fused(pool::Pass::Fwd(fwd));
            // A shift moves a whole window, so that it selects nothing, unless it is NaN.
            let choice = match fwd.places().x.load {
                Load::Affine { affine, .. } if kind == Kind::Max => Some(affine.shift),
                _ => None,
            };
            rows.push(Row::new(format!("pool_fused {kind:?} {row:?} relu {relu}"), op).multiplying(choice));
            for mask in [MASKS[i % 4], MASKS[4 + i % 4]] {
                let form = pool::Bwd { mask: Some(mask), sums: Some(mask.sums()), ..form };
                let (op, at) = (fused(pool::Pass::Bwd(form)), form.places().mask.expect("a mask"));
                let row = Row::new(format!("pool_fused bwd {kind:?} {row:?} {mask:?}"), op);
                rows.push(index(row.choosing(masks(at)).multiplying(factors(at))));
            }
        }
    }
    rows.into_iter().map(Row::sliced).collect()
}

/// Losses and the layer before them.
pub fn losses() -> Vec<Row> {
    let mut rows = Vec::new();
    for (n, classes, smoothing) in [(3, 7, 0.0), (2, 300, 0.0), (3, 10, 0.1)] {
        let spec = cross_entropy::Spec { n, classes, smoothing, grad_scale: 2.0 };
        use cross_entropy::{Bwd, Pass};
        let scaled = Bwd { loss_scale: Some(()), ..Bwd::default() };
        for pass in [Pass::Fwd, Pass::Bwd(Bwd::default()), Pass::Bwd(scaled)] {
            let op = Op::CrossEntropy(cross_entropy::Node { loss: CrossEntropy::new(spec).unwrap(), pass });
            let name = format!("cross_entropy {pass:?} {spec:?}");
            let mut row = Row::new(name.clone(), op);
            row.case.inputs[scaled.places().labels] = Data::Index(Random::new(&name).labels(n, classes));
            row.counts.extend((pass == Pass::Fwd).then_some(1));
            rows.push(row);
        }
    }
    let linear = linear::Linear::new(linear::Spec { x: [3, 2, 1, 8], k: 10 }).unwrap();
    use linear::Pass::{BwdBias, BwdW, BwdX};
    let backward = [BwdX, BwdW, BwdBias].map(|pass| linear::Node { linear, pass });
    let nodes = std::iter::once(linear.fwd(true)).chain(backward);
    rows.extend(nodes.map(|node| Row::new(node.name(), Op::Linear(node))));
    rows
}

fn conv(x: [usize; 4], k: usize, kernel: [usize; 2], stride: [usize; 2], groups: usize) -> Conv2d {
    let ([n, h, w, c], padding) = (x, [kernel[0] / 2, kernel[1] / 2]);
    Conv2d::new(conv2d::Spec { n, h, w, c, k, kernel, stride, padding, dilation: [1, 1], groups }).unwrap()
}

/// Shapes for every kernel: 16-byte accesses, packed groups, the stem (padded to four channels), anything else; with
/// split reductions.
pub fn convolutions() -> Vec<(Conv2d, bool)> {
    let all = [
        conv([1, 5, 4, 32], 32, [3, 3], [1, 1], 8),
        conv([1, 4, 5, 16], 16, [3, 3], [2, 1], 16),
        conv([1, 4, 5, 16], 16, [3, 3], [2, 1], 4),
        conv([1, 6, 5, 32], 16, [3, 3], [2, 2], 1),
        conv([1, 3, 4, 64], 24, [1, 1], [1, 1], 1),
        conv([1, 5, 4, 7], 5, [3, 2], [1, 1], 1),
        conv([5, 9, 8, 8], 16, [1, 3], [1, 1], 2),
    ];
    let stems = [conv([4, 9, 8, 3], 16, [3, 3], [1, 1], 1)];
    all.map(|conv| (conv, false)).into_iter().chain(stems.map(|conv| (conv, true))).collect()
}

/// The plain passes of conv2d.
pub fn products(conv: Conv2d) -> Vec<conv2d::Node> {
    use conv2d::Pass;
    let epilogue = Epilogue { scale: Some(()), shift: Some(()), residual: Some(()), relu: true };
    let full = Pass::Fwd(Fwd { epilogue, ..Fwd::default() });
    let backward = [Pass::BwdX(BwdX::default()), Pass::BwdW(BwdW::default()), Pass::BwdBias(BwdBias::default())];
    [Pass::fwd(false), full].into_iter().chain(backward).map(|pass| conv2d::Node { conv, pass }).collect()
}

/// A pass of conv2d with the plan that it chooses.
pub fn convolution(node: conv2d::Node) -> Row {
    use conv2d::Pass;
    let row = Row::new(format!("{node:?}"), Op::Conv2d(node));
    let mask = match node.pass.places() {
        Pass::BwdX(call) => call.mask,
        Pass::Bwd(call) => call.mask,
        _ => None,
    };
    let (chooses, multiplied) = mask.map_or((Vec::new(), Vec::new()), |mask| (masks(mask), factors(mask)));
    let relu = matches!(node.pass, Pass::Fwd(Fwd { epilogue: Epilogue { relu: true, .. }, .. }));
    let rectified = if relu { vec![0] } else { Vec::new() };
    Row { chooses, multiplied, rectified, ..row }
}

/// The pass with `plan`.
pub fn planned(node: conv2d::Node, plan: Plan) -> Row {
    let row = convolution(node);
    let case = row.case.launched_by(Launcher::planned(node, plan));
    Row { case: Case { name: format!("{} in {}", plan.kernel(), plan.splits()), ..case }, ..row }
}

/// Fused passes, with every part.
pub fn fused(conv: Conv2d, stem: bool) -> Vec<conv2d::Node> {
    let mut passes = vec![FORWARD[1], WEIGHT[2]];
    if !stem {
        passes.extend([FORWARD[0], FORWARD[5], DATA[0], DATA[2], DATA[3], WEIGHT[0], BOTH[0], BOTH[2]]);
    }
    passes.extend(conv.can_load_sum().then_some(ENDS[1]));
    passes.into_iter().map(|(_, pass)| conv2d::Node { conv, pass }).collect()
}

/// The names of all ops.
pub const OPS: [&str; 34] = [
    "batch_norm_bwd",
    "batch_norm_fold",
    "batch_norm_infer",
    "batch_norm_train",
    "concat_bwd",
    "concat_fwd",
    "conv2d_bwd",
    "conv2d_bwd_bias",
    "conv2d_bwd_w",
    "conv2d_bwd_x",
    "conv2d_fwd",
    "conv2d_fwd_end",
    "cross_entropy_bwd",
    "cross_entropy_fwd",
    "linear_bwd_bias",
    "linear_bwd_w",
    "linear_bwd_x",
    "linear_fwd",
    "norm_affine",
    "norm_coefficients",
    "norm_gradient",
    "norm_moments",
    "pool_avg_bwd",
    "pool_avg_fwd",
    "pool_max_bwd",
    "pool_max_fwd",
    "relu_bwd",
    "relu_fwd",
    "shortcut_bwd",
    "shortcut_fwd",
    "sum_end",
    "sum_fwd",
    "sum_gated",
    "sum_scaled",
];
