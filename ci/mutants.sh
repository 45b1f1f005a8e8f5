#!/bin/sh
# Applies every mutant of tests/mutants/*.txt, or those of kernels whose path contains $1, and fails if one survives.
# Needs a C++ compiler. A mutant costs a compile of the kernels that it touches and a run of its test.
set -eu
cd "$(dirname "$0")/.."
RESIDUUM_MUTANTS="${1:-all}" cargo test --release --features sim --test mutants
