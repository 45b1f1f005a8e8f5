//! The gradient rule of every differentiable op against finite differences of its forward pass, in f64.
//!
//! For a random cotangent u and a random direction d of one input, `<u, df/dx d>` is taken from the rule and from
//! differences. Inputs keep away from kinks by more than a step.

use residuum::ops::{
    batch_norm, concat, conv2d, cross_entropy, linear, pool, relu, shortcut, sum, Call, Gradient, Op, Source,
};

use crate::harness::{reference, Data, Random};

/// The step of the differences, and how far inputs keep away from kinks.
const STEP: f64 = 1.0 / 1024.0;
const CLEARANCE: f64 = 8.0 * STEP;

/// An op at a point.
struct Point {
    name: &'static str,
    op: Op,
    inputs: Vec<Data>,
    /// The old running statistics.
    updates: Vec<Data>,
    /// True for values of the first output whose cotangent is 0, near a kink.
    skip: fn(f64) -> bool,
}

impl Point {
    fn new(name: &'static str, op: Op, inputs: Vec<Data>) -> Self {
        Self { name, op, inputs, updates: Vec::new(), skip: |_| false }
    }

    fn outputs(&self, inputs: &[Data]) -> Vec<Data> {
        reference(&self.op, inputs, &self.updates)
    }

    /// The cotangents of the outputs whose gradients the rules read; a loss, whose gradient they do not read, has 1.
    fn cotangents(&self, rules: &[Gradient]) -> Vec<Option<Vec<f64>>> {
        let mut random = Random::new(self.name);
        let used = |output: usize| {
            rules.iter().any(|rule| match rule {
                Gradient::Node { sources, .. } => sources.contains(&Source::Grad(output)),
                Gradient::Same { output: o, .. } => *o == output,
            })
        };
        let outputs = self.outputs(&self.inputs);
        let is_loss = matches!(self.op, Op::CrossEntropy(_));
        let cotangent = |(i, output): (usize, &Data)| match output {
            Data::Real(_) if is_loss => (i == 0).then(|| vec![1.0]),
            Data::Real(y) if used(i) => {
                let u = random.normals(y.len(), 0.0, 1.0);
                Some(u.iter().zip(y).map(|(&u, &y)| if (self.skip)(y) { 0.0 } else { u }).collect())
            }
            _ => None,
        };
        outputs.iter().enumerate().map(cotangent).collect()
    }

    /// The gradient of every input by the rules.
    fn gradients(&self, rules: &[Gradient], cotangents: &[Option<Vec<f64>>]) -> Vec<Option<Vec<f64>>> {
        let outputs = self.outputs(&self.inputs);
        let grad = |i: usize| cotangents[i].clone().expect("the cotangent of a differentiable output");
        let mut gradients = vec![None; self.inputs.len()];
        for rule in rules {
            match rule {
                Gradient::Same { output, input } => gradients[*input] = Some(grad(*output)),
                Gradient::Node { op, sources, targets } => {
                    let source = |s: &Source| match *s {
                        Source::Input(i) => self.inputs[i].clone(),
                        Source::Output(i) => outputs[i].clone(),
                        Source::Grad(i) => Data::Real(grad(i)),
                    };
                    let sources: Vec<Data> = sources.iter().map(source).collect();
                    for (target, found) in targets.iter().zip(reference(op, &sources, &[])) {
                        if let Some(input) = *target {
                            gradients[input] = Some(found.real().to_vec());
                        }
                    }
                }
            }
        }
        gradients
    }

    /// The sum of all outputs times their cotangents, and of the magnitudes of its terms, with `inputs[i] += t d`.
    fn along(&self, i: usize, d: &[f64], t: f64, cotangents: &[Option<Vec<f64>>]) -> (f64, f64) {
        let mut inputs = self.inputs.clone();
        inputs[i] = Data::Real(inputs[i].real().iter().zip(d).map(|(&x, &d)| x + t * d).collect());
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for (output, u) in self.outputs(&inputs).iter().zip(cotangents) {
            for (&u, &y) in u.iter().flatten().zip(output.real_or_empty()) {
                sum += u * y;
                magnitude += (u * y).abs();
            }
        }
        (sum, magnitude)
    }

    /// The derivative in direction `d` of input `i`, and a bound of its error. The difference is of fourth order; its
    /// distance to the difference with twice the step is 15 times its error, to first order.
    fn difference(&self, i: usize, d: &[f64], cotangents: &[Option<Vec<f64>>]) -> (f64, f64) {
        let f = |t: f64| self.along(i, d, t, cotangents);
        let at = |h: f64| {
            let odd = |t: f64| f(t).0 - f(-t).0;
            (8.0 * odd(h) - odd(2.0 * h)) / (12.0 * h)
        };
        let (fine, coarse) = (at(STEP), at(2.0 * STEP));
        let rounding = 16.0 * terms(&self.op) * f64::EPSILON * f(0.0).1 / STEP;
        (fine, (fine - coarse).abs() + rounding)
    }
}

