//! Readers, batches and augmentation.

use std::path::Path;

use proptest::prelude::*;
use residuum::data::cifar::{self, Kind};
use residuum::data::{digits, mnist, Augment, Batch, Dataset, Images, Loader, Normalize, Source};
use residuum::tensor::HostData;

/// `count` images of 1x2x3 pixels that count up, with labels that cycle through `classes`.
fn counting(count: usize, classes: usize) -> Dataset {
    let images = Images::U8((0..count * 6).map(|i| i as u8).collect());
    let labels = (0..count).map(|i| (i % classes) as i32).collect();
    let normalize = Normalize { white: 1.0, mean: vec![0.0], deviation: vec![1.0] };
    Dataset::new(images, labels, classes, [1, 2, 3], normalize).unwrap()
}

fn values(batch: &Batch) -> &[f32] {
    match &batch.input.data {
        HostData::F32(v) => v,
        other => panic!("{other:?}"),
    }
}

/// The error of `result`, which must be one line.
pub fn message<T>(result: residuum::Result<T>) -> String {
    let text = result.err().expect("an error").to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

#[test]
fn digits_are_split_and_their_statistics_are_as_stated() {
    let splits = digits::read().unwrap();
    assert_eq!((splits.train.len(), splits.test.len()), (1437, 360));
    for set in [&splits.train, &splits.test] {
        assert_eq!((set.classes(), set.shape()), (10, [1, 8, 8]));
        let per_class: Vec<usize> = (0..10).map(|k| set.labels().iter().filter(|&&label| label == k).count()).collect();
        assert!(per_class.iter().all(|&n| n * 15 > set.len()), "{per_class:?}");
    }
    let (mean, deviation) = splits.train.statistics();
    let stated = digits::normalize();
    assert!((mean[0] - f64::from(stated.mean[0])).abs() < 1e-3, "mean {mean:?}");
    assert!((deviation[0] - f64::from(stated.deviation[0])).abs() < 1e-3, "deviation {deviation:?}");
}

#[test]
fn batches_do_not_depend_on_the_number_of_threads() {
    let data = digits::read().unwrap().train;
    let batches = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let loader = Loader::train(&data, 64, Augment { pad: 2, flip: true }, 5).unwrap();
            let order = loader.order(3);
            (0..loader.steps()).map(|step| loader.batch(&order, 3, step)).collect::<Vec<_>>()
        })
    };
    let one = batches(1);
    assert_eq!(one.len(), 1437 / 64);
    assert_eq!(one, batches(2));
    assert_eq!(one, batches(3));
}

#[test]
fn epochs_and_seeds_differ_and_an_epoch_holds_each_image_once() {
    let data = counting(40, 4);
    let loader = |seed| Loader::train(&data, 7, Augment::default(), seed).unwrap();
    let order = loader(1).order(0);
    assert_ne!(order, loader(1).order(1));
    assert_ne!(order, loader(2).order(0));
    assert_eq!(order, loader(1).order(0));
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..40).collect::<Vec<u32>>());
    assert_eq!(loader(1).steps(), 5, "the last 5 images make no full batch");
    let batch = loader(1).batch(&order, 0, 1);
    for (i, &index) in order[7..14].iter().enumerate() {
        assert_eq!(values(&batch)[6 * i], (6 * index) as f32 % 256.0);
        assert_eq!(batch.labels[i], index as i32 % 4);
    }
}

#[test]
fn augmentation_moves_pixels_as_drawn_and_pads_with_black() {
    let data = counting(30, 3);
    let augment = Augment { pad: 1, flip: true };
    let loader = Loader::train(&data, 30, augment, 9).unwrap();
    let order = loader.order(2);
    let batch = loader.batch(&order, 2, 0);
    for (image, &index) in values(&batch).chunks(6).zip(&order) {
        let draw = augment.draw(9, 2, index);
        for (i, &value) in image.iter().enumerate() {
            let column = if draw.mirrored { 2 - i % 3 } else { i % 3 } as isize + draw.left;
            let row = (i / 3) as isize + draw.top;
            let inside = (0..2).contains(&row) && (0..3).contains(&column);
            let expected = if inside { (6 * index as isize + 3 * row + column) as u8 } else { 0 };
            assert_eq!(value, f32::from(expected), "image {index}, pixel {i}, {draw:?}");
        }
    }
}

#[test]
fn normalisation_is_the_stated_one_for_bytes_and_floats() {
    let normalize = Normalize { white: 255.0, mean: vec![0.5, 0.25], deviation: vec![0.1, 0.2] };
    let bytes = vec![0u8, 255, 51, 102];
    let floats = bytes.iter().map(|&v| f32::from(v)).collect();
    let expected = [-5.0, 5.0, (0.2 - 0.25) / 0.2, (0.4 - 0.25) / 0.2];
    for images in [Images::U8(bytes), Images::F32(floats)] {
        let data = Dataset::new(images, vec![0], 1, [2, 1, 2], normalize.clone()).unwrap();
        let batch = Loader::test(&data, 1).unwrap().in_order().next().unwrap();
        for (found, expected) in values(&batch).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found}, expected {expected}");
        }
    }
}

