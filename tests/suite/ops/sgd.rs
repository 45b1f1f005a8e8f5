//! Tests of sgd.
