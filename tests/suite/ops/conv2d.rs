//! Tests of conv2d.
