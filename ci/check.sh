#!/usr/bin/env bash
# Every check that needs no GPU. Needs nvcc (see .ci/run); one build folder serves all steps, and the tests come last.
# `ci/check.sh --long` also runs the long lists of cases.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  "") ;;
  --long) export RESIDUUM_LONG=1 ;;
  *) echo "usage: ci/check.sh [--long]" >&2; exit 2 ;;
esac

step() {
  echo "== $* ($((SECONDS / 60)) min)"
}

export CARGO_TERM_COLOR=never
# A kernel that does not compile for every target fails the build; one that spills or a missing nvcc fails the tests.
export RESIDUUM_REQUIRE_NVCC=1

step formatting
cargo fmt --all --check

# The release profile everywhere: the kernels are then compiled once for all steps.
step lints
cargo clippy --locked --release --workspace --all-targets --all-features -- -D warnings

step lints without features
cargo clippy --locked --release -p residuum --no-default-features --all-targets -- -D warnings

step the device without nvcc
RESIDUUM_NVCC=none RESIDUUM_REQUIRE_NVCC=0 cargo test --locked --release -p residuum --lib device::

step documents
RUSTDOCFLAGS="-D warnings" cargo doc --locked --release --workspace --all-features --no-deps

# The command of the README, which also builds the examples.
step tests
exec cargo test --locked --release
