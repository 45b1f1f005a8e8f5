//! Image data sets in memory: readers, normalisation, augmentation and batches.
//!
//! Nothing is downloaded. Images are NCHW everywhere here. Order and augmentation depend on (seed, epoch, image) alone.
//!
//! ```
//! use residuum::data::{digits, Augment, Loader};
//!
//! let splits = digits::read()?;
//! assert_eq!((splits.train.len(), splits.test.len()), (1437, 360));
//!
//! let loader = Loader::train(&splits.train, 64, Augment { pad: 1, flip: false }, 0)?;
//! let order = loader.order(0);
//! let batch = loader.batch(&order, 0, 0);
//! assert_eq!(batch.input.shape.dims(), [64, 1, 8, 8]);
//! assert_eq!((loader.steps(), batch.labels.len()), (22, 64));
//!
//! let test = Loader::test(&splits.test, 100)?;
//! let valid: usize = test.in_order().map(|batch| batch.valid).sum();
//! assert_eq!(valid, 360);
//! # Ok::<(), residuum::Error>(())
//! ```

mod augment;
mod bytes;
pub mod cifar;
mod dataset;
pub mod digits;
mod loader;
pub mod mnist;
mod source;
mod stream;

pub use augment::{Augment, Draw};
pub use dataset::{Dataset, Images, Normalize, Splits};
pub use loader::{Batch, Loader};
pub use source::Source;
