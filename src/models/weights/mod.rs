//! State dicts in safetensors files, exchanged with torch: torch's names and layouts (OIHW, `[out, in]`; images NCHW).
//!
//! ```
//! use residuum::models::weights::{self, Metadata};
//! use residuum::tensor::{HostTensor, StateDict};
//!
//! let path = std::env::temp_dir().join(format!("residuum-doc-{}.safetensors", std::process::id()));
//! let state = StateDict::from([("conv1.weight".into(), HostTensor::f32([2, 1, 1, 1], vec![1.0, 2.0]))]);
//! weights::write(&path, &state, &Metadata::from([("model".into(), "mine".into())]))?;
//! let (read, metadata) = weights::read_with_metadata(&path)?;
//! assert_eq!((read, metadata["model"].as_str()), (state, "mine"));
//! # std::fs::remove_file(&path).expect("the file");
//! # Ok::<(), residuum::Error>(())
//! ```

mod header;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

pub use crate::files::write_atomically;
use crate::graph::{Graph, StateReport};
use crate::tensor::{HostData, HostTensor, StateDict};
use crate::{Error, Result};

/// The string metadata of a file. See the [module](self) for an example.
pub type Metadata = BTreeMap<String, String>;

/// The length of the head by which a file is recognised.
const HEAD: u64 = 1 << 16;

/// Reads the tensors of a safetensors file. F16 and BF16 are widened to f32, integers to i64. Names of torchvision's
/// old DenseNet files (`denselayer1.norm.1.weight`) become today's (`denselayer1.norm1.weight`). Fails if the file
/// cannot be read, is truncated, is of another format (the error names it and the remedy), or has a duplicate name or a
/// tensor of another type.
pub fn read(path: impl AsRef<Path>) -> Result<StateDict> {
    Ok(read_with_metadata(path)?.0)
}

/// [`read`], with the file's metadata.
pub fn read_with_metadata(path: impl AsRef<Path>) -> Result<(StateDict, Metadata)> {
    let path = path.as_ref();
    let bytes = content(path)?;
    parse(&bytes).map_err(|problem| Error::file(path, problem))
}

/// [`read_with_metadata`] of a file's content.
pub fn from_bytes(bytes: &[u8]) -> Result<(StateDict, Metadata)> {
    parse(bytes).map_err(|problem| Error::invalid("weights", problem))
}

/// The content of the file. If it is no safetensors file, only its head is read.
fn content(path: &Path) -> Result<Vec<u8>> {
    let failed = |e: io::Error| Error::io(path, &e);
    let mut file = File::open(path).map_err(failed)?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        let inside = path.join("checkpoint.safetensors");
        let hint = if inside.is_file() { format!("; it holds {}", inside.display()) } else { String::new() };
        return Err(Error::file(path, format!("a folder, expected a safetensors file{hint}")));
    }
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(HEAD).read_to_end(&mut bytes).map_err(failed)?;
    if let Some(problem) = header::refuse(&bytes) {
        return Err(Error::file(path, problem));
    }
    // A file far longer than its header states is refused before its data is read: it may exceed memory.
    let whole = header::end(&bytes).unwrap_or(bytes.len() as u64);
    Read::by_ref(&mut file).take(whole.saturating_sub(bytes.len() as u64)).read_to_end(&mut bytes).map_err(failed)?;
    let len = file.metadata().ok().filter(|m| m.is_file()).map(|m| m.len());
    if let Some(problem) = len.and_then(|len| header::wrong_length(&bytes, len)) {
        return Err(Error::file(path, problem));
    }
    file.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<(StateDict, Metadata), String> {
    if let Some(problem) = header::refuse(&bytes[..bytes.len().min(HEAD as usize)]) {
        return Err(problem);
    }
    if let Some(twice) = header::duplicate(bytes) {
        return Err(format!("duplicate {twice}"));
    }
    let (_, head) = SafeTensors::read_metadata(bytes).map_err(|e| header::describe(bytes, &e))?;
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| header::describe(bytes, &e))?;
    let mut state = StateDict::new();
    // Sorted by name, so that the first of several faults is reported.
    let views: BTreeMap<&str, _> = tensors.iter().collect();
    for (name, view) in views {
        let data = elements(view.dtype(), view.data()).map_err(|problem| format!("tensor `{name}`: {problem}"))?;
        let tensor = HostTensor { shape: view.shape().into(), data };
        let name = modern_name(name);
        if state.insert(name.clone(), tensor).is_some() {
            return Err(format!("duplicate tensor `{name}`, under its old and its new name"));
        }
    }
    Ok((state, head.metadata().clone().unwrap_or_default().into_iter().collect()))
}

