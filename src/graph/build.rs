//! The builder of forward graphs.

use std::collections::HashSet;

use super::state::check_shape;
use super::{Buffer, Graph, Mode, Origin, Parameter, ParameterKind, ValueId};
use crate::ops::store::Epilogue;
use crate::ops::{batch_norm, concat, conv2d, cross_entropy, linear, pool, relu, shortcut, Call, Op};
use crate::tensor::{Shape, TensorType};
use crate::{Error, Result};

/// The options of a convolution; its input gives the other extents. [`Builder`] has an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvOptions {
    /// Output channels.
    pub k: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub stride: [usize; 2],
    /// Zero padding: rows above and below, columns left and right.
    pub padding: [usize; 2],
    /// Vertical and horizontal distance between kernel taps, in pixels.
    pub dilation: [usize; 2],
    /// Groups.
    pub groups: usize,
    /// True adds a bias.
    pub bias: bool,
}

impl Default for ConvOptions {
    /// A single 1x1 filter without bias.
    fn default() -> Self {
        Self { k: 1, kernel: [1; 2], stride: [1; 2], padding: [0; 2], dilation: [1; 2], groups: 1, bias: false }
    }
}

/// The options of a loss. [`Builder`] has an example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossOptions {
    /// Label smoothing, in 0..1.
    pub smoothing: f64,
    /// The fixed loss scale: all gradients inside the graph are multiplied by it, so that f16 can hold them. A
    /// program's optimizer, [`Program::gradients`](super::Program::gradients) and the interpreter divide by it.
    pub grad_scale: f64,
}

impl Default for LossOptions {
    /// No label smoothing; a loss scale of 1.
    fn default() -> Self {
        Self { smoothing: 0.0, grad_scale: 1.0 }
    }
}

/// Builds a [`Graph`] layer by layer. Shapes are NHWC. Parameters have torch's names (layer `conv1` has `conv1.weight`)
/// and, in state dicts, torch's layouts. A layer that fails, on invalid options or a name in use, adds no tensor.
/// If two inputs or two outputs have one name, all later layers and [`Program::compile`](super::Program::compile) fail.
///
/// # Panics
/// A layer may panic if its input is the loss or a value of another builder.
///
/// ```
/// use residuum::graph::{Builder, ConvOptions, LossOptions, Mode};
/// use residuum::ops::pool::{Kind, Window};
///
/// let mut b = Builder::new(Mode::Train);
/// let x = b.input("input", [4, 8, 8, 3]);
/// let conv = ConvOptions { k: 16, kernel: [3, 3], padding: [1, 1], ..Default::default() };
/// let x = b.conv2d("conv1", x, conv)?;
/// // A residual block.
/// let y = b.conv2d("block.conv", x, conv)?;
/// let y = b.batch_norm("block.bn", y, 1e-5)?;
/// let x = b.add(y, x)?;
/// let x = b.relu(x)?;
/// assert_eq!(b.shape(x), [4, 8, 8, 16]);
/// let x = b.pool(x, Window::Adaptive([1, 1]), Kind::Average { count_padding: false })?;
/// let logits = b.linear("fc", x, 10)?;
/// b.loss(logits, LossOptions { smoothing: 0.1, ..Default::default() })?;
/// let graph = b.finish();
///
/// let names: Vec<&str> = graph.parameters().iter().map(|p| p.name.as_str()).collect();
/// assert_eq!(names[..3], ["conv1.weight", "block.conv.weight", "block.bn.weight"]);
/// assert_eq!(graph.parameters()[0].shape.dims(), [16, 3, 3, 3], "OIHW");
/// # Ok::<(), residuum::Error>(())
/// ```
#[derive(Debug)]
pub struct Builder {
    pub(super) graph: Graph,
    /// The gate of the branch under construction.
    pub(super) gate: Option<ValueId>,
    names: HashSet<String>,
}

impl Builder {
    /// An empty graph.
    pub fn new(mode: Mode) -> Self {
        let graph = Graph {
            mode,
            values: Vec::new(),
            nodes: Vec::new(),
            parameters: Vec::new(),
            buffers: Vec::new(),
            blocks: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            loss: None,
            grad_scale: 1.0,
            loss_scale: None,
            recompute: false,
        };
        Self { graph, gate: None, names: HashSet::new() }
    }

