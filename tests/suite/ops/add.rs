//! Tests of add.
