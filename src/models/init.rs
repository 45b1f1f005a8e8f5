//! Initialisation as in each network's source, reproducible from a seed. The [crate's](crate) second example uses it.

use crate::graph::{Graph, Parameter, ParameterKind};
use crate::tensor::philox::Philox;
use crate::tensor::{HostTensor, Shape, StateDict};

/// The distribution of a tensor's elements, with fan_in = in / groups R S and fan_out = out R S; for a [`Scheme`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// 0.
    Zero,
    /// Normal with this standard deviation.
    Normal(f64),
    /// He normal: standard deviation sqrt(2 / fan_in) (He et al. 2015, arXiv:1502.01852).
    HeFanIn,
    /// He normal by outputs: standard deviation sqrt(2 / fan_out), as in the code of the ResNet authors.
    HeFanOut,
    /// Uniform in +-1 / sqrt(fan_in), torch's default; a bias takes the fan_in of its weight.
    Uniform,
}

/// The distributions of a network's tensors. Batch norms start as the identity: gamma 1, beta 0, running mean 0 and
/// variance 1. See the [crate] for an example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scheme {
    /// Weights of convolutions.
    pub conv: Fill,
    /// Weights of linear layers.
    pub linear: Fill,
    /// Biases.
    pub bias: Fill,
}

impl Scheme {
    /// Residual networks (the authors' `resnet.lua`): He normal by outputs, linear weights uniform, biases 0.
    pub const RESIDUAL: Self = Self { conv: Fill::HeFanOut, linear: Fill::Uniform, bias: Fill::Zero };
    /// DenseNet as in torchvision: He normal, linear weights uniform, biases 0.
    pub const DENSE: Self = Self { conv: Fill::HeFanIn, linear: Fill::Uniform, bias: Fill::Zero };
    /// VGG as in torchvision: He normal by outputs, linear weights normal with deviation 0.01, biases 0.
    pub const VGG: Self = Self { conv: Fill::HeFanOut, linear: Fill::Normal(0.01), bias: Fill::Zero };
    /// Torch's defaults.
    pub const TORCH: Self = Self { conv: Fill::Uniform, linear: Fill::Uniform, bias: Fill::Uniform };
}

/// New f32 parameters and buffers for `graph` in torch's layout. A tensor depends on `seed`, `scheme`, name and shape.
pub fn initialise(graph: &Graph, scheme: &Scheme, seed: u64) -> StateDict {
    let mut state = StateDict::new();
    let mut fan_in = 1;
    for Parameter { name, shape, kind, .. } in graph.parameters() {
        if shape.dims().len() > 1 {
            fan_in = shape.dims()[1..].iter().product();
        }
        let filled = |fill| filled(name, shape, fill, fan_in, seed);
        let tensor = match kind {
            ParameterKind::ConvWeight => filled(scheme.conv),
            ParameterKind::LinearWeight => filled(scheme.linear),
            ParameterKind::Bias => filled(scheme.bias),
            ParameterKind::BatchNormWeight => constant(shape, 1.0),
            ParameterKind::BatchNormBias => constant(shape, 0.0),
        };
        state.insert(name.clone(), tensor);
    }
    for buffer in graph.buffers() {
        let value = if buffer.name.ends_with("running_var") { 1.0 } else { 0.0 };
        state.insert(buffer.name.clone(), constant(&buffer.shape, value));
    }
    state
}

fn filled(name: &str, shape: &Shape, fill: Fill, fan_in: usize, seed: u64) -> HostTensor {
    let numbers = Philox::named(seed, name);
    let len = shape.len();
    let normal = |deviation: f64| scaled(shape, numbers.normals(len), |z| deviation * z);
    match fill {
        Fill::Zero => constant(shape, 0.0),
        Fill::Normal(deviation) => normal(deviation),
        Fill::HeFanIn => normal((2.0 / fan_in as f64).sqrt()),
        Fill::HeFanOut => {
            let [out, _, taps @ ..] = shape.dims() else { return constant(shape, 0.0) };
            normal((2.0 / (out * taps.iter().product::<usize>()) as f64).sqrt())
        }
        Fill::Uniform => {
            let bound = 1.0 / (fan_in as f64).sqrt();
            scaled(shape, numbers.uniforms(len), |u| (2.0 * u - 1.0) * bound)
        }
    }
}

fn scaled(shape: &Shape, numbers: Vec<f64>, f: impl Fn(f64) -> f64) -> HostTensor {
    HostTensor::f32(shape.clone(), numbers.into_iter().map(|v| f(v) as f32).collect())
}

fn constant(shape: &Shape, value: f32) -> HostTensor {
    HostTensor::f32(shape.clone(), vec![value; shape.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Mode;
    use crate::models::{self, BuildOptions};

    fn state(name: &str, seed: u64) -> StateDict {
        let model = models::find(name).unwrap();
        let graph = model.build(Mode::Infer, 1, model.input(), model.classes(), BuildOptions::default()).unwrap();
        model.initialise(&graph, seed)
    }

    /// He normal: standard deviation sqrt(2 / fan).
    fn assert_he_normal(name: &str, tensor: &HostTensor, fan: u32) {
        let (v, expected) = (tensor.to_real::<f64>(), (2.0 / f64::from(fan)).sqrt());
        let found = (v.iter().map(|a| a * a).sum::<f64>() / v.len() as f64).sqrt();
        // The sample deviation of n normal numbers has a relative standard error of 1 / sqrt(2 n).
        let bound = 5.0 / (2.0 * v.len() as f64).sqrt();
        assert!((found / expected - 1.0).abs() < bound, "{name}: deviation {found}, expected {expected}");
    }

    #[test]
    fn residual_networks_start_as_in_the_authors_code() {
        let s = state("resnet20_cifar", 3);
        for (name, fan_out) in [("layer1.1.conv2.weight", 16 * 9), ("layer3.0.conv1.weight", 64 * 9)] {
            assert_he_normal(name, &s[name], fan_out);
        }
        let fc = s["fc.weight"].to_real::<f64>();
        assert!(fc.iter().all(|v| v.abs() <= 0.125) && fc.iter().any(|v| v.abs() > 0.12));
        let all = |name: &str, value: f32| assert!(s[name].to_real::<f32>().iter().all(|&v| v == value), "{name}");
        for (name, value) in [("fc.bias", 0.0), ("bn1.weight", 1.0), ("bn1.bias", 0.0), ("bn1.running_mean", 0.0)] {
            all(name, value);
        }
        all("layer2.0.bn2.running_var", 1.0);
    }

    #[test]
    fn densenets_start_as_in_torchvision() {
        let s = state("densenet_bc22_k8_cifar", 3);
        for (name, fan_in) in [("denseblock3.denselayer3.conv2", 32 * 9), ("transition2.conv", 44)] {
            assert_he_normal(name, &s[&format!("features.{name}.weight")], fan_in);
        }
    }

    #[test]
    fn a_tensor_depends_on_the_seed_and_its_name_only() {
        let (a, b, other) = (state("resnet20_cifar", 3), state("resnet32_cifar", 3), state("resnet20_cifar", 4));
        for name in ["conv1.weight", "layer3.2.conv2.weight", "fc.weight"] {
            assert_eq!(a[name], b[name], "{name}");
            assert_ne!(a[name], other[name], "{name}");
        }
        assert_ne!(a["layer1.0.conv1.weight"], a["layer1.0.conv2.weight"]);
    }
}
