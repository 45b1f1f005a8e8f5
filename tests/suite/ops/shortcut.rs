//! Tests of shortcut.
