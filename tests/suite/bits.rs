//! Equal bits on any number of threads, with any caches and any width of vectors.

use residuum::control::sgd::{Sgd, Spec};
use residuum::device::Device;
use residuum::graph::{Builder, Graph, Mode, Program};
use residuum::models::{self, BuildOptions};
use residuum::tensor::{DType, HostData, HostTensor, StateDict};

use crate::random::Random;

const BATCH: usize = 4;

/// Parameters and buffers, made without functions of the C library.
fn state(graph: &Graph) -> StateDict {
    let mut random = Random::new("bits");
    let mut tensor = |shape: &residuum::tensor::Shape, low: f64, high: f64| {
        HostTensor::f64(shape.clone(), random.reals(shape.len(), low, high))
    };
    let parameters = graph.parameters().iter().map(|p| (p.name.clone(), p.shape.clone(), p.shape.dims().len() > 1));
    let mut state: StateDict = parameters
        .map(|(name, shape, wide)| (name, if wide { tensor(&shape, -0.25, 0.25) } else { tensor(&shape, 0.5, 1.5) }))
        .collect();
    state.extend(graph.buffers().iter().map(|b| (b.name.clone(), tensor(&b.shape, 0.5, 1.5))));
    state
}

fn images(shape: [usize; 4]) -> HostTensor {
    let pixels = Random::new("pixels").reals(shape.iter().product(), -1.0, 1.0);
    HostTensor::f32(shape, pixels.iter().map(|&v| v as f32).collect())
}

/// A digest (FNV) of the bits of all tensors.
fn digest<'a>(tensors: impl IntoIterator<Item = &'a HostTensor>) -> u64 {
    let mut words = Vec::new();
    for tensor in tensors {
        match &tensor.data {
            HostData::F32(v) => words.extend(v.iter().map(|v| u64::from(v.to_bits()))),
            HostData::F64(v) => words.extend(v.iter().map(|v| v.to_bits())),
            HostData::I64(v) => words.extend(v.iter().map(|&v| v as u64)),
        }
    }
    words.iter().fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ word).wrapping_mul(0x0100_0000_01b3))
}

/// Two steps of a network with wide layers: outputs, parameters and buffers, gradients.
fn train(dtype: DType) -> u64 {
    let model = models::find("resnet8_cifar").unwrap();
    let options = BuildOptions { loss: true, smoothing: 0.1, ..Default::default() };
    let mut graph = model.build(Mode::Train, BATCH, [3, 32, 32], 10, options).unwrap();
    graph.differentiate().unwrap();
    let spec = Spec { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 1e-3 };
    let mut program = Program::compile(&graph, &Device::cpu(), dtype, Some(Sgd::new(spec).unwrap())).unwrap();
    program.load(&state(&graph)).unwrap();
    program.set_learning_rate(0.05).unwrap();
    program.set_input("input", &images([BATCH, 3, 32, 32])).unwrap();
    program.set_labels(&[3, 9, 0, 5]).unwrap();
    (0..2).for_each(|_| program.run().unwrap());
    let outputs = [program.output("logits").unwrap(), program.output("loss").unwrap()];
    let (state, gradients) = (program.state().unwrap(), program.gradients().unwrap());
    digest(outputs.iter().chain(state.values()).chain(gradients.values()))
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        let expected = train(dtype);
        assert_eq!(train(dtype), expected, "{dtype}: a second run");
        for threads in [1, 2, 3, 4, 7, 16] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| train(dtype)), expected, "{dtype} on {threads} threads");
        }
    }
}

/// Logits of `model` in training. Its batch norms take roots and call no other function.
fn logits(model: &str, shape: [usize; 4], dtype: DType) -> u64 {
    let [n, c, h, w] = shape;
    let model = models::find(model).unwrap();
    let graph = model.build(Mode::Train, n, [c, h, w], 10, BuildOptions::default()).unwrap();
    let mut program = Program::compile(&graph, &Device::cpu(), dtype, None).unwrap();
    program.load(&state(&graph)).unwrap();
    program.set_input("input", &images(shape)).unwrap();
    program.run().unwrap();
    digest([&program.output("logits").unwrap()])
}

/// A linear layer.
fn layer(n: usize, features: usize, classes: usize, dtype: DType) -> u64 {
    let mut b = Builder::new(Mode::Infer);
    let x = b.input("input", [n, 1, 1, features]);
    let y = b.linear("fc", x, classes).unwrap();
    b.output("y", y);
    let graph = b.finish();
    let mut program = Program::compile(&graph, &Device::cpu(), dtype, None).unwrap();
    program.load(&state(&graph)).unwrap();
    program.set_input("input", &images([n, features, 1, 1])).unwrap();
    program.run().unwrap();
    digest([&program.output("y").unwrap()])
}

/// The digests of every x86-64 processor with AVX2 and FMA, with AVX-512 or without.
#[cfg(target_arch = "x86_64")]
#[test]
fn every_processor_with_fma_gives_the_same_bits() {
    let fused = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    if !(fused && residuum::device::cpu::has_fast_products()) {
        return eprintln!(
            "the same bits: skipped, this processor has no AVX2 and FMA, or products go round the gemm crate"
        );
    }
    let networks = [("resnet8_cifar", [2, 3, 16, 16]), ("resnet50", [2, 3, 32, 32])];
    let layers = [[1, 2048, 10], [1, 700, 1000], [4, 64, 10], [16, 300, 16], [300, 40, 1]];
    let found = [DType::F32, DType::F64].map(|dtype| {
        let networks = networks.map(|(name, shape)| logits(name, shape, dtype));
        [&networks[..], &layers.map(|[n, features, classes]| layer(n, features, classes, dtype))].concat()
    });
    assert_eq!(found, FOUND, "{found:#018x?}");
}

/// The digests: of networks and layers in f32, then in f64.
#[cfg(target_arch = "x86_64")]
const FOUND: [[u64; 7]; 2] = [
    [
        0x841f_eede_69d7_544a,
        0xa88c_6d5a_641c_961e,
        0x2124_d81f_1553_0cdb,
        0x00ac_a8fd_ba7e_225a,
        0xae16_4687_ea22_caea,
        0x3a7b_5687_d6a2_f71a,
        0x5774_1945_f987_5c22,
    ],
    [
        0x5231_6aa3_ee88_e224,
        0x8fcc_d5c3_c4b2_2f04,
        0x163f_c203_334b_5065,
        0xbe68_7f94_9ec9_aba9,
        0x86df_c591_beeb_000d,
        0xc566_73d6_e42a_c4db,
        0xbc37_9005_f1c7_037d,
    ],
];
