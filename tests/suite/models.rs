//! The table of models: parameter counts, multiply-adds and tensors of every network, without running any.

use residuum::device::{Arch, Device, Target, View};
use residuum::graph::{Graph, Interpreter, Mode};
use residuum::models::{self, BuildOptions, Model};
use residuum::ops::{Arg, Io, Write};
use residuum::tensor::{DType, Elem, HostTensor, TensorType};

use crate::cases::networks::{Kind, LAYERS};

fn graph(model: &Model, classes: usize) -> Graph {
    model.build(Mode::Infer, 1, model.input(), classes, BuildOptions::default()).unwrap()
}

/// Multiply-adds, rounded as they are published.
fn rounded(macs: u64) -> u64 {
    (macs + 5_000) / 10_000 * 10_000
}

#[test]
fn every_model_has_its_published_counts() {
    for model in models::all() {
        let published = model.published().unwrap();
        let graph = graph(model, model.classes());
        assert_eq!(graph.parameter_count() as u64, published.parameters, "parameters of {}", model.name());
        assert_eq!(rounded(graph.macs()), published.macs, "multiply-adds of {}", model.name());
    }
}

#[test]
fn every_layer_of_the_benches_is_in_its_network() {
    for layer in LAYERS {
        for batch in [1, layer.batch] {
            assert!(!layer.passes(batch).unwrap().is_empty(), "{layer:?}");
            let fused = layer.fused(batch).unwrap();
            let [conv, block] = [matches!(layer.kind, Kind::Conv { .. }), matches!(layer.kind, Kind::Block)];
            assert!(if conv { fused.len() == 2 } else { !block || fused.len() == 1 }, "{layer:?}");
        }
        let weights = match layer.kind {
            Kind::Conv { k, kernel, groups, .. } => vec![k, layer.c / groups, kernel, kernel],
            Kind::Classifier(k) => vec![k, layer.c],
            _ => continue,
        };
        let model = models::find(layer.network).unwrap();
        let graph = graph(&model, model.classes());
        let found = graph.parameters().iter().any(|p| p.shape.dims() == weights);
        assert!(found, "{} has no weights of {weights:?} for {}", layer.network, layer.name);
    }
}

/// The benches run every row on a GPU, in the GPU's types; this test binds every row.
#[test]
fn every_row_of_the_benches_has_launches() {
    let Device::Kernels(backend) = Device::blueprint(Arch::Sm90) else { panic!("a device with kernels") };
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        let target = Target { arch: Arch::Sm90, dtype };
        // The layout of benches/common/rotation.rs.
        let bind = |ty: &TensorType| {
            let channels = ty.shape.dims().last().copied().unwrap_or(1);
            let is_image = ty.shape.dims().len() == 4 && ty.elem == Elem::Real;
            let pixel_stride = if is_image { channels.max(4) } else { channels };
            let memory = backend.allocate(ty.bytes(dtype) / channels * pixel_stride).unwrap();
            Arg { view: View::whole(memory), pixel_stride, write: Write::Overwrite }
        };
        for layer in LAYERS {
            for op in [layer.passes(layer.batch), layer.fused(layer.batch)].map(Result::unwrap).concat() {
                let op = op.operator();
                let [inputs, outputs]: [Vec<Arg>; 2] =
                    [op.inputs(), op.outputs()].map(|types| types.iter().map(bind).collect());
                let scratch = View::whole(backend.allocate(op.scratch_bytes(target)).unwrap());
                let launches = op.launches(target, &Io { inputs: &inputs, outputs: &outputs, scratch: Some(&scratch) });
                let launches = launches.unwrap_or_else(|e| panic!("{} {dtype} {layer:?}: {e}", op.name()));
                assert!(!launches.is_empty(), "{} {dtype} {layer:?}", op.name());
                // No row of a fused pass falls back to element-wise access.
                let kernels: Vec<&str> = launches.iter().map(|launch| launch.kernel().name).collect();
                let slow = kernels.iter().any(|name| name.starts_with("conv2d_fused") && name.ends_with("_scalar"));
                assert!(!slow, "{dtype} {layer:?}: {kernels:?}");
            }
        }
    }
}

