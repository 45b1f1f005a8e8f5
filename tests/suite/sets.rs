//! Image sets in the folders and files that are in use.

use std::io::Write;
use std::path::{Path, PathBuf};

use residuum::data::cifar::{self, Kind};
use residuum::data::{mnist, Source};

use crate::data::message;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(path: PathBuf, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn idx(magic: u32, dims: &[u32], content: Vec<u8>) -> Vec<u8> {
    std::iter::once(&magic).chain(dims).flat_map(|v| v.to_be_bytes()).chain(content).collect()
}

/// A set of `train` and 2 test images in IDX files in `folder`, named with `dot` before `idx` and `end` at the end.
fn idx_set(folder: &Path, train: u32, dot: char, end: &str) {
    for (name, count) in [("train", train), ("t10k", 2)] {
        let images = idx(0x803, &[count, 2, 2], vec![7; 4 * count as usize]);
        let labels = idx(0x801, &[count], vec![3; count as usize]);
        for (kind, content) in [("images", images), ("labels", labels)] {
            let rank = if kind == "images" { 3 } else { 1 };
            let content = if end == ".gz" { gzip(&content) } else { content };
            write(folder.join(format!("{name}-{kind}{dot}idx{rank}-ubyte{end}")), &content);
        }
    }
}

fn images(folder: &Path) -> usize {
    mnist::read(folder).unwrap().train.len()
}

#[test]
fn mnist_is_read_as_torchvision_and_browsers_leave_it() {
    for (dot, end) in [('-', ""), ('.', ""), ('-', ".gz"), ('.', ".gz")] {
        let root = folder();
        for (i, set) in ["MNIST", "FashionMNIST", "KMNIST"].iter().enumerate() {
            idx_set(&root.path().join(set).join("raw"), 3 + i as u32, dot, end);
            std::fs::create_dir_all(root.path().join(set).join("processed")).unwrap();
        }
        let at = |inner: &str| images(&root.path().join(inner));
        assert_eq!(at(""), 3, "MNIST among others");
        for (i, set) in ["MNIST", "FashionMNIST", "KMNIST"].iter().enumerate() {
            for inner in ["", "/raw", "/processed"] {
                assert_eq!(at(&format!("{set}{inner}")), 3 + i, "{set}{inner} with {dot}idx and `{end}`");
            }
        }
        std::fs::remove_dir_all(root.path().join("MNIST")).unwrap();
        let text = message(mnist::read(root.path()));
        assert!(text.contains("FashionMNIST/raw and ") && text.contains("name one of them"), "{text}");
        // An empty folder is not filled from the set beside it.
        std::fs::remove_dir_all(root.path().join("KMNIST/raw")).unwrap();
        assert_eq!(at(""), 4, "the only one");
        assert!(
            message(mnist::read(&root.path().join("KMNIST"))).contains("KMNIST/train-images-idx3-ubyte: no such file")
        );
    }
}

#[test]
fn a_file_may_lie_in_a_folder_of_its_own_name() {
    let root = folder();
    idx_set(&root.path().join("flat"), 5, '-', "");
    for entry in std::fs::read_dir(root.path().join("flat")).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        let inner = root.path().join("set").join(&name);
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::rename(path, inner.join(name)).unwrap();
    }
    assert_eq!(images(&root.path().join("set")), 5);
    assert_eq!(images(root.path()), 5);
}

#[test]
fn compressed_files_are_known_by_their_bytes() {
    let root = folder();
    idx_set(root.path(), 3, '-', ".gz");
    // Unpacked by a browser that kept the name, and the other way round.
    write(root.path().join("train-labels-idx1-ubyte.gz"), &idx(0x801, &[3], vec![1; 3]));
    std::fs::rename(root.path().join("t10k-images-idx3-ubyte.gz"), root.path().join("t10k-images-idx3-ubyte")).unwrap();
    assert_eq!(mnist::read(root.path()).unwrap().train.labels(), [1; 3]);
    let packed = gzip(&idx(0x801, &[3], vec![1; 3]));
    write(root.path().join("train-labels-idx1-ubyte.gz"), &packed[..packed.len() - 9]);
    let text = message(mnist::read(root.path()));
    assert!(text.contains("train-labels-idx1-ubyte.gz: cannot be unpacked as gzip"), "{text}");
    write(root.path().join("train-labels-idx1-ubyte.gz"), &gzip(&[0; 20]));
    assert!(message(mnist::read(root.path())).contains("begins with 0x00000000, expected 0x00000801"));
}