    /// An input of images, `[N,H,W,C]`. [`Program::set_input`](super::Program::set_input) sets it from an NCHW tensor.
    pub fn input(&mut self, name: &str, nhwc: [usize; 4]) -> ValueId {
        self.add_input(name, TensorType::real(nhwc))
    }

    /// The shape of a value: N, H, W, C. A feature vector has H = W = 1.
    ///
    /// # Panics
    /// If the value holds neither images nor feature vectors.
    pub fn shape(&self, value: ValueId) -> [usize; 4] {
        match self.graph.ty(value).shape.nhwc() {
            Some(nhwc) => nhwc,
            None => panic!("value {value:?} is neither images nor features"),
        }
    }

    /// A convolution from `[N,H,W,C]` to `[N,P,Q,K]` with the parameters `{name}.weight` and, if asked, `{name}.bias`.
    pub fn conv2d(&mut self, name: &str, x: ValueId, options: ConvOptions) -> Result<ValueId> {
        let [n, h, w, c] = self.shape(x);
        let ConvOptions { k, kernel, stride, padding, dilation, groups, bias } = options;
        let spec = conv2d::Spec { n, h, w, c, k, kernel, stride, padding, dilation, groups };
        let conv = within(name, conv2d::Conv2d::new(spec))?;
        self.claim(name, if bias { &["weight", "bias"] } else { &["weight"] })?;
        let [k, r, s, cg] = conv.w_shape();
        let (shape, ty) = ([k, cg, r, s].into(), TensorType::real([k, r, s, cg]));
        let w = self.parameter(format!("{name}.weight"), shape, ParameterKind::ConvWeight, ty);
        let shift = bias.then(|| self.per_channel(format!("{name}.bias"), k, ParameterKind::Bias));
        let epilogue = Epilogue { shift, ..Epilogue::default() };
        let call = conv2d::Fwd { x: x.into(), w, epilogue, y: None, moments: None, end: None };
        Ok(self.push(Op::Conv2d(conv2d::Node { conv, pass: conv2d::Pass::fwd(bias) }), call)?.y)
    }

    /// A batch norm (momentum 0.1) over the channels of `[N,H,W,C]`, with the parameters `{name}.weight`, `{name}.bias`
    /// and the buffers `{name}.running_mean`, `{name}.running_var`.
    pub fn batch_norm(&mut self, name: &str, x: ValueId, eps: f64) -> Result<ValueId> {
        let shape = self.shape(x);
        let bn = within(name, batch_norm::BatchNorm::new(batch_norm::Spec { x: shape, eps, momentum: 0.1 }))?;
        let op = Op::BatchNorm(match self.graph.mode {
            Mode::Train => within(name, bn.train(false))?,
            Mode::Infer => bn.infer(false),
        });
        self.claim(name, &["weight", "bias", "running_mean", "running_var"])?;
        let c = shape[3];
        let gamma = self.per_channel(format!("{name}.weight"), c, ParameterKind::BatchNormWeight);
        let beta = self.per_channel(format!("{name}.bias"), c, ParameterKind::BatchNormBias);
        let [running_mean, running_var] =
            ["running_mean", "running_var"].map(|leaf| self.buffer(format!("{name}.{leaf}"), c));
        Ok(match self.graph.mode {
            Mode::Train => {
                let (running_mean, running_var) = (Some(running_mean), Some(running_var));
                let (y, mean, invstd) = (None, None, None);
                self.push(op, batch_norm::Train { x, gamma, beta, y, mean, invstd, running_mean, running_var })?.y
            }
            Mode::Infer => self.push(op, batch_norm::Infer { x, gamma, beta, running_mean, running_var, y: None })?.y,
        })
    }

    /// `max(x, 0)`, for x of any shape.
    pub fn relu(&mut self, x: ValueId) -> Result<ValueId> {
        let shape = self.graph.ty(x).shape.clone();
        Ok(self.push(Op::Relu(relu::Node { shape, pass: relu::Pass::Fwd }), relu::Fwd { x, y: None })?.y)
    }

