//! `residuum plan`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{bad, folder, good};

fn json(folder: &Path, arguments: &str) -> Value {
    serde_json::from_str(&good(folder, &format!("{arguments} --json"))).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The sum of `key` over all launches.
fn sum(plan: &Value, key: &str) -> u64 {
    plan["launches"].as_array().unwrap().iter().map(|launch| launch[key].as_u64().unwrap()).sum()
}

#[test]
fn the_json_is_one_object_whose_totals_are_the_sums() {
    let folder = folder();
    let plan = json(folder.path(), "plan resnet20_cifar --batch 8 --dtype bf16");
    assert_eq!(keys(&plan), ["arch", "launches", "totals"]);
    let launches = plan["launches"].as_array().unwrap();
    let expected = ["bytes_read", "bytes_written", "flops", "grid", "kernel", "op", "seconds", "shape"];
    for launch in launches {
        assert_eq!(keys(launch), expected);
        let kernel = launch["kernel"].as_str().unwrap();
        assert!(residuum::kernels().any(|k| k.name == kernel), "{kernel} is a kernel");
        assert!(launch["seconds"].as_f64().unwrap() > 0.0 && launch["bytes_written"].as_u64().unwrap() > 0, "{launch}");
    }
    let totals = &plan["totals"];
    let expected = ["arena_bytes", "batch", "bytes", "flops", "launches", "saved_activation_bytes", "seconds"];
    assert_eq!(keys(totals), expected);
    assert_eq!((&totals["batch"], &totals["launches"]), (&8.into(), &launches.len().into()));
    assert_eq!(totals["flops"], sum(&plan, "flops"));
    assert_eq!(totals["bytes"], sum(&plan, "bytes_read") + sum(&plan, "bytes_written"));
    let seconds: f64 = launches.iter().map(|launch| launch["seconds"].as_f64().unwrap()).sum();
    assert!((totals["seconds"].as_f64().unwrap() - seconds).abs() < 1e-9 * seconds);
    let saved = totals["saved_activation_bytes"].as_u64().unwrap();
    assert!(0 < saved && saved < totals["arena_bytes"].as_u64().unwrap(), "{saved} bytes of activations");
    assert_eq!(launches.last().unwrap()["op"], "sgd_step");
}

#[test]
fn launches_of_droppable_blocks_say_so() {
    let folder = folder();
    let plan = json(folder.path(), "plan resnet20_cifar_survival05 --batch 8 --dtype bf16");
    let launches = plan["launches"].as_array().unwrap();
    let bytes = |launch: &Value| -> u64 {
        ["bytes_read", "bytes_written"].iter().map(|key| launch[*key].as_u64().unwrap()).sum()
    };
    let kept: u64 = launches.iter().filter(|launch| launch.get("without_block").is_none()).map(bytes).sum();
    assert_eq!(plan["totals"]["bytes"], kept, "a step that drops no block");
    let chance = |launch: &Value| match (launch.get("with_block"), launch.get("without_block")) {
        (Some(block), None) => 1.0 - (block.as_f64().unwrap() + 1.0) / 18.0,
        (None, Some(block)) => (block.as_f64().unwrap() + 1.0) / 18.0,
        _ => 1.0,
    };
    let expected: f64 = launches.iter().map(|launch| chance(launch) * bytes(launch) as f64).sum();
    assert!((plan["totals"]["expected_bytes"].as_f64().unwrap() - expected).abs() < 1e-9 * expected);
    assert!(expected < kept as f64, "dropping saves bytes");
    assert!(launches.iter().any(|launch| launch.get("without_block").is_some()));
}

#[test]
fn inference_computes_the_networks_multiply_adds_and_saves_nothing() {
    let folder = folder();
    let models: Value = serde_json::from_str(&good(folder.path(), "models --json")).unwrap();
    for name in ["resnet50", "resnext50_32x4d", "vgg11"] {
        let plan = json(folder.path(), &format!("plan {name} --batch 2 --dtype bf16 --mode infer"));
        let model = models.as_array().unwrap().iter().find(|m| m["name"] == name).unwrap();
        // The sum over the parts of a split reduction has no multiplications.
        let multiplies = |launch: &&Value| {
            ["conv2d_fwd", "linear_fwd"].contains(&launch["op"].as_str().unwrap())
                && !launch["kernel"].as_str().unwrap().contains("reduce")
        };
        let launches = plan["launches"].as_array().unwrap();
        let flops: u64 = launches.iter().filter(multiplies).map(|launch| launch["flops"].as_u64().unwrap()).sum();
        assert_eq!(flops, 2 * 2 * model["multiply_adds"].as_u64().unwrap(), "{name}");
        assert_eq!(plan["totals"]["saved_activation_bytes"], 0, "{name}");
    }
}

#[test]
fn a_gpu_of_ones_own_bounds_the_time() {
    let folder = folder();
    let gpus = |bytes: f64, flops: f64| {
        let row = serde_json::json!({
            "name": "mine", "arch": "sm_80", "bytes_per_second": bytes,
            "flops_per_second": {"f32": 1.0, "f16": flops, "bf16": 2.0},
        });
        fs::write(folder.path().join("gpus.json"), Value::from(vec![row]).to_string()).unwrap();
    };
    let totals =
        |arguments: &str| json(folder.path(), &format!("plan resnet20_cifar --batch 2 {arguments}"))["totals"].clone();
    let seconds = |totals: &Value| totals["seconds"].as_f64().unwrap();
    gpus(1.0, 1e18);
    let slow_memory = totals("--dtype f16 --gpus gpus.json");
    assert_eq!(seconds(&slow_memory), slow_memory["bytes"].as_f64().unwrap());
    gpus(1e18, 0.5);
    let slow_cores = totals("--dtype f16 --gpus gpus.json --gpu MINE");
    let expected = slow_cores["flops"].as_f64().unwrap() * 2.0;
    assert!((seconds(&slow_cores) - expected).abs() < 1e-6 * expected);
    let text = fs::read_to_string(folder.path().join("gpus.json")).unwrap();
    fs::write(folder.path().join("gpus.json"), format!("\u{feff}\r\n{}\r\n\r\n", text.replace(',', ",\r\n"))).unwrap();
    assert_eq!(totals("--dtype f16 --gpus gpus.json --gpu MINE"), slow_cores, "with a byte order mark and CRLF");
    let known = totals("--dtype f16 --gpus gpus.json --gpu h200");
    assert_eq!(known, totals("--dtype f16"), "known GPUs stay");
    for (file, cause) in [
        ("{}", "expected a JSON array of GPUs"),
        ("[{\"name\": \"x\"}]", "GPU 0: `arch`, expected sm_80 or sm_90"),
        (
            "[{\"name\": \"x\", \"arch\": \"sm_90\", \"bytes_per_second\": 0}]",
            "GPU 0: `bytes_per_second`, expected a number",
        ),
    ] {
        fs::write(folder.path().join("gpus.json"), file).unwrap();
        let found = bad(folder.path(), "plan resnet20_cifar --gpus gpus.json", 1);
        assert!(found.contains(cause) && found.starts_with("gpus.json: "), "{found}");
    }
    assert!(bad(folder.path(), "plan resnet20_cifar --gpus none.json", 1).starts_with("none.json: "));
}

#[test]
fn the_kernels_are_of_the_requested_generation() {
    let folder = folder();
    let arch =
        |arguments: &str| json(folder.path(), &format!("plan resnet20_cifar --batch 2 {arguments}"))["arch"].clone();
    assert_eq!((arch(""), arch("--gpu A100")), ("sm_90".into(), "sm_80".into()), "the GPU's own");
    assert_eq!((arch("--arch sm_80"), arch("--gpu A100 --arch sm_90")), ("sm_80".into(), "sm_90".into()));
}

#[test]
fn impossible_options_exit_with_code_2() {
    let folder = folder();
    for (arguments, parts) in [
        ("plan", &["required", "MODEL"][..]),
        ("plan resnet5o", &["unknown model `resnet5o`", "resnet50"]),
        ("plan resnet50 --batch 0", &["--batch", "at least 1"]),
        ("plan resnet50 --dtype f64", &["--dtype", "f32, f16 or bf16"]),
        ("plan resnet50 --mode test", &["--mode", "train", "infer"]),
        ("plan resnet50 --size 224", &["--size", "HxW"]),
        ("plan resnet50 --size 0x224", &["--size", "HxW"]),
        ("plan alexnet --size 8x8", &["does not fit"]),
        ("plan resnet50 --arch sm_75", &["--arch", "sm_80 or sm_90"]),
        ("plan resnet50 --gpu B17", &["--gpu", "`B17`", "H200", "--gpus"]),
    ] {
        let cause = bad(folder.path(), arguments, 2);
        for part in parts {
            assert!(cause.contains(part), "`{part}` in the answer to `{arguments}`: {cause}");
        }
    }
}

#[test]
fn a_whole_batch_is_planned_without_its_memory() {
    let text = good(folder().path(), "plan resnet50 --dtype bf16 --size 224x224");
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].contains("resnet50, training, 256 images of 3x224x224, bf16, kernels for sm_90, H200: 4.30 TB/s"),
        "{}",
        lines[0]
    );
    assert!(lines[2].starts_with("op ") && lines[2].ends_with(" us"), "{}", lines[2]);
    assert!(lines[3].contains(" n256 224x224 c3 k64 r7 s7 stride 2 pad 3 "), "{}", lines[3]);
    let table = lines[2..].iter().take_while(|line| !line.is_empty());
    let widths: std::collections::BTreeSet<usize> = table.map(|line| line.len()).collect();
    assert_eq!(widths.len(), 1, "all lines of the table have one width");
    for total in ["launches ", "operations ", "bytes ", "time at least ", "arena ", "saved activations "] {
        assert!(lines.iter().any(|line| line.starts_with(total)), "{total} in {text}");
    }
}
