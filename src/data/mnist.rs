//! MNIST and data sets of its form (Fashion-MNIST, KMNIST): IDX files, big-endian.
//!
//! ```text
//! images: 0x00000803, count, rows, columns (u32 each), then count * rows * columns bytes
//! labels: 0x00000801, count (u32 each), then count bytes
//! ```
//!
//! From <https://ossci-datasets.s3.amazonaws.com/mnist/> (Y. LeCun, C. Cortes, C. Burges), compressed or unpacked.

use std::path::Path;

use super::bytes::{self, Layout};
use super::dataset::{Dataset, Images, Normalize, Splits};
use crate::{Error, Result};

const CLASSES: usize = 10;
const ORIGIN: &str = "from https://ossci-datasets.s3.amazonaws.com/mnist, compressed or unpacked";
/// Where torchvision puts MNIST below its root. Other data sets of this form lie beside it; one alone is found too.
const FOLDERS: &[&str] = &["MNIST/raw", "raw"];
const OTHERS: &[(&str, &str)] = &[
    ("training.pt", "torchvision's processed form of the data set, use the files in its folder raw"),
    ("processed", "torchvision's processed form of the data set, use the files in its folder raw"),
    ("mnist.npz", "the data set in the form of Keras, use the IDX files"),
    ("mnist.pkl.gz", "a Python pickle of the data set, use the IDX files"),
    ("mnist_train.csv", "a table of the data set, use the IDX files"),
];

/// The mean and the standard deviation of MNIST's training pixels, of 255.
pub fn normalize() -> Normalize {
    Normalize { white: 255.0, mean: vec![0.1307], deviation: vec![0.3081] }
}

/// The possible names of the file of `kind` and `rank` in the split `name`.
fn names(name: &str, kind: &str, rank: usize) -> Vec<String> {
    let plain = ["-idx", ".idx"].map(|idx| format!("{name}-{kind}{idx}{rank}-ubyte"));
    let packed = plain.each_ref().map(|name| format!("{name}.gz"));
    plain.into_iter().chain(packed).collect()
}

/// Reads the training and test images, compressed or not, from `folder`, from torchvision's `MNIST/raw` or `raw` below
/// it, or from the nearest folder around it. Images are 1xHxW (C, H, W).
pub fn read(folder: &Path) -> Result<Splits> {
    let kinds = [("images", 3), ("labels", 1)];
    let files = ["train", "t10k"].map(|name| kinds.map(|(kind, rank)| names(name, kind, rank)));
    let all = files.concat();
    let layout = Layout { files: &all, folders: FOLDERS, beside: &["raw"], others: OTHERS, origin: ORIGIN };
    let found = layout.locate(folder)?;
    let [train, test] =
        files.map(|[images, labels]| read_files(&layout.file(&found, &images)?, &layout.file(&found, &labels)?));
    let (train, test) = (train?, test?);
    if train.shape() != test.shape() {
        let problem = format!("test images of {:?}, training images of {:?}", test.shape(), train.shape());
        return Err(Error::file(found, problem));
    }
    Ok(Splits { train, test })
}

/// Reads the images of one IDX file and the labels of another; either may be gzip.
pub fn read_files(images: &Path, labels: &Path) -> Result<Dataset> {
    let (pixels, values) = (bytes::read(images)?, bytes::read(labels)?);
    let wrong: Wrong = [&|text| Error::file(images, text), &|text| Error::file(labels, text)];
    let expected = |count| format!("{count}, the number of labels in {}", labels.display());
    join([&pixels, &values], wrong, |found, count| format!("{found} images, expected {}", expected(count)))
}

/// [`read_files`] of two files' uncompressed contents.
///
/// ```
/// use residuum::data::mnist::from_bytes;
///
/// let images = [0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 10, 20];
/// let labels = [0, 0, 8, 1, 0, 0, 0, 1, 9];
/// let data = from_bytes(&images, &labels)?;
/// assert_eq!((data.shape(), data.labels()), ([1, 1, 2], &[9][..]));
/// # Ok::<(), residuum::Error>(())
/// ```
pub fn from_bytes(images: &[u8], labels: &[u8]) -> Result<Dataset> {
    let wrong: Wrong = [&|text| Error::invalid("IDX images", text), &|text| Error::invalid("IDX labels", text)];
    join([images, labels], wrong, |found, count| format!("{found}, expected {count}, the number of labels"))
}

/// The errors for a problem of the images and of the labels.
type Wrong<'a> = [&'a dyn Fn(String) -> Error; 2];

/// `differ` is the problem if the numbers of images and of labels do.
fn join(contents: [&[u8]; 2], wrong: Wrong, differ: impl Fn(usize, usize) -> String) -> Result<Dataset> {
    let ([images, labels], [wrong_images, wrong_labels]) = (contents, wrong);
    let ([count], values) = parse(labels, "labels").map_err(wrong_labels)?;
    if let Some(i) = values.iter().position(|&label| usize::from(label) >= CLASSES) {
        let problem = format!("label {} of image {i} at offset {}, expected 0..{CLASSES}", values[i], 8 + i);
        return Err(wrong_labels(problem));
    }
    let ([found, h, w], pixels) = parse(images, "images").map_err(wrong_images)?;
    if found != count {
        return Err(wrong_images(differ(found, count)));
    }
    if found * h * w == 0 {
        return Err(wrong_images(format!("{found} images of {h} x {w} pixels, expected at least one of each")));
    }
    let labels = values.iter().map(|&label| i32::from(label)).collect();
    Dataset::new(Images::U8(pixels.to_vec()), labels, CLASSES, [1, h, w], normalize())
}

/// The extents and the data of an IDX file of `RANK` dimensions.
fn parse<'a, const RANK: usize>(content: &'a [u8], what: &str) -> Result<([usize; RANK], &'a [u8]), String> {
    let header = 4 + 4 * RANK;
    if content.len() < header {
        let problem = format!("{} bytes, expected at least the {header} of the header of IDX {what}", content.len());
        return Err(bytes::explain(problem, content));
    }
    let word = |i: usize| u32::from_be_bytes([content[i], content[i + 1], content[i + 2], content[i + 3]]);
    let magic = 0x800 + RANK as u32;
    if word(0) != magic {
        let problem = format!("begins with {:#010x}, expected {magic:#010x} (IDX {what})", word(0));
        return Err(bytes::explain(problem, content));
    }
    let dims: [usize; RANK] = std::array::from_fn(|i| word(4 + 4 * i) as usize);
    let expected = dims.iter().try_fold(1usize, |a, &b| a.checked_mul(b)).and_then(|n| n.checked_add(header));
    if expected != Some(content.len()) {
        let expected = expected.map_or("more than memory holds".into(), |n| n.to_string());
        return Err(format!("{} bytes, expected {expected} (a header of {header}, then {dims:?})", content.len()));
    }
    Ok((dims, &content[header..]))
}