#[test]
fn a_test_pass_counts_every_image_once() {
    let data = counting(10, 2);
    let batches: Vec<Batch> = Loader::test(&data, 4).unwrap().in_order().collect();
    assert_eq!(batches.iter().map(|b| b.valid).collect::<Vec<_>>(), [4, 4, 2]);
    assert!(batches.iter().all(|b| b.labels.len() == 4 && b.input.shape.dims() == [4, 1, 2, 3]));
    let seen: Vec<f32> = batches.iter().flat_map(|b| values(b)[..6 * b.valid].to_vec()).collect();
    assert_eq!(seen, (0..60).map(|i| i as f32).collect::<Vec<_>>());
}

#[test]
fn impossible_batches_and_sets_are_refused() {
    let data = counting(10, 2);
    let augment = Augment::default();
    assert_eq!(
        message(Loader::train(&data, 0, augment, 0)),
        "batch: 0, expected 1..=10 (the number of training images)"
    );
    assert_eq!(
        message(Loader::train(&data, 11, augment, 0)),
        "batch: 11, expected 1..=10 (the number of training images)"
    );
    assert!(message(Loader::test(&data, 0)).contains("expected at least 1"));
    let normalize = || Normalize { white: 1.0, mean: vec![0.0], deviation: vec![1.0] };
    let set =
        |labels, classes, shape, normalize| Dataset::new(Images::U8(vec![0; 12]), labels, classes, shape, normalize);
    assert!(set(vec![0, 1], 2, [1, 2, 3], normalize()).is_ok());
    assert!(message(set(vec![0, 2], 2, [1, 2, 3], normalize())).contains("label 2 of image 1, expected 0..2"));
    assert!(message(set(vec![0, -1], 2, [1, 2, 3], normalize())).contains("label -1 of image 1"));
    assert!(message(set(vec![0], 2, [1, 2, 3], normalize())).contains("12 pixels for 1 images"));
    assert!(message(set(vec![], 2, [1, 0, 3], normalize())).contains("[1, 0, 3]"));
    assert!(message(set(vec![0], 2, [2, 2, 3], normalize())).contains("each of 2 channels"));
    let flat = Normalize { deviation: vec![0.0], ..normalize() };
    assert!(message(set(vec![0, 1], 2, [1, 2, 3], flat)).contains("positive deviation"));
}

#[test]
fn sources_parse_and_print_and_name_what_they_expect() {
    for text in ["digits", "cifar10:/a/b", "cifar100:x", "mnist:/a:b"] {
        assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
    }
    for text in ["", "digit", "cifar10", "cifar10:", "digits:x", "imagenet:/a"] {
        let expected = format!("data: `{text}`, expected digits, cifar10:DIR, cifar100:DIR or mnist:DIR");
        assert_eq!(message(text.parse::<Source>()), expected);
    }
}

fn write(folder: &Path, name: &str, content: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn cifar_file(kind: Kind, count: usize) -> Vec<u8> {
    let head = kind.record() - 3072;
    (0..count * kind.record())
        .map(|i| match (i / kind.record(), i % kind.record()) {
            (image, at) if at < head => (image * 7 % if head == 1 { 10 } else { [20, 100][at] }) as u8,
            (image, at) => (image + at) as u8,
        })
        .collect()
}

#[test]
fn cifar_records_are_read_as_published() {
    let folder = tempfile::tempdir().unwrap();
    for kind in [Kind::Cifar10, Kind::Cifar100] {
        let path = write(folder.path(), "batch.bin", &cifar_file(kind, 15));
        let data = cifar::read_file(&path, kind, 15).unwrap();
        assert_eq!((data.len(), data.shape(), data.classes()), (15, [3, 32, 32], kind.classes()));
        let expected: Vec<i32> = (0..15).map(|i| i * 7 % kind.classes() as i32).collect();
        assert_eq!(data.labels(), expected);
        let Images::U8(pixels) = data.images() else { panic!("bytes") };
        assert_eq!(pixels[3072 * 14 + 5], (14 + kind.record() - 3072 + 5) as u8);
    }
}

#[test]
fn cifar_errors_name_the_file_the_offset_and_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    let mut content = cifar_file(Kind::Cifar10, 3);
    content[3073 * 2] = 10;
    let path = write(folder.path(), "batch.bin", &content);
    let read = |kind, count| message(cifar::read_file(&path, kind, count));
    let name = path.display();
    assert_eq!(read(Kind::Cifar10, 3), format!("{name}: label 10 of image 2 at offset 6146, expected 0..10"));
    assert_eq!(read(Kind::Cifar10, 4), format!("{name}: 9219 bytes, expected 12292 (4 records of 3073)"));
    let mut content = cifar_file(Kind::Cifar100, 2);
    content[3074] = 20;
    write(folder.path(), "batch.bin", &content);
    assert_eq!(read(Kind::Cifar100, 2), format!("{name}: label 20 of image 1 at offset 3074, expected 0..20"));
    content[3074] = 19;
    content[3075] = 100;
    write(folder.path(), "batch.bin", &content);
    assert_eq!(read(Kind::Cifar100, 2), format!("{name}: label 100 of image 1 at offset 3075, expected 0..100"));

    let missing = message(cifar::read(folder.path(), Kind::Cifar10));
    assert!(missing.contains("data_batch_1.bin: no such file (the binary version"), "{missing}");
    let nowhere = folder.path().join("nowhere");
    assert!(message(cifar::read(&nowhere, Kind::Cifar100))
        .contains("nowhere: not a folder, expected one that holds train.bin"));
    write(folder.path(), "data_batch_1.bin", &[0; 3073]);
    let short = message(cifar::read(folder.path(), Kind::Cifar10));
    assert!(short.contains("data_batch_1.bin: 3073 bytes, expected 30730000 (10000 records of 3073)"), "{short}");
}