#[test]
fn a_hundred_classes_have_the_published_counts() {
    for (name, parameters, macs) in [
        ("resnet110_cifar", 1_733_812, 252_890_000),
        ("preact_resnet164_cifar", 1_726_388, 244_520_000),
        ("preact_resnet1001_cifar", 10_350_836, 1_487_870_000),
        ("resnext29_1x64d_cifar", 5_006_500, 748_460_000),
        ("resnext29_8x64d_cifar", 34_518_948, 5_387_360_000),
        ("resnext29_16x64d_cifar", 68_247_460, 10_688_960_000),
        ("resnext29_32x4d_cifar", 4_868_004, 774_150_000),
        ("densenet_bc100_k12_cifar", 800_032, 287_960_000),
        ("densenet_bc250_k24_cifar", 15_480_556, 5_418_940_000),
        ("densenet_bc190_k40_cifar", 25_821_620, 9_302_140_000),
    ] {
        let graph = graph(&models::find(name).unwrap(), 100);
        assert_eq!((graph.parameter_count(), rounded(graph.macs())), (parameters, macs), "{name}");
    }
}

/// Entries of torchvision's state dicts, `num_batches_tracked` among them.
#[test]
fn state_dicts_have_torchvisions_number_of_entries() {
    for (name, entries) in [
        ("resnet18", 122),
        ("resnet34", 218),
        ("resnet50", 320),
        ("resnet101", 626),
        ("resnet152", 932),
        ("densenet121", 727),
        ("densenet161", 967),
        ("densenet169", 1015),
        ("densenet201", 1207),
        ("alexnet", 16),
        ("vgg11", 22),
        ("vgg11_bn", 62),
        ("vgg13", 26),
        ("vgg13_bn", 76),
        ("vgg16", 32),
        ("vgg16_bn", 97),
        ("vgg19", 38),
        ("vgg19_bn", 118),
    ] {
        let graph = graph(&models::find(name).unwrap(), 1000);
        let counters = graph.buffers().len() / 2;
        assert_eq!(graph.parameters().len() + graph.buffers().len() + counters, entries, "{name}");
    }
}

/// B and C together change the first convolution; C alone halves the channels at a transition, B alone does not.
#[test]
fn densenets_have_the_layers_of_their_letters() {
    for (name, first, transition) in [
        ("densenet22_k8_cifar", 16, [64, 64]),
        ("densenet_b22_k8_cifar", 16, [40, 40]),
        ("densenet_c22_k8_cifar", 16, [64, 32]),
        ("densenet_bc22_k8_cifar", 16, [40, 20]),
        ("densenet_bc22_k7_cifar", 14, [35, 17]),
    ] {
        let graph = graph(&models::find(name).unwrap(), 10);
        let shape = |name: &str| {
            let p = graph.parameters().iter().find(|p| p.name == format!("features.{name}.weight")).unwrap();
            p.shape.dims().to_vec()
        };
        assert_eq!(shape("conv0"), [first, 3, 3, 3], "{name}");
        assert_eq!(shape("transition1.conv"), [transition[1], transition[0], 1, 1], "{name}");
    }
}

/// The numbers in the names of VGG's layers (torchvision).
#[test]
fn vgg_layers_have_torchvisions_numbers() {
    for (name, indices) in [
        ("vgg13", &[0, 2, 5, 7, 10, 12, 15, 17, 20, 22][..]),
        ("vgg16_bn", &[0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]),
        ("vgg19", &[0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]),
    ] {
        let graph = graph(&models::find(name).unwrap(), 1000);
        let names = graph.parameters().iter().filter(|p| p.shape.dims().len() == 4).map(|p| p.name.clone());
        assert!(names.eq(indices.iter().map(|i| format!("features.{i}.weight"))), "{name}");
    }
}

