//! Networks by name: a table of models, and a file for each family.
//!
//! Each family has a grammar of names: [`find`] accepts every name of [`all`] and others of its form, such as
//! `resnet26_cifar`, `resnext50_16x4d` or `densenet_bc40_k24_cifar`. Parameters have torchvision's names and layouts.
//!
//! ```text
//! resnet{18|34|50|101|152|200}[_v1|_option_a|_option_c]   plain{18|34}     ImageNet; _v1: stride in the first 1x1
//! resnext{50|101}_{C}x{d}d   wide_resnet{50|101}_{f}                       C groups of d channels; f times as wide
//! resnet{6n+2}_cifar[shortcut][order]   plain{6n+2}_cifar                  basic blocks
//! resnet{9n+2}_bottleneck_cifar[shortcut][order]                           bottlenecks
//! resnext{9n+2}_{C}x{d}d_cifar   preact_resnet{9n+2}_cifar
//! NETWORK_survival{05}[_uniform]                           stochastic depth on any of these but the plain ones
//! shortcut   _option_b | _conv1x1 | _average
//! order      _bn_after_add | _relu_before_add | _relu_only_preact | _full_preact
//!
//! densenet{121|161|169|201|264}         ImageNet
//! densenet[_b|_c|_bc]{L}_k{k}_cifar     L layers of growth k: three blocks of (L-4)/3 layers, (L-4)/6 with B
//!
//! vgg{11|13|16|19}[_bn]   alexnet       ImageNet
//! ```
//!
//! ```
//! use residuum::graph::Mode;
//! use residuum::models::{self, BuildOptions};
//!
//! let model = models::find("resnet20_cifar")?;
//! assert_eq!(model.input(), [3, 32, 32]);
//! let graph = model.build(Mode::Infer, 1, model.input(), model.classes(), BuildOptions::default())?;
//! let published = model.published().expect("a row of the table");
//! assert_eq!(graph.parameter_count() as u64, published.parameters);
//!
//! // Weights under torchvision's names and in torch's layout.
//! let state = model.initialise(&graph, 0);
//! assert_eq!(state["layer1.0.conv1.weight"].shape.dims(), [16, 16, 3, 3]);
//! assert_eq!(model.classes_of(&state)?, 10);
//! assert!(models::find("resnet20_cifr").is_err_and(|e| e.to_string().contains("did you mean resnet20_cifar")));
//! # Ok::<(), residuum::Error>(())
//! ```

mod alexnet;
mod blocks;
mod densenet;
pub mod init;
mod resnet;
mod table;
mod vgg;
pub mod weights;

use std::sync::LazyLock;

use crate::graph::{Builder, Graph, Interpreter, LossOptions, Mode, ValueId};
use crate::tensor::{DType, HostTensor, Real, StateDict};
use crate::{error, Error, Result};

/// The longest name, in bytes, for which similar names are searched.
const LONGEST: usize = 200;

/// The published figures of a model. See the [module](self) for an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Parameters, at the default number of classes.
    pub parameters: u64,
    /// Multiply-adds per image at the default input size, rounded to ten thousand.
    pub macs: u64,
    /// The paper or code that defines the network.
    pub source: &'static str,
}

/// A named network. See the [module](self) for an example.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    name: String,
    traits: Traits,
    published: Option<Published>,
    network: Network,
}

/// Options of [`Model::build`]. See the [module](self) for an example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BuildOptions {
    /// Adds the softmax cross-entropy against the input `labels`, with the outputs `loss` and `correct`.
    pub loss: bool,
    /// Label smoothing, in 0..1.
    pub smoothing: f64,
    /// Loss scale, for f16: see [`LossOptions`].
    pub grad_scale: f64,
}

impl Default for BuildOptions {
    /// No loss; no smoothing; a scale of 1.
    fn default() -> Self {
        Self { loss: false, smoothing: 0.0, grad_scale: 1.0 }
    }
}

/// The properties of a network besides its layers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Traits {
    /// The default shape of an image (C, H, W) and the default number of classes.
    data: ([usize; 3], usize),
    /// The name of the first convolution.
    stem: &'static str,
    /// The name of the last linear layer.
    head: &'static str,
    /// The initialisation of its source.
    scheme: init::Scheme,
    /// True with stochastic depth.
    stochastic: bool,
}