fn idx(magic: u32, dims: &[u32], content: impl Iterator<Item = u8>) -> Vec<u8> {
    std::iter::once(&magic).chain(dims).flat_map(|v| v.to_be_bytes()).chain(content).collect()
}

#[test]
fn mnist_files_are_read_from_the_usual_folders() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("MNIST/raw");
    std::fs::create_dir_all(&raw).unwrap();
    for (name, count) in [("train", 6), ("t10k", 4)] {
        write(&raw, &format!("{name}-images-idx3-ubyte"), &idx(0x803, &[count, 3, 2], 0..count as u8 * 6));
        write(&raw, &format!("{name}-labels.idx1-ubyte"), &idx(0x801, &[count], 0..count as u8));
    }
    let splits = mnist::read(folder.path()).unwrap();
    assert_eq!((splits.train.len(), splits.test.len(), splits.train.shape()), (6, 4, [1, 3, 2]));
    assert_eq!(splits.test.labels(), [0, 1, 2, 3]);
    assert_eq!(*splits.test.images(), Images::U8((0..24).collect()));
}

#[test]
fn mnist_errors_name_the_file_and_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    let images = write(folder.path(), "images", &idx(0x803, &[2, 2, 2], 0..8));
    let labels = write(folder.path(), "labels", &idx(0x801, &[2], 0..2));
    assert_eq!(mnist::read_files(&images, &labels).unwrap().len(), 2);
    let swapped = message(mnist::read_files(&labels, &images));
    assert!(swapped.ends_with("images: begins with 0x00000803, expected 0x00000801 (IDX labels)"), "{swapped}");
    for (bad, expected) in [
        (idx(0x801, &[2], [1, 10].into_iter()), "labels: label 10 of image 1 at offset 9, expected 0..10"),
        (idx(0x801, &[2], 0..3), "labels: 11 bytes, expected 10 (a header of 8, then [2])"),
        (idx(0x801, &[3], 0..3), "images: 2 images, expected 3, the number of labels"),
        (vec![0, 0, 8], "labels: 3 bytes, expected at least the 8 of the header of IDX labels"),
    ] {
        write(folder.path(), "labels", &bad);
        let found = message(mnist::read_files(&images, &labels));
        assert!(found.contains(expected), "{found}");
    }
    write(folder.path(), "labels", &idx(0x801, &[0], 0..0));
    write(folder.path(), "images", &idx(0x803, &[u32::MAX; 3], 0..8));
    assert!(message(mnist::read_files(&images, &labels)).contains("expected more than memory holds"));
    write(folder.path(), "images", b"<!DOCTYPE html><title>Not found");
    let page = message(mnist::read_files(&images, &labels));
    assert!(page.contains("it is a web page (HTML): download the file itself"), "{page}");
}

#[test]
fn every_truncation_of_a_data_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let labels = write(folder.path(), "labels", &idx(0x801, &[2], 0..2));
    let whole = idx(0x803, &[2, 2, 2], 0..8);
    for len in 0..whole.len() {
        let images = write(folder.path(), "images", &whole[..len]);
        message(mnist::read_files(&images, &labels));
    }
    let whole = cifar_file(Kind::Cifar100, 1);
    for len in (0..whole.len()).step_by(97) {
        let path = write(folder.path(), "cifar", &whole[..len]);
        message(cifar::read_file(&path, Kind::Cifar100, 1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_give_an_error_or_a_valid_set(at in 0usize..24, flip in 1u8..=255, in_labels: bool) {
        let folder = tempfile::tempdir().unwrap();
        let mut files = [idx(0x803, &[2, 2, 2], 0..8), idx(0x801, &[2], 0..2)];
        let file = &mut files[usize::from(in_labels)];
        let at = at % file.len();
        file[at] ^= flip;
        let images = write(folder.path(), "images", &files[0]);
        let labels = write(folder.path(), "labels", &files[1]);
        match mnist::read_files(&images, &labels) {
            Ok(data) => prop_assert!(data.len() == 2 && data.labels().iter().all(|&l| l < 10)),
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}
