//! Labelled images in memory.

use crate::{Error, Result};

/// The pixels of all images of a data set, NCHW. See [`Dataset`] for an example.
#[derive(Clone, Debug, PartialEq)]
pub enum Images {
    /// Bytes, as image files hold them.
    U8(Vec<u8>),
    /// Floating-point numbers.
    F32(Vec<f32>),
}

impl Images {
    /// The number of elements: images x channels x height x width.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::F32(v) => v.len(),
        }
    }

    /// True if there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The normalisation of pixels: `(pixel / white - mean[c]) / deviation[c]`. See [`Dataset`] for an example.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalize {
    /// The pixel value of full brightness: 255 for most files, 16 for the digits.
    pub white: f32,
    /// The mean of each channel, in units of `white`.
    pub mean: Vec<f32>,
    /// The standard deviation of each channel, in units of `white`.
    pub deviation: Vec<f32>,
}

impl Normalize {
    /// The value of `pixel` in channel `c`.
    pub fn apply(&self, c: usize, pixel: f32) -> f32 {
        (pixel / self.white - self.mean[c]) / self.deviation[c]
    }
}

/// Labelled images of one size, in memory.
///
/// ```
/// use residuum::data::{Dataset, Images, Normalize};
///
/// let normalize = Normalize { white: 255.0, mean: vec![0.5], deviation: vec![0.25] };
/// // Two grey images of 2x2 pixels (C, H, W), one black and one white.
/// let pixels = Images::U8(vec![0, 0, 0, 0, 255, 255, 255, 255]);
/// let data = Dataset::new(pixels, vec![0, 1], 2, [1, 2, 2], normalize)?;
/// assert_eq!(data.len(), 2);
/// assert_eq!(data.normalize().apply(0, 255.0), 2.0);
/// assert_eq!(data.statistics(), (vec![0.5], vec![0.5]));
/// # Ok::<(), residuum::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    images: Images,
    labels: Vec<i32>,
    classes: usize,
    shape: [usize; 3],
    normalize: Normalize,
}

/// The training and the test images of a data set. See the [module](super) for an example.
#[derive(Clone, Debug, PartialEq)]
pub struct Splits {
    /// The training images.
    pub train: Dataset,
    /// The test images.
    pub test: Dataset,
}

impl Dataset {
    /// `labels.len()` images of `shape` C, H, W; `images` is NCHW. Fails if the number of pixels does not match, a
    /// label is not in `0..classes`, an extent is 0, or `normalize` lacks a mean or a positive deviation of a channel.
    pub fn new(
        images: Images,
        labels: Vec<i32>,
        classes: usize,
        shape: [usize; 3],
        normalize: Normalize,
    ) -> Result<Self> {
        let (pixels, count, c) = (shape.iter().product::<usize>(), labels.len(), shape[0]);
        let matches = pixels > 0 && images.len() == count * pixels;
        let problem = || format!("{} pixels for {count} images of shape {shape:?}", images.len());
        Error::check(matches, "data set", problem)?;
        let problem = || format!("{count} images, expected fewer than 2^32");
        Error::check(u32::try_from(count).is_ok(), "data set", problem)?;
        if let Some(i) = labels.iter().position(|&l| l < 0 || l as usize >= classes) {
            return Err(Error::invalid("data set", format!("label {} of image {i}, expected 0..{classes}", labels[i])));
        }
        let Normalize { white, mean, deviation } = &normalize;
        let usable = deviation.iter().chain([white]).all(|v| v.is_finite() && *v > 0.0);
        let problem =
            || format!("{normalize:?}, expected one mean and one positive deviation for each of {c} channels");
        Error::check(mean.len() == c && deviation.len() == c && usable, "data set", problem)?;
        Ok(Self { images, labels, classes, shape, normalize })
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The pixels, NCHW.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The labels, each in `0..classes`.
    pub fn labels(&self) -> &[i32] {
        &self.labels
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The shape of an image: C, H, W.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The normalisation of pixels.
    pub fn normalize(&self) -> &Normalize {
        &self.normalize
    }

    /// The mean and the standard deviation of each channel over all images, in units of `white`.
    pub fn statistics(&self) -> (Vec<f64>, Vec<f64>) {
        let [c, h, w] = self.shape;
        let white = f64::from(self.normalize.white);
        let mut sums = vec![(0.0, 0.0); c];
        for i in 0..self.images.len() {
            let v = self.pixel(i) / white;
            let (sum, square) = &mut sums[i / (h * w) % c];
            *sum += v;
            *square += v * v;
        }
        let count = (self.len() * h * w) as f64;
        sums.into_iter().map(|(s, q)| (s / count, (q / count - (s / count).powi(2)).sqrt())).unzip()
    }

    fn pixel(&self, i: usize) -> f64 {
        match &self.images {
            Images::U8(v) => f64::from(v[i]),
            Images::F32(v) => f64::from(v[i]),
        }
    }
}