/// The images and classes of ImageNet.
const IMAGENET: ([usize; 3], usize) = ([3, 224, 224], 1000);
/// The images and classes of CIFAR-10.
const CIFAR: ([usize; 3], usize) = ([3, 32, 32], 10);

/// The interface of a family's networks.
trait Architecture {
    fn traits(&self) -> Traits;

    /// Appends the layers from the images `x` (NHWC) to the logits.
    fn layers(&self, b: &mut Builder, x: ValueId, classes: usize) -> Result<ValueId>;
}

/// Declares the families; each is a module with a `Spec` and the grammar of its names, `parse`.
macro_rules! families {
    ($($variant:ident: $family:ident,)*) => {
        /// A network's descriptor, parsed from its name by its family's grammar.
        #[derive(Clone, Debug, PartialEq)]
        enum Network {
            $($variant($family::Spec),)*
        }

        impl Network {
            /// Parses `name` by the grammar of every family.
            fn parse(name: &str) -> Option<Self> {
                None$(.or_else(|| $family::parse(name).map(Self::$variant)))*
            }

            fn architecture(&self) -> &dyn Architecture {
                match self {
                    $(Self::$variant(spec) => spec,)*
                }
            }
        }
    };
}

families! {
    AlexNet: alexnet,
    Dense: densenet,
    Residual: resnet,
    Vgg: vgg,
}

/// The models with published figures, in the table's order.
pub fn all() -> &'static [Model] {
    static ALL: LazyLock<Vec<Model>> =
        LazyLock::new(|| table::ROWS.iter().filter_map(|row| Model::new(row.name)).collect());
    &ALL
}

/// The model of a name in a family's grammar, as in [`all`]. The error of an unknown name suggests similar ones.
pub fn find(name: &str) -> Result<Model> {
    Model::new(name).ok_or_else(|| {
        let names = table::ROWS.iter().map(|row| row.name);
        // The search time grows with the length, and no long name is similar to any.
        let nearest = if name.len() <= LONGEST { nearest(name, names) } else { Vec::new() };
        Error::Unknown { kind: "model", name: error::line(name.into()), nearest }
    })
}

impl Model {
    fn new(name: &str) -> Option<Self> {
        let network = Network::parse(name)?;
        let published = table::ROWS.iter().find(|row| row.name == name).map(|row| row.published);
        Some(Self { name: name.into(), traits: network.architecture().traits(), published, network })
    }

    /// The name that [`find`] takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The default shape of an image: C, H, W.
    pub fn input(&self) -> [usize; 3] {
        self.traits.data.0
    }

    /// The default number of classes.
    pub fn classes(&self) -> usize {
        self.traits.data.1
    }

    /// True with stochastic depth: training drops blocks at random.
    pub fn is_stochastic(&self) -> bool {
        self.traits.stochastic
    }

    /// The published figures, for the models of [`all`].
    pub fn published(&self) -> Option<Published> {
        self.published
    }

    /// The graph for batches of `batch` images of C, H, W, not yet differentiated. It has the input `input` (NHWC in
    /// the graph; [`Program::set_input`](crate::graph::Program::set_input) takes NCHW), the output `logits` of shape
    /// `[batch, classes]`, and a loss if `options` ask for one. Fails if an extent is 0 or an image is too small for
    /// the network.
    pub fn build(
        &self,
        mode: Mode,
        batch: usize,
        [channels, height, width]: [usize; 3],
        classes: usize,
        options: BuildOptions,
    ) -> Result<Graph> {
        let extents =
            [("batch", batch), ("channels", channels), ("height", height), ("width", width), ("classes", classes)];
        for (what, value) in extents {
            Error::check(value > 0, what, || format!("0 for {}, expected at least 1", self.name))?;
        }
        let mut b = Builder::new(mode);
        let x = b.input("input", [batch, height, width, channels]);
        let logits = self.network.architecture().layers(&mut b, x, classes)?;
        b.output("logits", logits);
        if options.loss {
            let BuildOptions { smoothing, grad_scale, .. } = options;
            b.loss(logits, LossOptions { smoothing, grad_scale })?;
        }
        Ok(b.finish())
    }

    /// New parameters and buffers for `graph` in torch's layout, as in the model's source: see [`init::initialise`].
    pub fn initialise(&self, graph: &Graph, seed: u64) -> StateDict {
        init::initialise(graph, &self.traits.scheme, seed)
    }

