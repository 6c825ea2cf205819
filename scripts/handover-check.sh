#!/bin/sh
# Runs the hand-over to the draft thread in the orders that its two threads can take, by shuttle
# (draft/src/handover_tests.rs). Built in a folder of its own: the flag makes everything be built anew, and
# without it shuttle would change features of what the other crates are built with.
set -eu
cd "$(dirname "$0")/.."
RUSTFLAGS="--cfg shuttle" cargo test --release -p drafthorse-draft --lib --target-dir target/handover handover::