/// The tensor's elements. Fails for unsupported types.
fn elements(dtype: Dtype, bytes: &[u8]) -> Result<HostData, String> {
    fn each<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Result<Vec<T>, String> {
        let elements = bytes.as_chunks::<N>().0;
        let mut values = Vec::new();
        let wanted = elements.len().saturating_mul(size_of::<T>());
        values.try_reserve_exact(elements.len()).map_err(|_| format!("no memory for its {wanted} bytes"))?;
        values.extend(elements.iter().map(|&b| f(b)));
        Ok(values)
    }
    Ok(match dtype {
        Dtype::F32 => HostData::F32(each(bytes, f32::from_le_bytes)?),
        Dtype::F64 => HostData::F64(each(bytes, f64::from_le_bytes)?),
        Dtype::F16 => HostData::F32(each(bytes, |b| f16::from_le_bytes(b).to_f32())?),
        Dtype::BF16 => HostData::F32(each(bytes, |b| bf16::from_le_bytes(b).to_f32())?),
        Dtype::I8 => HostData::I64(each(bytes, |b| i8::from_le_bytes(b).into())?),
        Dtype::I16 => HostData::I64(each(bytes, |b| i16::from_le_bytes(b).into())?),
        Dtype::I32 => HostData::I64(each(bytes, |b| i32::from_le_bytes(b).into())?),
        Dtype::I64 => HostData::I64(each(bytes, i64::from_le_bytes)?),
        Dtype::U8 => HostData::I64(each(bytes, |b| u8::from_le_bytes(b).into())?),
        Dtype::U16 => HostData::I64(each(bytes, |b| u16::from_le_bytes(b).into())?),
        Dtype::U32 => HostData::I64(each(bytes, |b| u32::from_le_bytes(b).into())?),
        Dtype::U64 => {
            let values = each(bytes, u64::from_le_bytes)?;
            if let Some(value) = values.iter().find(|&&v| i64::try_from(v).is_err()) {
                return Err(format!("U64 data with {value}, expected at most {}", i64::MAX));
            }
            HostData::I64(values.into_iter().map(|v| v as i64).collect())
        }
        _ => return Err(format!("{dtype} data, expected F32, F64, F16, BF16 or integers")),
    })
}

/// Torchvision's current name for a name of an old DenseNet file; other names are unchanged.
fn modern_name(name: &str) -> String {
    let renamed = || {
        let start = name.find("denselayer")?;
        let (prefix, rest) = name.split_at(start + "denselayer".len());
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|&digits| digits > 0)?;
        let (number, rest) = rest.split_at(digits);
        let mut parts = rest.strip_prefix('.')?.split('.');
        let [kind, index, leaf] = [parts.next()?, parts.next()?, parts.next()?];
        let dotted = matches!(kind, "norm" | "relu" | "conv") && matches!(index, "1" | "2") && parts.next().is_none();
        dotted.then(|| format!("{prefix}{number}.{kind}{index}.{leaf}"))
    };
    renamed().unwrap_or_else(|| name.into())
}

/// [`Graph::check_state`]; the error names the file `path` of `state`.
pub fn check(path: impl AsRef<Path>, graph: &Graph, state: &StateDict) -> Result<StateReport> {
    graph.check_state(state).map_err(|e| Error::file(path.as_ref(), e.to_string()))
}

/// [`write_atomically`] for a safetensors file of `state` and `metadata`. Equal content gives equal bytes.
pub fn write(path: impl AsRef<Path>, state: &StateDict, metadata: &Metadata) -> Result<()> {
    state.iter().try_for_each(|(name, tensor)| tensor.check(format!("tensor `{name}`")))?;
    write_atomically(path, |out| write_to(out, state, metadata))
}