    /// `a + b`, of any shape. Fails if their shapes differ.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.common_shape("add", a, b)?;
        self.graph.check_names()?;
        Ok(self.graph.add_sum([a, b], None, self.gate))
    }

    /// The shape of `a`. Fails if `b` has another.
    pub(super) fn common_shape(&self, what: &str, a: ValueId, b: ValueId) -> Result<Shape> {
        let shape = self.graph.ty(a).shape.clone();
        check_shape(what.into(), shape.clone(), &self.graph.ty(b).shape)?;
        Ok(shape)
    }

    /// Concatenates `parts`, each `[N,H,W,C]`, along the channels. Fails if there is none, or if N, H or W differ.
    pub fn concat(&mut self, parts: &[ValueId]) -> Result<ValueId> {
        let shapes: Vec<_> = parts.iter().map(|&part| self.shape(part)).collect();
        let pixels = shapes.first().map_or([0; 3], |&[n, h, w, _]| [n, h, w]);
        if let Some(&[n, h, w, c]) = shapes.iter().find(|[n, h, w, _]| [*n, *h, *w] != pixels) {
            let expected = [pixels[0], pixels[1], pixels[2], c].into();
            return Err(Error::Shape { what: "concat".into(), expected, found: [n, h, w, c].into() });
        }
        let channels = shapes.iter().map(|shape| shape[3]).collect();
        let concat = concat::Concat::new(concat::Spec { pixels, channels })?;
        Ok(self.push(Op::Concat(concat.fwd()), concat::Fwd { x: parts.to_vec(), y: None })?.y)
    }

    /// Pooling from `[N,H,W,C]` to `[N,P,Q,C]`.
    pub fn pool(&mut self, x: ValueId, window: pool::Window, kind: pool::Kind) -> Result<ValueId> {
        let pool = pool::Pool::new(pool::Spec { x: self.shape(x), window, kind })?;
        let node = pool.fwd();
        let pool::Pass::Fwd(form) = node.pass else { unreachable!("it is the forward pass") };
        let call = pool::Fwd { x: x.into(), y: None, index: form.index.map(|()| None) };
        Ok(self.push(Op::Pool(node), call)?.y)
    }

    /// The parameter-free shortcut (option A), `[N,H,W,C]` to `[N,P,Q,k]`: every `stride`-th pixel, with `lead` zero
    /// channels before the input's channels and zeros after them up to `k`.
    pub fn shortcut(&mut self, x: ValueId, k: usize, stride: usize, lead: usize) -> Result<ValueId> {
        let shortcut = shortcut::Shortcut::new(shortcut::Spec { x: self.shape(x), k, stride, lead })?;
        Ok(self.push(Op::Shortcut(shortcut.fwd()), shortcut::Fwd { x, y: None })?.y)
    }

    /// A fully connected layer from `[N,H,W,C]` to `[N,k]` with the parameters `{name}.weight` and `{name}.bias`. In
    /// state dicts its weight is torch's `[k, C*H*W]`: images are flattened with channels slowest.
    pub fn linear(&mut self, name: &str, x: ValueId, k: usize) -> Result<ValueId> {
        let shape = self.shape(x);
        let linear = within(name, linear::Linear::new(linear::Spec { x: shape, k }))?;
        self.claim(name, &["weight", "bias"])?;
        let (torch, ty) = ([k, shape[1..].iter().product()].into(), TensorType::real(linear.w_shape()));
        let w = self.parameter(format!("{name}.weight"), torch, ParameterKind::LinearWeight, ty);
        let bias = Some(self.per_channel(format!("{name}.bias"), k, ParameterKind::Bias));
        Ok(self.push(Op::Linear(linear.fwd(true)), linear::Fwd { x, w, bias, y: None })?.y)
    }

    /// The softmax cross-entropy of `logits`, `[N,classes]`. Adds the input `labels`, `[N]`, and two outputs of shape
    /// `[1]`: `loss`, the batch mean in nats, and `correct`, a number of images. Fails if there is a loss already.
    pub fn loss(&mut self, logits: ValueId, options: LossOptions) -> Result<ValueId> {
        Error::check(self.graph.loss.is_none(), "loss", || "the graph has one already".into())?;
        let [n, h, w, classes] = self.shape(logits);
        Error::check((h, w) == (1, 1), "loss", || format!("logits of {h}x{w} pixels, expected one"))?;
        let LossOptions { smoothing, grad_scale } = options;
        let spec = cross_entropy::Spec { n, classes, smoothing, grad_scale };
        let loss = cross_entropy::CrossEntropy::new(spec)?;
        let labels = self.add_input("labels", TensorType::index([n]));
        let call = cross_entropy::Fwd { logits, labels, loss: None, correct: None };
        let cross_entropy::Fwd { loss, correct, .. } = self.push(Op::CrossEntropy(loss.fwd()), call)?;
        self.output("loss", loss);
        self.output("correct", correct);
        self.graph.check_names()?;
        self.graph.loss = Some(loss);
        self.graph.grad_scale = grad_scale;
        Ok(loss)
    }

    /// Makes a value an output called `name`, which can be read after a run in torch's layout (NCHW).
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.graph.outputs.push((name.into(), value));
    }

    /// Returns the graph.
    pub fn finish(self) -> Graph {
        self.graph
    }

    fn add_input(&mut self, name: &str, ty: TensorType) -> ValueId {
        let value = self.graph.add_value(ty, Origin::Input);
        self.graph.inputs.push((name.into(), value));
        value
    }

    /// Appends `op` in the branch under construction.
    pub(super) fn push<C: Call<ValueId, Option<ValueId>> + Clone>(
        &mut self,
        op: Op,
        call: C,
    ) -> Result<C::Of<ValueId, ValueId>> {
        self.graph.check_names()?;
        Ok(self.graph.add(op, call, self.gate))
    }

    fn per_channel(&mut self, name: String, c: usize, kind: ParameterKind) -> ValueId {
        self.parameter(name, [c].into(), kind, TensorType::stat([c]))
    }

    fn parameter(&mut self, name: String, shape: Shape, kind: ParameterKind, ty: TensorType) -> ValueId {
        let value = self.graph.add_value(ty, Origin::Parameter(self.graph.parameters.len()));
        self.graph.parameters.push(Parameter { name, shape, kind, value, grad: None });
        value
    }

    fn buffer(&mut self, name: String, c: usize) -> ValueId {
        let value = self.graph.add_value(TensorType::stat([c]), Origin::Buffer(self.graph.buffers.len()));
        self.graph.buffers.push(Buffer { name, shape: [c].into(), value });
        value
    }

    /// Claims the names of the tensors of `layer`. Fails, and claims none, if one is in use.
    fn claim(&mut self, layer: &str, tensors: &[&str]) -> Result<()> {
        self.graph.check_names()?;
        let names: Vec<String> = tensors.iter().map(|tensor| format!("{layer}.{tensor}")).collect();
        if let Some(name) = names.iter().find(|&name| self.names.contains(name)) {
            return Err(Error::invalid(name, "a tensor of that name exists already"));
        }
        self.names.extend(names);
        Ok(())
    }
}

