//! CIFAR-10 and CIFAR-100 in their binary form: records of a label (CIFAR-100: a coarse and a fine label) and 3,072
//! bytes, NCHW: red, green, blue, row by row. From <https://www.cs.toronto.edu/~kriz/cifar.html> (A. Krizhevsky, 2009).
//!
//! ```
//! use residuum::data::cifar::{from_bytes, Kind};
//!
//! let record = [&[7][..], &[128; 3 * 32 * 32]].concat();
//! let images = from_bytes(&record, Kind::Cifar10, 1)?;
//! assert_eq!((images.shape(), images.labels()), ([3, 32, 32], &[7][..]));
//! # Ok::<(), residuum::Error>(())
//! ```

use std::path::Path;

use super::bytes::{self, Layout};
use super::dataset::{Dataset, Images, Normalize, Splits};
use crate::{Error, Result};

/// Pixels of an image: 3 x 32 x 32.
const PIXELS: usize = 3072;
/// Hints for the other versions.
const PYTHON: &str = "the Python version of the data set, use the binary version";
const MATLAB: &str = "the MATLAB version of the data set, use the binary version";
const ORIGIN: &str = "the binary version of the data set, from https://www.cs.toronto.edu/~kriz/cifar.html";

/// One of the two data sets. See the [module](self) for an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 10 classes; five training files and one test file of 10,000 images.
    Cifar10,
    /// 100 fine classes (the 20 coarse ones are ignored); a training file of 50,000 images and a test file of 10,000.
    Cifar100,
}

impl Kind {
    /// The number of classes.
    pub fn classes(self) -> usize {
        match self {
            Self::Cifar10 => 10,
            Self::Cifar100 => 100,
        }
    }

    /// Bytes of a record: the labels, then the pixels.
    pub fn record(self) -> usize {
        match self {
            Self::Cifar10 => 1 + PIXELS,
            Self::Cifar100 => 2 + PIXELS,
        }
    }

    /// The commonly used mean and standard deviation of each channel over the training images, of 255: 125.3 123.0
    /// 113.9 and 63.0 62.1 66.7 for CIFAR-10, 129.3 124.1 112.4 and 68.2 65.4 70.4 for CIFAR-100.
    pub fn normalize(self) -> Normalize {
        let (mean, deviation) = match self {
            Self::Cifar10 => ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7]),
            Self::Cifar100 => ([129.3, 124.1, 112.4], [68.2, 65.4, 70.4]),
        };
        let unit = |v: [f32; 3]| v.map(|v| v / 255.0).to_vec();
        Normalize { white: 255.0, mean: unit(mean), deviation: unit(deviation) }
    }

    /// The training files and the test file, and the number of images in each.
    fn files(self) -> [(Vec<String>, usize); 2] {
        match self {
            Self::Cifar10 => [
                ((1..=5).map(|i| format!("data_batch_{i}.bin")).collect(), 10_000),
                (vec!["test_batch.bin".into()], 10_000),
            ],
            Self::Cifar100 => [(vec!["train.bin".into()], 50_000), (vec!["test.bin".into()], 10_000)],
        }
    }

    /// The folder inside the published archive.
    fn folder(self) -> &'static str {
        match self {
            Self::Cifar10 => "cifar-10-batches-bin",
            Self::Cifar100 => "cifar-100-binary",
        }
    }

    /// Names that reveal another version of the data set or its archive, with a hint.
    fn others(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Cifar10 => &[
                ("cifar-10-batches-py", PYTHON),
                ("batches.meta", PYTHON),
                ("data_batch_1", PYTHON),
                ("cifar-10-batches-mat", MATLAB),
                ("data_batch_1.mat", MATLAB),
                ("cifar-10-binary.tar.gz", "the archive, unpack it with `tar xzf cifar-10-binary.tar.gz`"),
                ("cifar-10-binary.tar", "the archive, unpack it with `tar xf cifar-10-binary.tar`"),
                ("cifar-10-python.tar.gz", PYTHON),
                ("cifar-10-matlab.tar.gz", MATLAB),
                ("cifar-100-binary", "CIFAR-100, which --data cifar100:DIR reads"),
            ],
            Self::Cifar100 => &[
                ("cifar-100-python", PYTHON),
                ("train", PYTHON),
                ("cifar-100-matlab", MATLAB),
                ("train.mat", MATLAB),
                ("cifar-100-binary.tar.gz", "the archive, unpack it with `tar xzf cifar-100-binary.tar.gz`"),
                ("cifar-100-binary.tar", "the archive, unpack it with `tar xf cifar-100-binary.tar`"),
                ("cifar-100-python.tar.gz", PYTHON),
                ("cifar-100-matlab.tar.gz", MATLAB),
                ("cifar-10-batches-bin", "CIFAR-10, which --data cifar10:DIR reads"),
                ("data_batch_1.bin", "CIFAR-10, which --data cifar10:DIR reads"),
            ],
        }
    }
}

