#!/bin/sh
# The GPU backend's code without NVIDIA's compiler, driver or card: lints with the feature `cuda` on, then the driver's
# tests against scripts/fixtures/fake_cuda.c in place of libcuda.so.1, whole and in every way it can be unusable.
# A compiler that makes an empty (valid) file of kernels stands in for nvcc; a build with a real one later compiles
# the kernels anew, because NVCC is then another. Runs no kernel: scripts/gpu-check.sh does, on a card.
# With the target folder of scripts/check.sh: about a minute and a half on two cores.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Where it lies is the same every time, so that a second check compiles nothing.
NVCC=$(pwd)/scripts/fixtures/fake-nvcc.sh
export NVCC
features="--release --workspace --features drafthorse-runtime/cuda"
# shellcheck disable=SC2086 # several words
cargo clippy $features -- -D warnings

cc -Wall -Wextra -Werror -O1 -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$work/libcuda.so.1" scripts/fixtures/fake_cuda.c
ln -s libcuda.so.1 "$work/libcuda.so" # the name that is looked for first
mkdir "$work/other"
echo 'int cuInit(unsigned f) { return (int)f; }' |
    cc -x c -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$work/other/libcuda.so" -
# The host side is tested here, not the processor's kernels: optimizing the runtime once more would take minutes.
plain="--config profile.release.package.drafthorse-runtime.opt-level=0"
# shellcheck disable=SC2086
tests=$(cargo test $features $plain --lib --no-run --message-format=json-render-diagnostics |
    sed -n '/"name":"drafthorse_runtime"/s/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$tests" ] || { echo "cargo named no test program of the runtime" >&2; exit 1; }

echo "the driver's tests, with a library that acts as a card's"
for mode in '' integrated; do
    unified=false
    [ "$mode" = integrated ] && unified=true
    LD_LIBRARY_PATH=$work FAKE_CUDA=$mode CUDA_TEST_UNIFIED=$unified "$tests" -q gpu::cuda:: --include-ignored --show-output \
        --test-threads 1 >"$work/out" || { cat "$work/out"; exit 1; }
    if grep skipped "$work/out"; then
        echo "the library was not used" >&2
        exit 1
    fi
done
unusable() { # folder, FAKE_CUDA, what the reason has to say
    LD_LIBRARY_PATH=$1 FAKE_CUDA=$2 CUDA_TEST_REASON=$3 "$tests" -q opening_gives_a_card_or >"$work/out" 2>&1 ||
        { cat "$work/out"; exit 1; }
}
unusable "$work" no_device 'finds no card (CUDA_ERROR_NO_DEVICE)'
unusable "$work" stub 'does not start (CUDA_ERROR_STUB_LIBRARY)'
unusable "$work" broken 'does not start (CUDA error 12345)'
unusable "$work" old_driver 'is of CUDA 11.4, and the kernels in this program need one of CUDA 13.0'
unusable "$work" old_card 'Fake card 0 is of compute capability 6.1'
unusable "$work" other_card 'the kernels in this program are for compute capabilities'
unusable "$work/other" '' 'libcuda has no cuCtxGetStreamPriorityRange'
ldconfig -p 2>/dev/null | grep -q 'libcuda\.so' || unusable "$work/none" '' 'libcuda.so.1 is not found'
echo "the GPU backend's host side is as it should be; no kernel was run"