impl Graph {
    /// Fails if two inputs or two outputs have one name.
    pub(super) fn check_names(&self) -> Result<()> {
        for (kind, named) in [("input", &self.inputs), ("output", &self.outputs)] {
            let mut seen = HashSet::new();
            if let Some((name, _)) = named.iter().find(|(name, _)| !seen.insert(name)) {
                return Err(Error::invalid(format!("{kind} `{name}`"), "another has that name"));
            }
        }
        Ok(())
    }
}

/// Prefixes an error with the layer's name.
fn within<T>(layer: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Invalid { what, problem } => Error::Invalid { what: format!("{layer}: {what}"), problem },
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_fails_adds_no_tensor() {
        let mut b = Builder::new(Mode::Train);
        let x = b.input("input", [1, 1, 1, 3]);
        b.linear("fc", x, 2).unwrap();
        // The batch norm has one element per channel; the others meet names in use.
        assert!(b.batch_norm("norm", x, 1e-5).is_err());
        assert!(b.linear("fc", x, 2).is_err());
        b.names.insert("conv.bias".into());
        assert!(b.conv2d("conv", x, ConvOptions { bias: true, ..Default::default() }).is_err());
        b.conv2d("conv", x, ConvOptions::default()).unwrap();
        assert_eq!((b.graph.parameters.len(), b.graph.buffers.len()), (3, 0));
    }

    #[test]
    fn names_of_inputs_and_outputs_are_unique() {
        let problem = |twice: fn(&mut Builder, ValueId)| {
            let mut b = Builder::new(Mode::Train);
            let x = b.input("input", [2, 1, 1, 3]);
            twice(&mut b, x);
            let layer = b.loss(x, LossOptions::default()).unwrap_err().to_string();
            assert_eq!(b.relu(x).unwrap_err().to_string(), layer, "all later layers fail");
            assert_eq!(b.finish().check_names().unwrap_err().to_string(), layer);
            layer
        };
        assert_eq!(problem(|b, _| _ = b.input("input", [1; 4])), "input `input`: another has that name");
        assert_eq!(problem(|b, _| _ = b.input("labels", [1; 4])), "input `labels`: another has that name");
        assert_eq!(problem(|b, x| b.output("loss", x)), "output `loss`: another has that name");
    }
}
