//! Handwritten digits that are part of the library: 1,797 grey images of 8x8 pixels with values 0..=16.
//!
//! The test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine Learning
//! Repository, 1998, CC BY 4.0), as scikit-learn ships it. The [parent module](super) has an example.

use super::dataset::{Dataset, Images, Normalize, Splits};
use crate::{Error, Result};

const CSV: &str = include_str!("../../data/digits.csv");
const PIXELS: usize = 64;
const WHITE: u8 = 16;

/// Every fifth image, from the first on, is a test image: 360 of them; 1,437 are for training.
pub const HELD_OUT: usize = 5;

/// Reads the digits, split by [`HELD_OUT`], in the file's order; images are 1x8x8 (C, H, W).
pub fn read() -> Result<Splits> {
    let (mut train, mut test) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for (i, line) in CSV.lines().enumerate() {
        let (pixels, label) = parse(line).ok_or_else(|| {
            Error::invalid("digits.csv", format!("line {}, expected 64 numbers 0..=16 and a label 0..=9", i + 1))
        })?;
        let (images, labels) = if i % HELD_OUT == 0 { &mut test } else { &mut train };
        images.extend_from_slice(&pixels);
        labels.push(label);
    }
    let [train, test] =
        [train, test].map(|(images, labels)| Dataset::new(Images::U8(images), labels, 10, [1, 8, 8], normalize()));
    Ok(Splits { train: train?, test: test? })
}

/// The mean and the standard deviation of the training images, of 16.
pub fn normalize() -> Normalize {
    Normalize { white: f32::from(WHITE), mean: vec![0.305], deviation: vec![0.376] }
}

fn parse(line: &str) -> Option<([u8; PIXELS], i32)> {
    let mut fields = line.split(',').map(|field| field.trim().parse::<u8>().ok());
    let mut pixels = [0; PIXELS];
    for pixel in &mut pixels {
        *pixel = fields.next()?.filter(|&v| v <= WHITE)?;
    }
    let label = fields.next()?.filter(|&v| v <= 9)?;
    fields.next().is_none().then_some((pixels, i32::from(label)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_not_an_image_are_refused() {
        let line = format!("{}3", "16,".repeat(64));
        assert_eq!(parse(&line), Some(([16; 64], 3)));
        for bad in ["", "1,2,3", &line.replace("16,16,", "16,"), &line.replacen("16", "17", 1), &format!("{line},0")] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse(&format!("{}10", "1,".repeat(64))), None);
    }
}
