//! The `residuum` program.

fn main() {}
