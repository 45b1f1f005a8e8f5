//! Weights from various sources: checkpoints that name their network, prefixed names, counters of any type.

use std::fs;
use std::path::Path;

use residuum::models::weights;
use residuum::tensor::{HostData, HostTensor, StateDict};
use residuum::train::Checkpoint;

use crate::weights::{images, state, write};
use crate::{bad, folder, good, names, run};

/// Writes a checkpoint `c` of one short epoch of `model` on the digits, and images `x`.
fn trained(folder: &Path, model: &str) {
    good(folder, &format!("train --model {model} --epochs 1 --batch 1000 --out run"));
    fs::rename(folder.join("run/checkpoint.safetensors"), folder.join("c")).unwrap();
    write(folder, "x", &images(2));
}

#[test]
fn a_checkpoint_is_run_as_the_network_that_it_is_of() {
    let folder = folder();
    trained(folder.path(), "resnet8_cifar");
    // Networks with the same tensors but another function or training.
    for other in ["plain8_cifar", "resnet8_cifar_survival05", "resnet8_cifar_average", "resnet8_cifar_relu_before_add"]
    {
        for command in ["infer", "step"] {
            let arguments = format!("{command} --model {other} --weights c --input x --output y");
            let cause = bad(folder.path(), &arguments, 1);
            let expected = format!("c: weights of resnet8_cifar, but --model says {other}; without --model");
            assert!(cause.starts_with(&expected), "{cause}");
        }
        let cause = bad(folder.path(), &format!("eval --checkpoint c --model {other}"), 1);
        assert!(cause.starts_with(&format!("c: weights of resnet8_cifar, but --model says {other}")), "{cause}");
    }
    assert_eq!(names(folder.path()), ["c", "run", "x"]);
    let output = |arguments: &str| {
        good(folder.path(), &format!("{arguments} --weights c --input x --output y"));
        fs::read(folder.path().join("y")).unwrap()
    };
    assert!(output("infer") == output("infer --model resnet8_cifar"));
    assert!(output("step") == output("step --model resnet8_cifar"));
    let eval = good(folder.path(), "eval --checkpoint c");
    assert_eq!(good(folder.path(), "eval --checkpoint c --model resnet8_cifar"), eval);

    let cause = bad(folder.path(), "step --stochastic 1 --weights c --input x --output y", 2);
    assert!(cause.starts_with("--stochastic: resnet8_cifar has no stochastic depth"), "{cause}");
}

#[test]
fn a_network_has_several_names() {
    let folder = folder();
    trained(folder.path(), "resnet8_cifar");
    let mut checkpoint = Checkpoint::read(folder.path().join("c")).unwrap();
    let named = |metadata: &[(&str, &str)]| {
        let state = checkpoint.state.clone();
        let pairs = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        weights::write(folder.path().join("w"), &state, &pairs).unwrap();
    };
    let infer = "infer --weights w --input x --output y";
    named(&[]);
    let cause = bad(folder.path(), infer, 2);
    assert!(cause.starts_with("--model: w names no network; give one that `residuum models` lists"), "{cause}");
    // Another program's model name.
    named(&[("format", "pt"), ("model", "timm/resnet8")]);
    good(folder.path(), &format!("{infer} --model resnet8_cifar"));
    let cause = bad(folder.path(), infer, 1);
    assert!(cause.starts_with("w: unknown model `timm/resnet8`") && cause.contains("--model NAME"), "{cause}");
    // A later version's model name.
    named(&[("library", "residuum 9.9"), ("model", "convnext_tiny")]);
    let cause = bad(folder.path(), &format!("{infer} --model resnet8_cifar"), 1);
    assert!(cause.contains("weights of convnext_tiny, but --model says resnet8_cifar"), "{cause}");
    // Control characters do not reach the terminal.
    named(&[("model", "a\u{1b}[2Jb\nc")]);
    let cause = bad(folder.path(), infer, 1);
    assert!(cause.contains(r"`a\u{1b}[2Jb\nc`"), "{cause}");

    checkpoint.settings.model = "resnet8_cifar_survival05".into();
    checkpoint.write(folder.path().join("c")).unwrap();
    good(folder.path(), "step --stochastic 1 --weights c --input x --output y");
}

