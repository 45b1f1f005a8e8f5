//! Tests of cross_entropy.