/// The terms of the longest sum in an output.
fn terms(op: &Op) -> f64 {
    let op = op.operator();
    let outputs: usize = op.outputs().iter().map(|t| t.shape.len()).max().unwrap_or(1);
    4.0 + op.flops() as f64 / outputs as f64
}

trait RealOrEmpty {
    fn real_or_empty(&self) -> &[f64];
}

impl RealOrEmpty for Data {
    fn real_or_empty(&self) -> &[f64] {
        match self {
            Data::Real(v) => v,
            _ => &[],
        }
    }
}

/// Compares the rules with differences for each input that has a gradient; `expected` lists these inputs.
fn check(point: &Point, expected: &[usize]) {
    let needed = vec![true; point.inputs.len()];
    let rules = point.op.operator().gradient(&needed).unwrap_or_else(|e| panic!("{}: {e}", point.name));
    let cotangents = point.cotangents(&rules);
    let gradients = point.gradients(&rules, &cotangents);
    let found: Vec<usize> = (0..gradients.len()).filter(|&i| gradients[i].is_some()).collect();
    assert_eq!(found, expected, "{}: inputs with a gradient", point.name);
    for (i, gradient) in gradients.iter().enumerate().filter_map(|(i, g)| Some((i, g.as_ref()?))) {
        let d = Random::new(&format!("{} {i}", point.name)).reals(gradient.len(), -1.0, 1.0);
        let (difference, bound) = point.difference(i, &d, &cotangents);
        let along = |g: &[f64]| g.iter().zip(&d).map(|(g, d)| g * d).sum::<f64>();
        let error = (along(gradient) - difference).abs();
        assert!(error <= bound, "{} input {i}: off by {error:e} of {difference:e}, allowed {bound:e}", point.name);
        refuses_a_wrong_gradient(point, i, gradient, &d, difference, bound);
    }
}

/// The negative control: the gradient with its largest element halved is refused.
fn refuses_a_wrong_gradient(point: &Point, i: usize, gradient: &[f64], d: &[f64], difference: f64, bound: f64) {
    let weight = |k: usize| (gradient[k] * d[k]).abs();
    let largest = (0..gradient.len()).max_by(|&a, &b| weight(a).total_cmp(&weight(b))).expect("an element");
    let wrong: f64 = (0..gradient.len()).map(|k| gradient[k] * d[k] * if k == largest { 0.5 } else { 1.0 }).sum();
    assert!((wrong - difference).abs() > bound, "{} input {i}: a bound of {bound:e} finds nothing", point.name);
}

fn normals(name: &str, len: usize) -> Data {
    Data::Real(Random::new(name).normals(len, 0.0, 1.0))
}

/// Numbers that keep away from 0 and from each other.
fn spread(name: &str, len: usize) -> Data {
    let mut random = Random::new(name);
    let mut values: Vec<f64> = (0..len).map(|i| (i as f64 - len as f64 / 2.0 + 0.5) * 2.0 * CLEARANCE).collect();
    for i in (1..len).rev() {
        values.swap(i, random.below(i + 1));
    }
    Data::Real(values)
}

fn conv(name: &'static str, spec: conv2d::Spec, bias: bool) {
    let conv = conv2d::Conv2d::new(spec).expect("a convolution");
    let op = Op::Conv2d(conv2d::Node { conv, pass: conv2d::Pass::fwd(bias) });
    let inputs =
        op.operator().inputs().into_iter().enumerate().map(|(i, t)| normals(&format!("{name}{i}"), t.shape.len()));
    let point = Point::new(name, op.clone(), inputs.collect());
    check(&point, if bias { &[0, 1, 2] } else { &[0, 1] });
}

#[test]
fn conv2d() {
    let dense = conv2d::Spec {
        n: 2,
        h: 5,
        w: 6,
        c: 4,
        k: 6,
        kernel: [3, 3],
        stride: [1, 1],
        padding: [1, 1],
        dilation: [1, 1],
        groups: 1,
    };
    conv("dense", dense, true);
    conv("strided", conv2d::Spec { stride: [2, 3], ..dense }, false);
    conv("grouped and dilated", conv2d::Spec { groups: 2, dilation: [2, 1], padding: [2, 0], ..dense }, true);
    conv("1x1, stride 2", conv2d::Spec { kernel: [1, 1], stride: [2, 2], padding: [0, 0], ..dense }, false);
    conv("stride beyond the kernel", conv2d::Spec { kernel: [2, 1], stride: [3, 2], padding: [0, 1], ..dense }, true);
}

