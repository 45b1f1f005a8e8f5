//! Tests of linear.
