//! `residuum step` against PyTorch, and on the simulator against itself.

use std::path::Path;

use residuum::models::weights;
use residuum::tensor::philox::fnv1a;
use residuum::tensor::{HostData, HostTensor, StateDict};
use serde_json::Value;

use crate::{folder, good, program};

/// The number at flat index `i` of the tensor `name`, in 0..1, by the goldens' fill rule.
fn unit(name: &str, seed: u64, i: usize) -> f64 {
    let mut z = (fnv1a(name) ^ seed).wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f64 / f64::from(1 << 24)
}

fn extents(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
}

/// A tensor by the goldens' fill rule.
fn filled(name: &str, shape: &[usize], seed: u64) -> HostTensor {
    let fan_in: usize = shape.iter().skip(1).product();
    let bound = f64::from((6.0 / fan_in as f64) as f32).sqrt();
    let value = |u: f64| match name.rsplit('.').next() {
        Some("running_var") => 0.5 + u,
        Some("running_mean" | "bias") => (2.0 * u - 1.0) * 0.1,
        Some("weight") if shape.len() == 1 => 0.25 + 0.5 * u,
        Some("weight") => (2.0 * u - 1.0) * bound,
        Some("input") => (2.0 * u - 1.0) * 3f64.sqrt(),
        _ => panic!("no rule for {name}"),
    };
    let len = shape.iter().product();
    HostTensor::f32(shape.to_vec(), (0..len).map(|i| value(unit(name, seed, i)) as f32).collect())
}

/// Writes the weights `w` and the batch `x` of a golden to `folder` and returns the golden.
fn prepare(folder: &Path, name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/golden/{name}.json"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let seed = golden["seed"].as_u64().unwrap();
    let mut state = StateDict::new();
    for entry in ["parameters", "buffers"].iter().flat_map(|key| golden[key].as_array().unwrap()) {
        let (name, shape) = (entry[0].as_str().unwrap(), extents(&entry[1]));
        let counter = name.ends_with("num_batches_tracked");
        let tensor = if counter { HostTensor::i64(shape, vec![0]) } else { filled(name, &shape, seed) };
        state.insert(name.into(), tensor);
    }
    weights::write(folder.join("w"), &state, &Default::default()).unwrap();
    let labels: Vec<i64> = extents(&golden["labels"]).into_iter().map(|v| v as i64).collect();
    let batch = StateDict::from([
        ("input".into(), filled("input", &extents(&golden["input_shape_nchw"]), seed)),
        ("labels".into(), HostTensor::i64([labels.len()], labels)),
    ]);
    weights::write(folder.join("x"), &batch, &Default::default()).unwrap();
    golden
}

fn step(folder: &Path, name: &str, options: &str) -> StateDict {
    good(folder, &format!("step --model {name} --weights w --input x --output g {options}"));
    weights::read(folder.join("g")).unwrap()
}

/// Asserts that the samples and the norm of `summary` are those of `tensor`, within `bound` of the norm.
fn assert_summary(name: &str, tensor: &HostTensor, summary: &Value, bound: f64) {
    let values = tensor.to_real::<f64>();
    let l2 = summary["l2"].as_f64().unwrap();
    let found = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    assert!((found - l2).abs() <= bound * l2, "{name}: norm {found}, expected {l2}");
    for sample in summary["samples"].as_array().unwrap() {
        let (i, expected) = (sample[0].as_u64().unwrap() as usize, sample[1].as_f64().unwrap());
        assert!((values[i] - expected).abs() <= bound * l2, "{name}[{i}]: {}, expected {expected}", values[i]);
    }
}

#[test]
fn a_step_in_f64_is_pytorchs() {
    is_pytorchs("resnet20_cifar");
    is_pytorchs("resnet20_cifar_survival05");
}

fn is_pytorchs(name: &str) {
    let folder = folder();
    let golden = prepare(folder.path(), name);
    let found = step(folder.path(), name, "--dtype f64 --device cpu");
    assert!(found.values().all(|t| matches!(t.data, HostData::F64(_))));
    assert_eq!(found["loss"].shape.dims(), [0; 0], "the loss is a scalar");
    let (loss, expected) = (found["loss"].to_real::<f64>()[0], golden["loss"].as_f64().unwrap());
    assert!((loss - expected).abs() < 1e-9 * expected, "loss {loss}, expected {expected}");
    assert_summary("logits", &found["logits"], &golden["train_logits"], 1e-9);
    let maps = [("grad", "gradients", 1e-7), ("running", "running", 1e-9)];
    let mut names = 2;
    for (prefix, key, bound) in maps {
        for (name, summary) in golden[key].as_object().unwrap() {
            let name = format!("{prefix}.{name}");
            assert_summary(&name, &found[&name], summary, bound);
            names += 1;
        }
    }
    assert_eq!(found.len(), names, "nothing else is written");
}

#[test]
fn a_stochastic_step_draws_gates_from_its_seed() {
    let (folder, name) = (folder(), "resnet20_cifar_survival05");
    prepare(folder.path(), name);
    let mut drawn = Vec::new();
    for seed in [1, 2, 3, 1] {
        let found = step(folder.path(), name, &format!("--dtype f64 --device cpu --stochastic {seed}"));
        let gates: Vec<f64> = found["gates"].to_real();
        assert_eq!(gates.len(), 9);
        for (block, gate) in gates.iter().enumerate() {
            let tensor = &found[&format!("grad.layer{}.{}.conv1.weight", block / 3 + 1, block % 3)];
            let dropped = tensor.to_real::<f64>().iter().all(|&v| v == 0.0);
            assert_eq!(dropped, *gate == 0.0, "block {block} with gates {gates:?}");
        }
        drawn.push((gates, found["loss"].to_real::<f64>()));
    }
    assert!(drawn[0] == drawn[3] && (drawn[0].0 != drawn[1].0 || drawn[0].0 != drawn[2].0), "{drawn:?}");
}

#[test]
fn a_step_on_the_simulator_has_the_same_bits_under_every_schedule() {
    let folder = folder();
    prepare(folder.path(), "resnet20_cifar");
    let batch = StateDict::from([
        ("input".into(), filled("input", &[2, 3, 8, 8], 1)),
        ("labels".into(), HostTensor::i64([2], vec![7, 2])),
    ]);
    weights::write(folder.path().join("x"), &batch, &Default::default()).unwrap();
    for dtype in ["f32", "f16", "bf16"] {
        let arguments =
            format!("step --model resnet20_cifar --weights w --input x --output g --device sim --dtype {dtype}");
        let under = |schedule: &str| {
            let mut command = program(folder.path());
            let output = command.args(arguments.split(' ')).env("RESIDUUM_SIM_SCHEDULE", schedule).output().unwrap();
            assert!(output.status.success(), "{schedule}: {}", String::from_utf8_lossy(&output.stderr));
            std::fs::read(folder.path().join("g")).unwrap()
        };
        let first = under("in-order");
        for schedule in ["reverse", "random", "priority:2"] {
            assert!(under(schedule) == first, "{dtype}: {schedule} gives other bits than in-order");
        }
    }
    // The library's tests bound the simulator's error; this test shows that both saw the same batch.
    let loss = |device: &str| {
        let found = step(folder.path(), "resnet20_cifar", &format!("--dtype f32 --device {device}"));
        found["loss"].to_real::<f64>()[0]
    };
    let (cpu, sim) = (loss("cpu"), loss("sim"));
    assert!((cpu - sim).abs() < 1e-4 * cpu, "loss {cpu} on cpu, {sim} on sim");
}