#[test]
fn names_behind_one_prefix_are_accepted_and_said() {
    let folder = folder();
    write(folder.path(), "x", &images(2));
    let put = |prefix: &str| {
        let state: StateDict = state().into_iter().map(|(name, t)| (format!("{prefix}{name}"), t)).collect();
        write(folder.path(), "w", &state);
    };
    for command in ["infer", "step"] {
        let arguments = format!("{command} --model resnet8_cifar --weights w --input x --output y");
        put("");
        assert!(run(folder.path(), &arguments).stderr.is_empty());
        let expected = fs::read(folder.path().join("y")).unwrap();
        for prefix in ["module.", "_orig_mod.", "model.", "module._orig_mod.", "encoder.net.0."] {
            put(prefix);
            let output = run(folder.path(), &arguments);
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{said}");
            assert_eq!(said, format!("note: w: all names begin with `{prefix}`, which is removed\n"));
            assert!(fs::read(folder.path().join("y")).unwrap() == expected, "{prefix}");
        }
    }
    put("module.");
    let mut mixed = weights::read(folder.path().join("w")).unwrap();
    let bias = mixed.remove("module.fc.bias").unwrap();
    mixed.insert("fc.bias".into(), bias);
    write(folder.path(), "w", &mixed);
    let cause = bad(folder.path(), "infer --model resnet8_cifar --weights w --input x --output y", 1);
    assert!(cause.contains("not every name begins with `module.`: `fc.bias`"), "{cause}");
}

/// The bytes of a safetensors file of `state`, with `dtype` for integers and their bytes cut to its size.
fn with_counters(state: &StateDict, dtype: &str, bytes: usize, shape: &str) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::<u8>::new());
    for (name, tensor) in state {
        let start = data.len();
        let (dtype, shape) = match &tensor.data {
            HostData::I64(v) => {
                data.extend(v.iter().flat_map(|v| v.to_le_bytes()[..bytes].to_vec()));
                (dtype, shape.to_string())
            }
            HostData::F32(v) => {
                data.extend(v.iter().flat_map(|v| v.to_le_bytes()));
                ("F32", format!("{:?}", tensor.shape.dims()))
            }
            HostData::F64(_) => panic!("no network has f64"),
        };
        let end = data.len();
        entries
            .push(format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}"));
    }
    let header = format!("{{{}}}", entries.join(","));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

#[test]
fn counters_of_any_integer_type_are_accepted_and_other_integers_are_not() {
    let folder = folder();
    write(folder.path(), "x", &images(2));
    let infer = "infer --model resnet8_cifar --weights w --input x --output y";
    let mut state = state();
    let counters: Vec<String> = state
        .keys()
        .filter_map(|name| Some(format!("{}num_batches_tracked", name.strip_suffix("running_mean")?)))
        .collect();
    assert!(counters.contains(&"bn1.num_batches_tracked".to_string()));
    state.extend(counters.into_iter().map(|name| (name, HostTensor::i64([], vec![3]))));
    for (dtype, bytes) in [("I8", 1), ("I16", 2), ("I32", 4), ("I64", 8), ("U8", 1), ("U16", 2), ("U32", 4), ("U64", 8)]
    {
        for shape in ["[]", "[1]"] {
            fs::write(folder.path().join("w"), with_counters(&state, dtype, bytes, shape)).unwrap();
            good(folder.path(), infer);
        }
    }
    fs::write(folder.path().join("w"), with_counters(&state, "BOOL", 1, "[]")).unwrap();
    let cause = bad(folder.path(), infer, 1);
    assert!(cause.starts_with("w: tensor `bn1.num_batches_tracked`: BOOL data, expected"), "{cause}");
    // Eight bytes of I32 are two numbers.
    fs::write(folder.path().join("w"), with_counters(&state, "I32", 8, "[2]")).unwrap();
    let cause = bad(folder.path(), infer, 1);
    assert_eq!(cause, "w: tensor `bn1.num_batches_tracked`: shape [2], expected []");
    for dtype in ["U8", "I32"] {
        let mut other = state.clone();
        let len = other["fc.bias"].len();
        other.insert("fc.bias".into(), HostTensor::i64([len], vec![1; len]));
        other.retain(|name, _| !name.ends_with("num_batches_tracked"));
        let bytes = if dtype == "U8" { 1 } else { 4 };
        fs::write(folder.path().join("w"), with_counters(&other, dtype, bytes, &format!("[{len}]"))).unwrap();
        let cause = bad(folder.path(), infer, 1);
        assert_eq!(cause, "w: tensor `fc.bias`: integers, expected floating-point numbers");
    }
}

#[test]
fn a_file_of_another_format_is_named_with_the_way_out() {
    let folder = folder();
    write(folder.path(), "x", &images(2));
    let zip = [b"PK\x03\x04\x14\0\0\0", [0; 22].as_slice(), b"archive/data.pkl", &[0; 99]].concat();
    for (content, part) in [
        (&zip[..], "safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html>", "a web page"),
        (b"", "an empty file"),
    ] {
        fs::write(folder.path().join("w"), content).unwrap();
        for command in ["infer --model resnet8_cifar --weights w --input x", "infer --weights w --input x"] {
            let cause = bad(folder.path(), &format!("{command} --output y"), 1);
            assert!(cause.starts_with("w: ") && cause.contains(part), "{cause}");
        }
        let cause = bad(folder.path(), "eval --checkpoint w", 1);
        assert!(cause.contains(part), "{cause}");
    }
    let cause = bad(folder.path(), "infer --weights . --input x --output y", 1);
    assert!(cause.starts_with(".: a folder, expected a safetensors file"), "{cause}");
}