    /// The number of classes of the weights `state`: the rows of the last linear layer, `[out, in]`.
    pub fn classes_of(&self, state: &StateDict) -> Result<usize> {
        self.extent_of(state, self.traits.head, 0)
    }

    /// The number of image channels of the weights `state`: the I of the first convolution, OIHW.
    pub fn channels_of(&self, state: &StateDict) -> Result<usize> {
        self.extent_of(state, self.traits.stem, 1)
    }

    /// The first layer whose output is not finite for `image`, `[1, C, H, W]`, with the weights `state`: see
    /// [`Interpreter::first_non_finite`]. `None` if all are finite. It runs inference on the CPU, op by op, and rounds
    /// stored values to `dtype`. Fails if the weights or the image do not fit.
    pub fn first_non_finite(&self, state: &StateDict, image: &HostTensor, dtype: DType) -> Result<Option<String>> {
        let &[1, c, h, w] = image.shape.dims() else {
            return Err(Error::invalid("image", format!("shape {}, expected 1, C, H, W", image.shape)));
        };
        let graph = self.build(Mode::Infer, 1, [c, h, w], self.classes_of(state)?, BuildOptions::default())?;
        first_non_finite(&graph, state, dtype, (image, None))
    }

    /// Removes a prefix, such as `module.` or `_orig_mod.`, from the names of `state` and returns it. The prefix ends
    /// in a dot, is common to all names and leaves this network's names. `None`, and no change, if there is none.
    pub fn strip_prefix(&self, state: &mut StateDict) -> Option<String> {
        let stem = format!("{}.weight", self.traits.stem);
        // The names are sorted: a prefix of the first and the last is a prefix of all.
        let (first, last) = (state.keys().next()?, state.keys().next_back()?);
        let common = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
        let mut prefixes = state.keys().filter_map(|name| name.strip_suffix(&stem)).filter(|p| p.ends_with('.'));
        let prefix = prefixes.find(|prefix| prefix.len() <= common && first.starts_with(prefix))?.to_string();
        *state = std::mem::take(state).into_iter().map(|(name, t)| (name[prefix.len()..].to_string(), t)).collect();
        Some(prefix)
    }

    /// True if `other` has the same tensors and computes the same function, even if its name differs.
    pub fn is_same_network(&self, other: &Self) -> bool {
        self.network == other.network
    }

    fn extent_of(&self, state: &StateDict, layer: &str, axis: usize) -> Result<usize> {
        let name = format!("{layer}.weight");
        let tensor = state.get(&name).ok_or_else(|| {
            // A prefix may be missing from some names.
            let longer = state.keys().find(|other| other.strip_suffix(&name).is_some_and(|p| p.ends_with('.')));
            let other = longer.and_then(|longer| {
                let prefix = &longer[..longer.len() - name.len()];
                let other = state.keys().find(|other| !other.starts_with(prefix))?;
                Some(format!("; there is `{longer}`, but not every name begins with `{prefix}`: `{other}`"))
            });
            let problem = format!("missing from the weights of {}{}", self.name, other.unwrap_or_default());
            Error::invalid(format!("tensor `{name}`"), problem)
        })?;
        tensor.shape.dims().get(axis).copied().filter(|&extent| extent > 0).ok_or_else(|| {
            Error::invalid(format!("tensor `{name}`"), format!("shape {}, not that of {}", tensor.shape, self.name))
        })
    }
}

/// A batch of images (NCHW) and, in training, their labels and the blocks that are kept.
type Inputs<'a> = (&'a HostTensor, Option<(&'a [i32], &'a [bool])>);

/// The first layer of `graph` whose output is not finite, with the weights `state`, on the CPU.
pub(crate) fn first_non_finite(
    graph: &Graph,
    state: &StateDict,
    dtype: DType,
    inputs: Inputs<'_>,
) -> Result<Option<String>> {
    fn run<T: Real>(graph: &Graph, state: &StateDict, dtype: DType, inputs: Inputs<'_>) -> Result<Option<String>> {
        let mut interpreter = Interpreter::<T>::new(graph, dtype);
        interpreter.load(state)?;
        interpreter.set_input("input", inputs.0)?;
        if let Some((labels, kept)) = inputs.1 {
            interpreter.set_labels(labels)?;
            interpreter.set_gates(kept)?;
        }
        interpreter.run_fast();
        Ok(interpreter.first_non_finite())
    }
    match dtype {
        DType::F64 => run::<f64>(graph, state, dtype, inputs),
        _ => run::<f32>(graph, state, dtype, inputs),
    }
}

