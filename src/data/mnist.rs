//! MNIST and sets of the same form (Fashion-MNIST, KMNIST): IDX files, big-endian.
//!
//! ```text
//! images: 0x00000803, count, rows, columns (u32 each), then count * rows * columns bytes
//! labels: 0x00000801, count (u32 each), then count bytes
//! ```
//!
//! From <https://ossci-datasets.s3.amazonaws.com/mnist/> (Y. LeCun, C. Cortes, C. Burges), unpacked with gunzip.

use std::path::Path;

use super::bytes;
use super::dataset::{Dataset, Images, Normalize, Splits};
use crate::{Error, Result};

const CLASSES: usize = 10;
const ORIGIN: &str = "from https://ossci-datasets.s3.amazonaws.com/mnist, unpacked with gunzip";

/// The mean and the deviation of MNIST's training pixels, of 255.
pub fn normalize() -> Normalize {
    Normalize { white: 255.0, mean: vec![0.1307], deviation: vec![0.3081] }
}

/// The training and the test images in `folder`, or in its sub-folders `MNIST/raw` and `raw`.
pub fn read(folder: &Path) -> Result<Splits> {
    let split = |name: &str| {
        let find = |kind: &str, rank: usize| {
            let names = [format!("{name}-{kind}-idx{rank}-ubyte"), format!("{name}-{kind}.idx{rank}-ubyte")];
            bytes::find(folder, &["MNIST/raw", "raw"], &[&names[0], &names[1]], ORIGIN)
        };
        read_files(&find("images", 3)?, &find("labels", 1)?)
    };
    let splits = Splits { train: split("train")?, test: split("t10k")? };
    if splits.train.shape() != splits.test.shape() {
        let problem =
            format!("test images of {:?}, training images of {:?}", splits.test.shape(), splits.train.shape());
        return Err(Error::file(folder, problem));
    }
    Ok(splits)
}

/// The images of one IDX file with the labels of another.
pub fn read_files(images: &Path, labels: &Path) -> Result<Dataset> {
    let content = bytes::read(labels)?;
    let ([count], values) = parse(labels, &content, "labels")?;
    if let Some(i) = values.iter().position(|&label| usize::from(label) >= CLASSES) {
        let problem = format!("label {} of image {i} at offset {}, expected 0..{CLASSES}", values[i], 8 + i);
        return Err(Error::file(labels, problem));
    }
    let content = bytes::read(images)?;
    let ([found, h, w], pixels) = parse(images, &content, "images")?;
    if found != count {
        let problem = format!("{found} images, expected {count}, as many as {} holds labels", labels.display());
        return Err(Error::file(images, problem));
    }
    if h * w == 0 {
        return Err(Error::file(images, format!("images of {h} x {w} pixels, expected at least one")));
    }
    let labels = values.iter().map(|&label| i32::from(label)).collect();
    Dataset::new(Images::U8(pixels.to_vec()), labels, CLASSES, [1, h, w], normalize())
}

/// The extents and the bytes of an IDX file of `RANK` dimensions.
fn parse<'a, const RANK: usize>(path: &Path, content: &'a [u8], what: &str) -> Result<([usize; RANK], &'a [u8])> {
    let header = 4 + 4 * RANK;
    if content.len() < header {
        let problem = format!("{} bytes, expected at least the {header} of the header of IDX {what}", content.len());
        return Err(Error::file(path, problem));
    }
    let word = |i: usize| u32::from_be_bytes([content[i], content[i + 1], content[i + 2], content[i + 3]]);
    let magic = 0x800 + RANK as u32;
    if word(0) != magic {
        let problem = format!("begins with {:#010x}, expected {magic:#010x} (IDX {what})", word(0));
        return Err(Error::file(path, problem));
    }
    let dims: [usize; RANK] = std::array::from_fn(|i| word(4 + 4 * i) as usize);
    let expected = dims.iter().try_fold(1usize, |a, &b| a.checked_mul(b)).and_then(|n| n.checked_add(header));
    if expected != Some(content.len()) {
        let expected = expected.map_or("more than memory holds".into(), |n| n.to_string());
        let problem = format!("{} bytes, expected {expected} (a header of {header}, then {dims:?})", content.len());
        return Err(Error::file(path, problem));
    }
    Ok((dims, &content[header..]))
}
