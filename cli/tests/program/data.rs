//! Invalid data sets.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::{bad, folder, names};

#[test]
fn data_files_are_named_with_what_was_found_and_expected() {
    let folder = folder();
    let set = folder.path().join("set");
    let train = |kind: &str| bad(folder.path(), &format!("train --data {kind}:set --out out"), 1);
    assert!(train("cifar10").contains("set: not a folder, expected one that holds data_batch_1.bin"));
    fs::create_dir(&set).unwrap();
    assert!(train("cifar10").contains("set/data_batch_1.bin: no such file"));
    assert!(train("cifar100").contains("set/train.bin: no such file"));
    assert!(train("mnist").contains("set/train-images-idx3-ubyte: no such file"));

    let file = File::create(set.join("data_batch_1.bin")).unwrap();
    file.set_len(30_729_999).unwrap();
    let cause = train("cifar10");
    assert_eq!(cause, "set/data_batch_1.bin: 30729999 bytes, expected 30730000 (10000 records of 3073)");
    file.set_len(30_730_000).unwrap();
    file.write_at(&[10], 3073 * 7).unwrap();
    let cause = train("cifar10");
    assert_eq!(cause, "set/data_batch_1.bin: label 10 of image 7 at offset 21511, expected 0..10");

    fs::write(set.join("train-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 2, 3, 11]).unwrap();
    fs::write(set.join("train-images-idx3-ubyte"), [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 3, 11]).unwrap();
    let cause = train("mnist");
    assert_eq!(cause, "set/train-labels-idx1-ubyte: label 11 of image 1 at offset 9, expected 0..10");
    assert_eq!(names(folder.path()), ["set"], "no folder was made");
}