fn write_to(out: &mut dyn Write, state: &StateDict, metadata: &Metadata) -> io::Result<()> {
    // Wide elements first, so that each tensor is aligned to its element.
    let mut order: Vec<_> = state.iter().collect();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(kind(&tensor.data).1));
    let mut entries = Vec::new();
    if !metadata.is_empty() {
        let pairs: Vec<_> = metadata.iter().map(|(k, v)| format!("{}:{}", quoted(k), quoted(v))).collect();
        entries.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    }
    let mut offset = 0;
    for (name, tensor) in &order {
        let (dtype, bytes) = kind(&tensor.data);
        let end = offset + bytes * tensor.len();
        let dims: Vec<_> = tensor.shape.dims().iter().map(usize::to_string).collect();
        entries.push(format!(
            "{}:{{\"dtype\":\"{dtype}\",\"shape\":[{}],\"data_offsets\":[{offset},{end}]}}",
            quoted(name),
            dims.join(",")
        ));
        offset = end;
    }
    let mut header = format!("{{{}}}", entries.join(","));
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for (_, tensor) in order {
        match &tensor.data {
            HostData::F32(v) => v.iter().try_for_each(|a| out.write_all(&a.to_le_bytes()))?,
            HostData::F64(v) => v.iter().try_for_each(|a| out.write_all(&a.to_le_bytes()))?,
            HostData::I64(v) => v.iter().try_for_each(|a| out.write_all(&a.to_le_bytes()))?,
        }
    }
    Ok(())
}