/// The input's channels, height and width come from the data: digits are 1x8x8.
#[test]
fn networks_take_the_shape_of_the_data() {
    let model = models::find("resnet20_cifar").unwrap();
    let graph = model.build(Mode::Train, 64, [1, 8, 8], 10, BuildOptions { loss: true, ..Default::default() }).unwrap();
    assert_eq!(graph.parameters()[0].shape.dims(), [16, 1, 3, 3]);
    assert_eq!(graph.parameter_count(), 269_722 - 2 * 16 * 9);
    let outputs: Vec<_> = ["input", "labels"].map(|name| graph.input(name).unwrap().shape.dims().to_vec()).into();
    assert_eq!(outputs, [vec![64, 8, 8, 1], vec![64]]);
}

#[test]
fn impossible_shapes_are_errors_that_name_what_is_wrong() {
    let model = models::find("resnet20_cifar").unwrap();
    let error = |batch, chw, classes| {
        model.build(Mode::Infer, batch, chw, classes, BuildOptions::default()).unwrap_err().to_string()
    };
    assert_eq!(error(0, [3, 32, 32], 10), "batch: 0 for resnet20_cifar, expected at least 1");
    assert_eq!(error(1, [0, 32, 32], 10), "channels: 0 for resnet20_cifar, expected at least 1");
    assert_eq!(error(1, [3, 32, 32], 0), "classes: 0 for resnet20_cifar, expected at least 1");
    let small = models::find("alexnet").unwrap().build(Mode::Infer, 1, [3, 8, 8], 10, BuildOptions::default());
    let text = small.unwrap_err().to_string();
    assert!(text.contains("features.0") || text.contains("pool"), "{text}");
}

/// With every branch's last scale 0 a network of basic blocks is its stem, its shortcuts and its head.
#[test]
fn the_average_shortcut_is_the_mean_of_four_pixels() {
    for (name, feature) in [("resnet8_cifar_average", 3.0), ("resnet8_cifar", 0.0)] {
        let model = models::find(name).unwrap();
        let graph = model.build(Mode::Infer, 1, [3, 8, 8], 10, BuildOptions::default()).unwrap();
        let mut state = model.initialise(&graph, 1);
        for (_, last) in state.iter_mut().filter(|(name, _)| name.ends_with("bn2.weight")) {
            *last = HostTensor::f32(last.shape.clone(), vec![0.0; last.shape.len()]);
        }
        // The middle tap of channel k on channel k.
        let identity = (0..16 * 27).map(|i| if i / 27 < 3 && i % 27 == i / 27 * 9 + 4 { 1.0 } else { 0.0 });
        state.insert("conv1.weight".into(), HostTensor::f32([16, 3, 3, 3], identity.collect()));
        // Of every 2x2 pixels the first is 0 and the others are 4.
        let pixels = (0..3 * 64).map(|i| if i % 2 == 0 && i / 8 % 2 == 0 { 0.0 } else { 4.0 });
        let mut it = Interpreter::<f64>::new(&graph, DType::F64);
        it.load(&state).unwrap();
        it.set_input("input", &HostTensor::f64([1, 3, 8, 8], pixels.collect())).unwrap();
        it.run();
        let (weights, bias): (Vec<f64>, Vec<f64>) = (state["fc.weight"].to_real(), state["fc.bias"].to_real());
        for (k, logit) in it.output("logits").unwrap().to_real::<f64>().into_iter().enumerate() {
            let expected = weights[64 * k..64 * k + 3].iter().sum::<f64>() * feature / (1.0f64 + 1e-5).sqrt() + bias[k];
            assert!((logit - expected).abs() < 1e-6, "{name}, logit {k}: {logit}, expected {expected}");
        }
    }
}