/// Up to three of `names` with the smallest edit distance to `name`, at most half of the longer name.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let name = &name.to_lowercase();
    let mut near: Vec<_> =
        names.map(|n| (edits(name, n), n)).filter(|&(d, n)| 2 * d <= n.len().max(name.len())).collect();
    near.sort();
    near.into_iter().take(3).map(|(_, n)| n.into()).collect()
}

/// The edit (Levenshtein) distance of `a` and `b`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance() {
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("resnet50", "resnet50"), 0);
    }

    #[test]
    fn an_unknown_name_suggests_the_nearest_unless_it_is_long() {
        let error = find("resnet20_cifr").unwrap_err().to_string();
        assert!(error.starts_with("unknown model `resnet20_cifr`; did you mean resnet20_cifar, "), "{error}");
        assert_eq!(find("zzzzzzzz").unwrap_err().to_string(), "unknown model `zzzzzzzz`");
        let error = find(&"resnet50\n".repeat(100_000)).unwrap_err().to_string();
        assert!(error.len() < 2000 && !error.contains('\n'), "{} bytes", error.len());
    }

    #[test]
    fn only_a_prefix_of_all_names_is_removed() {
        let model = find("resnet8_cifar").unwrap();
        let graph = model.build(Mode::Infer, 1, [3, 8, 8], 10, BuildOptions::default()).unwrap();
        let state = model.initialise(&graph, 1);
        let under =
            |prefix: &str| -> StateDict { state.iter().map(|(n, t)| (format!("{prefix}{n}"), t.clone())).collect() };
        for prefix in ["module.", "_orig_mod.", "module._orig_mod.", "net.backbone.0.", "layer1.0."] {
            let mut found = under(prefix);
            assert_eq!(model.strip_prefix(&mut found).as_deref(), Some(prefix));
            assert_eq!(found, state);
        }
        for (prefix, extra) in
            [("", None), ("module_", None), ("module.", Some("n_averaged")), ("a.", Some("b.fc.bias"))]
        {
            let mut given = under(prefix);
            given.extend(extra.map(|name| (name.to_string(), crate::tensor::HostTensor::i64([], vec![1]))));
            let before = given.clone();
            assert_eq!(model.strip_prefix(&mut given), None);
            assert_eq!(given, before, "{prefix}");
        }
        let mut averaged = under("module.");
        averaged.insert("n_averaged".into(), crate::tensor::HostTensor::i64([], vec![1]));
        let text = model.classes_of(&averaged).unwrap_err().to_string();
        assert!(text.contains("`module.fc.weight`, but not every name begins with `module.`: `n_averaged`"), "{text}");
    }

    #[test]
    fn every_row_is_in_its_familys_grammar_and_names_are_unique() {
        let names: std::collections::BTreeSet<_> = table::ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), table::ROWS.len());
        let found: Vec<_> = all().iter().map(Model::name).collect();
        assert_eq!(found, table::ROWS.iter().map(|row| row.name).collect::<Vec<_>>());
    }

    #[test]
    fn free_forms_are_found_and_impossible_depths_are_not() {
        for name in ["resnet26_cifar", "plain14_cifar_", "resnet21_cifar", "resnet2_cifar", "resnet020_cifar"] {
            assert_eq!(find(name).is_ok(), name == "resnet26_cifar", "{name}");
        }
        assert!(find("resnext50_16x4d").is_ok_and(|m| m.published().is_none()));
        assert!(find("resnext50_0x4d").is_err());
        assert!(find("resnext29_3x21d_cifar").is_ok());
        let known = "densenet22_k8_cifar densenet_b22_k8_cifar densenet_c22_k8_cifar densenet_bc22_k8_cifar";
        let unknown = "densenet_bc25_k8_cifar densenet4_k8_cifar densenet22_k0_cifar densenet22_cifar \
                       densenet_d22_k8_cifar densenet122";
        known.split(' ').for_each(|name| assert!(find(name).is_ok(), "{name}"));
        unknown.split(' ').for_each(|name| assert!(find(name).is_err(), "{name}"));
    }
}
