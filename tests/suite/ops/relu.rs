//! Tests of relu.
