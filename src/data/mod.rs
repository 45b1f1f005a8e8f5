//! Readers of data sets, shuffling and augmentation.