#[test]
fn linear() {
    for bias in [false, true] {
        let linear = linear::Linear::new(linear::Spec { x: [3, 2, 2, 5], k: 4 }).expect("a layer");
        let op = Op::Linear(linear.fwd(bias));
        let inputs =
            op.operator().inputs().into_iter().enumerate().map(|(i, t)| normals(&format!("linear{i}"), t.shape.len()));
        let at = linear::Fwd { bias: bias.then_some(()), ..linear::Fwd::<()>::default() }.places();
        let differentiable: Vec<usize> = [at.x, at.w].into_iter().chain(at.bias).collect();
        check(&Point::new("linear", op.clone(), inputs.collect()), &differentiable);
    }
}

#[test]
fn batch_norm() {
    for (name, x, relu) in [
        ("batch norm", [2, 3, 3, 4], false),
        ("batch norm with ReLU", [3, 2, 4, 3], true),
        ("batch norm of two elements", [2, 1, 1, 3], false),
    ] {
        let bn = batch_norm::BatchNorm::new(batch_norm::Spec { x, eps: 1e-2, momentum: 0.1 }).expect("a batch norm");
        let op = Op::BatchNorm(bn.train(relu).expect("a training pass"));
        let c = x[3];
        let inputs = vec![normals(name, x.iter().product()), normals("gamma", c), normals("beta", c)];
        let mut point = Point::new(name, op, inputs);
        point.updates = vec![normals("mean", c), Data::Real(vec![1.0; c])];
        if relu {
            // y moves by less than 4 steps times gamma and invstd of at most 8. Exact zeros are rectified, so that
            // their distance to the kink does not show: `keep_rectified_clear` checks it.
            point.skip = |y| y > 0.0 && y < 8.0 * CLEARANCE;
            point.keep_rectified_clear(&bn);
        }
        let at = batch_norm::Train::<()>::default().places();
        check(&point, &[at.x, at.gamma, at.beta]);
    }
}

impl Point {
    /// Checks that no rectified element of a batch norm is near the kink.
    fn keep_rectified_clear(&self, bn: &batch_norm::BatchNorm) {
        let linear = Op::BatchNorm(bn.train(false).expect("a training pass"));
        let at = batch_norm::Train::<()>::default().places();
        let y = &reference(&linear, &self.inputs, &self.updates)[at.y];
        let near = y.real().iter().filter(|y| **y <= 0.0 && **y > -8.0 * CLEARANCE).count();
        assert_eq!(near, 0, "{}: choose other inputs", self.name);
    }
}

#[test]
fn relu_and_add() {
    let shape = residuum::tensor::Shape::from([2, 3, 4, 5]);
    let len = shape.len();
    let op = Op::Relu(relu::Node { shape: shape.clone(), pass: relu::Pass::Fwd });
    check(&Point::new("relu", op, vec![spread("relu", len)]), &[0]);
    let op = Op::Sum(sum::Node::of(shape));
    check(&Point::new("add", op, vec![normals("a", len), normals("b", len)]), &[0, 1]);
}

#[test]
fn pool() {
    for (window, kind) in crate::cases::pool::crossed() {
        let x = [2, 7, 6, 3];
        let pool = pool::Pool::new(pool::Spec { x, window, kind }).expect("a pooling");
        check(&Point::new("pool", Op::Pool(pool.fwd()), vec![spread("pool", x.iter().product())]), &[0]);
    }
}

#[test]
fn concat() {
    let spec = concat::Spec { pixels: [2, 3, 4], channels: vec![3, 1, 5] };
    let inputs = spec.channels.iter().map(|c| normals(&format!("concat {c}"), 24 * c)).collect();
    let op = Op::Concat(concat::Concat::new(spec).expect("a concatenation").fwd());
    check(&Point::new("concat", op, inputs), &[0, 1, 2]);
}

#[test]
fn shortcut() {
    for (stride, lead) in [(1, 0), (2, 0), (2, 2)] {
        let spec = shortcut::Spec { x: [2, 5, 4, 3], k: 6, stride, lead };
        let op = Op::Shortcut(shortcut::Shortcut::new(spec).expect("a shortcut").fwd());
        check(&Point::new("shortcut", op, vec![normals("shortcut", 120)]), &[0]);
    }
}

#[test]
fn cross_entropy() {
    for smoothing in [0.0, 0.1] {
        let spec = cross_entropy::Spec { n: 6, classes: 5, smoothing, grad_scale: 1.0 };
        let op = Op::CrossEntropy(cross_entropy::CrossEntropy::new(spec).expect("a loss").fwd());
        let labels = Data::Index(Random::new("labels").labels(6, 5));
        check(&Point::new("cross-entropy", op, vec![normals("logits", 30), labels]), &[0]);
    }
}