#[test]
fn cifar_is_found_around_the_folder_that_is_named() {
    for (kind, inner) in [(Kind::Cifar10, "cifar-10-batches-bin"), (Kind::Cifar100, "cifar-100-binary")] {
        let root = folder();
        let set = root.path().join("data").join(inner);
        for name in ["data_batch_1.bin", "train.bin"] {
            write(set.join(name), &[0; 7]);
        }
        std::fs::create_dir_all(set.join("deeper")).unwrap();
        std::fs::create_dir_all(root.path().join("data/cifar-10-batches-py")).unwrap();
        let first = if kind == Kind::Cifar10 { "data_batch_1.bin" } else { "train.bin" };
        for named in ["", "data", "data/cifar-10-batches-py", &format!("data/{inner}"), &format!("data/{inner}/deeper")]
        {
            let text = message(cifar::read(&root.path().join(named), kind));
            let found = text.contains(&format!("{inner}/{first}: 7 bytes, expected"));
            assert!(found, "`{named}` for {kind:?}: {text}");
        }
    }
}

#[test]
fn other_versions_of_cifar_are_named() {
    for (kind, found, expected) in [
        (
            Kind::Cifar10,
            "cifar-10-batches-py/data_batch_1",
            "the Python version of the data set, use the binary version",
        ),
        (Kind::Cifar10, "batches.meta", "the Python version"),
        (Kind::Cifar10, "cifar-10-batches-mat/data_batch_1.mat", "the MATLAB version"),
        (Kind::Cifar10, "cifar-10-binary.tar.gz", "the archive, unpack it with `tar xzf cifar-10-binary.tar.gz`"),
        (Kind::Cifar10, "cifar-10-python.tar.gz", "the Python version"),
        (Kind::Cifar10, "cifar-100-binary/train.bin", "CIFAR-100, which --data cifar100:DIR reads"),
        (Kind::Cifar100, "cifar-100-python/train", "the Python version"),
        (Kind::Cifar100, "cifar-100-binary.tar.gz", "the archive, unpack it"),
        (Kind::Cifar100, "cifar-10-batches-bin/data_batch_1.bin", "CIFAR-10, which --data cifar10:DIR reads"),
    ] {
        let root = folder();
        write(root.path().join(found), b"x");
        let (inside, itself) = (cifar::read(root.path(), kind), cifar::read(&root.path().join(found), kind));
        let text = message(inside);
        assert!(text.contains(expected) && text.contains("no such file (the binary version"), "{found}: {text}");
        let text = message(itself);
        assert!(text.contains("not a folder, expected one that holds"), "{found}: {text}");
        if found.ends_with(".tar.gz") {
            assert!(text.contains(expected), "{found}: {text}");
        }
    }
    let root = folder();
    write(root.path().join("data_batch_1.bin"), &gzip(b"a tar archive"));
    let text = message(cifar::read(root.path(), Kind::Cifar10));
    assert!(text.contains("13 bytes, expected 30730000"), "{text}");
    write(root.path().join("data_batch_1.bin"), b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
    let text = message(cifar::read(root.path(), Kind::Cifar10));
    assert!(text.contains("it is a git-lfs pointer: fetch the file itself with `git lfs pull`"), "{text}");
    write(root.path().join("data_batch_1.bin"), &[0; 30_730_000]);
    let text = message(cifar::read(root.path(), Kind::Cifar10));
    assert!(text.contains("data_batch_2.bin: no such file"), "{text}");
}

#[test]
fn a_tilde_behind_the_colon_is_the_home_folder() {
    let home = std::env::var("HOME").unwrap();
    for (text, expected) in [
        ("cifar10:~/x/y", format!("cifar10:{home}/x/y")),
        ("cifar100:~", format!("cifar100:{home}")),
        ("mnist:~/", format!("mnist:{home}")),
        ("mnist:~user/x", "mnist:~user/x".into()),
        ("mnist:/a/~/b", "mnist:/a/~/b".into()),
        ("mnist:~x", "mnist:~x".into()),
    ] {
        let found = text.parse::<Source>().unwrap().to_string();
        assert_eq!(found.trim_end_matches('/'), expected.trim_end_matches('/'), "{text}");
    }
}
