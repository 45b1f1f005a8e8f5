//! Image sets in memory: readers that never download, normalisation, and augmentation that depends on the seed, the
//! epoch and the image only.

pub mod augment;
mod bytes;
pub mod cifar;
pub mod dataset;
pub mod digits;
mod loader;
pub mod mnist;
mod source;
mod stream;

pub use augment::Augment;
pub use dataset::{Dataset, Images, Normalize, Splits};
pub use loader::{Batch, Loader};
pub use source::Source;