/// Reads the published training and test images from `folder`, or from the archive's folder below, beside or above it.
pub fn read(folder: &Path, kind: Kind) -> Result<Splits> {
    let files = kind.files();
    let names = |name: &String| vec![name.clone(), format!("{name}.gz")];
    let all: Vec<_> = files.iter().flat_map(|(files, _)| files).map(names).collect();
    let folders = &[kind.folder()];
    let layout = Layout { files: &all, folders, beside: folders, others: kind.others(), origin: ORIGIN };
    let folder = layout.locate(folder)?;
    let [train, test] = files.map(|(files, count)| {
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        for name in &files {
            let path = layout.file(&folder, &names(name))?;
            let content = bytes::read(&path)?;
            append(&content, kind, count, &mut images, &mut labels).map_err(|e| Error::file(path, e))?;
        }
        Dataset::new(Images::U8(images), labels, kind.classes(), [3, 32, 32], kind.normalize())
    });
    Ok(Splits { train: train?, test: test? })
}

/// Reads a file of exactly `count` records.
pub fn read_file(path: &Path, kind: Kind, count: usize) -> Result<Dataset> {
    parse(&bytes::read(path)?, kind, count, |problem| Error::file(path, problem))
}

/// [`read_file`] of a file's content.
pub fn from_bytes(content: &[u8], kind: Kind, count: usize) -> Result<Dataset> {
    parse(content, kind, count, |problem| Error::invalid("CIFAR records", problem))
}

fn parse(content: &[u8], kind: Kind, count: usize, named: impl FnOnce(String) -> Error) -> Result<Dataset> {
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    append(content, kind, count, &mut images, &mut labels).map_err(named)?;
    Dataset::new(Images::U8(images), labels, kind.classes(), [3, 32, 32], kind.normalize())
}

fn append(content: &[u8], kind: Kind, count: usize, images: &mut Vec<u8>, labels: &mut Vec<i32>) -> Result<(), String> {
    let record = kind.record();
    if count.checked_mul(record) != Some(content.len()) {
        let expected = count.checked_mul(record).map_or("more than memory holds".into(), |bytes| bytes.to_string());
        let problem = format!("{} bytes, expected {expected} ({count} records of {record})", content.len());
        return Err(bytes::explain(problem, content));
    }
    for (i, bytes) in content.chunks_exact(record).enumerate() {
        let (head, pixels) = bytes.split_at(record - PIXELS);
        let ranges: &[usize] = if head.len() == 1 { &[10] } else { &[20, 100] };
        for (at, (&label, &classes)) in head.iter().zip(ranges).enumerate() {
            if usize::from(label) >= classes {
                return Err(format!("label {label} of image {i} at offset {}, expected 0..{classes}", i * record + at));
            }
        }
        labels.push(i32::from(head[head.len() - 1]));
        images.extend_from_slice(pixels);
    }
    Ok(())
}