/// The format's name of the element type, and its size in bytes.
fn kind(data: &HostData) -> (&'static str, usize) {
    match data {
        HostData::F32(_) => ("F32", 4),
        HostData::F64(_) => ("F64", 8),
        HostData::I64(_) => ("I64", 8),
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn sample() -> (StateDict, Metadata) {
        let state = StateDict::from([
            ("conv1.weight".into(), HostTensor::f32([2, 1, 1, 2], vec![1.0, -0.0, f32::NAN, f32::MIN_POSITIVE])),
            ("loss".into(), HostTensor::f64([1], vec![0.1])),
            ("bn1.num_batches_tracked".into(), HostTensor::i64([], vec![i64::MIN])),
            ("empty".into(), HostTensor::f32([0, 3], vec![])),
        ]);
        let text = "quote \" backslash \\ line \n bell \u{7} \u{e9} \u{1f600}";
        (state, Metadata::from([("a".into(), text.into()), ("b".into(), String::new())]))
    }

    /// A file of one tensor `x`, with its own header.
    fn crafted(dtype: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header =
            format!("{{\"x\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[0,{}]}}}}", data.len());
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    fn refusal(bytes: &[u8]) -> String {
        let folder = folder();
        let path = folder.path().join("w.safetensors");
        fs::write(&path, bytes).unwrap();
        let text = read(&path).unwrap_err().to_string();
        let problem = text.strip_prefix(&format!("{}: ", path.display())).unwrap_or_else(|| panic!("{text}"));
        assert!(!problem.contains('\n'), "{problem}");
        problem.into()
    }

    #[test]
    fn a_file_is_read_back_and_written_again_with_equal_bytes() {
        let (folder, (state, metadata)) = (folder(), sample());
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        write(&one, &state, &metadata).unwrap();
        let (found, strings) = read_with_metadata(&one).unwrap();
        assert_eq!(strings, metadata);
        assert_eq!(found.len(), state.len());
        for (name, tensor) in &state {
            let bits = |t: &HostTensor| match &t.data {
                HostData::F32(v) => v.iter().map(|a| u64::from(a.to_bits())).collect(),
                HostData::F64(v) => v.iter().map(|a| a.to_bits()).collect(),
                HostData::I64(v) => v.iter().map(|&a| a as u64).collect::<Vec<_>>(),
            };
            assert_eq!((&found[name].shape, bits(&found[name])), (&tensor.shape, bits(tensor)), "{name}");
        }
        write(&two, &found, &strings).unwrap();
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn truncated_files_are_refused_in_one_line() {
        let whole = crafted("F32", "[3]", &[0; 12]);
        assert_eq!(refusal(&[]), "an empty file, not a safetensors file: download or write it again");
        assert_eq!(refusal(&[9, 0, 0]), "3 bytes, too short for a safetensors file");
        assert_eq!(refusal(&whole[..whole.len() - 1]), "truncated: 11 bytes of tensor data, the header describes 12");
        assert_eq!(refusal(&[&whole[..], &[0]].concat()), "13 bytes of tensor data, the header describes 12");
        let text = refusal(&whole[..40]);
        assert!(text.starts_with("truncated or not a safetensors file: a header of "), "{text}");
        assert!(refusal(&crafted("F32", "[4]", &[0; 12])).starts_with("not a safetensors file: "));
        let text = refusal(&crafted("BOOL", "[1]", &[0]));
        assert_eq!(text, "tensor `x`: BOOL data, expected F32, F64, F16, BF16 or integers");
        for cut in 0..whole.len() {
            refusal(&whole[..cut]);
        }
        let missing = read("/nonexistent/w.safetensors").unwrap_err().to_string();
        assert!(missing.starts_with("/nonexistent/w.safetensors: No such file"), "{missing}");
    }

    #[test]
    fn half_types_and_integers_of_any_width_are_widened() {
        for (dtype, half) in [("F16", f16::from_f32(-1.5).to_le_bytes()), ("BF16", bf16::from_f32(-1.5).to_le_bytes())]
        {
            let (state, _) = from_bytes(&crafted(dtype, "[1,1]", &half)).unwrap();
            assert_eq!(state["x"], HostTensor::f32([1, 1], vec![-1.5]), "{dtype}");
        }
        for (dtype, bytes, value) in [
            ("I8", &[0xff][..], -1),
            ("I16", &[0xfe, 0xff], -2),
            ("I32", &[0, 0, 0, 0x80], i64::from(i32::MIN)),
            ("I64", &[7, 0, 0, 0, 0, 0, 0, 0], 7),
            ("U8", &[0xff], 255),
            ("U16", &[0xff, 0xff], 65_535),
            ("U32", &[0xff; 4], i64::from(u32::MAX)),
            ("U64", &[9, 0, 0, 0, 0, 0, 0, 0], 9),
        ] {
            let (state, _) = from_bytes(&crafted(dtype, "[1]", bytes)).unwrap();
            assert_eq!(state["x"], HostTensor::i64([1], vec![value]), "{dtype}");
        }
        let text = refusal(&crafted("U64", "[1]", &[0xff; 8]));
        assert!(text.starts_with("tensor `x`: U64 data with 18446744073709551615, expected at most"), "{text}");
    }

    #[test]
    fn other_formats_are_named_with_a_remedy() {
        let zip = |name: &str| [b"PK\x03\x04\x14\0\0\0", [0; 22].as_slice(), name.as_bytes(), &[0; 99]].concat();
        for (bytes, parts) in [
            (
                &zip("resnet50/data.pkl")[..],
                ["torch.save", "{k: v.contiguous() for k, v in model.state_dict().items()}"],
            ),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", ["pickle", "safetensors.torch.save_file("]),
            (&zip("input.npy"), [".npz", "safetensors.numpy.save_file("]),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", ["a git-lfs pointer", "git lfs pull"]),
            (b"<!doctype html><title>404", ["a web page", "download the file itself"]),
            (b"{\"message\": \"Not found\"}", ["a JSON text", "download"]),
            (b"\x1f\x8b\x08\0\0\0\0\0\0\x03...", ["a gzip file", "gunzip"]),
            (b"GGUF\x03\0\0\0\0", ["a GGUF file", "convert it"]),
            (&[0; 100], ["not a safetensors file", "header"]),
        ] {
            let text = refusal(bytes);
            for part in parts.iter().chain(&["not a safetensors file"]) {
                assert!(text.contains(part), "`{part}` in {text}");
            }
            let direct = from_bytes(bytes).unwrap_err().to_string();
            assert_eq!(direct, format!("weights: {text}"));
        }
        let folder = folder();
        fs::write(folder.path().join("checkpoint.safetensors"), "").unwrap();
        let text = read(folder.path()).unwrap_err().to_string();
        assert!(text.contains("a folder, expected a safetensors file; it holds "), "{text}");
        if Path::new("/dev/zero").exists() {
            assert!(read("/dev/zero").unwrap_err().to_string().contains("not a safetensors file"), "it has no end");
        }
    }

    /// It must not be read: it may exceed memory.
    #[test]
    fn a_file_that_is_longer_than_its_header_says_is_not_read() {
        let folder = folder();
        let path = folder.path().join("w");
        fs::write(&path, crafted("F32", "[3]", &[0; 12])).unwrap();
        assert!(read(&path).is_ok());
        let file = File::options().write(true).open(&path).unwrap();
        // A sparse file, if the file system supports it; else there is no room for it.
        let header = fs::read(&path).unwrap().len() as u64 - 12;
        if file.set_len(header + (1 << 40)).is_ok() {
            let text = read(&path).unwrap_err().to_string();
            assert!(text.ends_with(": 1099511627776 bytes of tensor data, the header describes 12"), "{text}");
        }
    }

    #[test]
    fn duplicate_names_are_refused() {
        let tensor = |offsets: &str| format!("{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{offsets}}}");
        let (first, second) = (tensor("[0,4]"), tensor("[4,8]"));
        for (header, expected) in [
            (format!("{{\"x\":{first},\"x\":{second}}}"), "duplicate tensor `x`"),
            (format!("{{\"x\":{first},\"\\u0078\":{first}}}"), "duplicate tensor `x`"),
            (format!("{{\"a.b\":{first},\"c\":{second},\"a.b\":{first}}}"), "duplicate tensor `a.b`"),
            (
                format!("{{\"__metadata__\":{{\"model\":\"a\",\"model\":\"b\"}},\"x\":{first}}}"),
                "duplicate metadata `model`",
            ),
        ] {
            // With data for one tensor and for both.
            for len in [4, 8] {
                let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8][..len]].concat();
                assert_eq!(refusal(&bytes), expected, "{header}");
            }
        }
        let twice = format!("{{\"x\":{{\"dtype\":\"F32\",{}}}", &first[1..]);
        assert!(refusal(&[&(twice.len() as u64).to_le_bytes()[..], twice.as_bytes(), &[0; 4]].concat())
            .contains("duplicate field `dtype`"));
        let null = format!("{{\"__metadata__\":null,\"x\":{first}}}");
        assert!(from_bytes(&[&(null.len() as u64).to_le_bytes()[..], null.as_bytes(), &[0; 4]].concat()).is_ok());
    }

    #[test]
    fn old_densenet_names_are_modernised() {
        for (old, new) in [
            ("features.denseblock1.denselayer12.norm.1.weight", "features.denseblock1.denselayer12.norm1.weight"),
            ("features.denseblock4.denselayer1.conv.2.weight", "features.denseblock4.denselayer1.conv2.weight"),
            ("denselayer2.norm.2.running_var", "denselayer2.norm2.running_var"),
        ] {
            assert_eq!(modern_name(old), new);
            assert_eq!(modern_name(new), new);
        }
        for name in ["features.transition1.norm.weight", "denselayer.norm.1.weight", "layer1.0.conv1.weight"] {
            assert_eq!(modern_name(name), name);
        }
    }

    #[test]
    fn a_densenet_loads_a_file_of_old_names() {
        let model = crate::models::find("densenet_bc22_k4_cifar").unwrap();
        let graph = model.build(crate::graph::Mode::Infer, 1, [3, 8, 8], 10, Default::default()).unwrap();
        let state = model.initialise(&graph, 1);
        let dotted = |name: &str| match name.split_once("denselayer") {
            Some(_) => ["norm1", "norm2", "conv1", "conv2"]
                .iter()
                .fold(name.to_string(), |name, layer| name.replace(layer, &format!("{}.{}", &layer[..4], &layer[4..]))),
            None => name.into(),
        };
        let old: StateDict = state.iter().map(|(name, tensor)| (dotted(name), tensor.clone())).collect();
        assert!(graph.check_state(&old).is_err(), "the file's names are other names");
        let folder = folder();
        let path = folder.path().join("densenet.safetensors");
        write(&path, &old, &Metadata::new()).unwrap();
        let found = read(&path).unwrap();
        check(&path, &graph, &found).unwrap();
        assert_eq!(found, state);
    }
}
