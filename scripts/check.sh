#!/bin/sh
# The whole check, as CI runs it: format, lints, crate edges, tests, hand-over, the GPU backend without a card. Stops
# at the first failure.
set -eu
cd "$(dirname "$0")/.."
cargo fmt --all -- --check
cargo clippy --release --workspace --all-targets -- -D warnings
sh scripts/crate-edges.sh
cargo test --release --workspace
sh scripts/handover-check.sh
sh scripts/cuda-check.sh
sh scripts/gpu-check-test.sh
