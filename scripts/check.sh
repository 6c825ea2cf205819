#!/bin/sh
# The whole check, as CI runs it: format, lints, crate edges, tests, hand-over, the GPU backend without a card. Stops
# at the first failure.
set -eu
cd "$(dirname "$0")/.."
cargo fmt --all -- --check
features="--features drafthorse-runtime/gpu-emulator"
# shellcheck disable=SC2086 # two words
cargo clippy --release --workspace --all-targets $features -- -D warnings
sh scripts/crate-edges.sh
# shellcheck disable=SC2086
cargo test --release --workspace $features
sh scripts/handover-check.sh
sh scripts/cuda-check.sh
sh scripts/gpu-check-test.sh
