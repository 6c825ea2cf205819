#!/bin/sh
# cuda-build.sh [ARCHS] : builds the release with the GPU backend for NVIDIA cards, from nothing: needs Rust, a C++
# compiler and Python 3, no CUDA toolkit, no driver, no card. NVIDIA's compiler comes as wheels from PyPI (pinned;
# 300 MB on disk) into CUDA_CACHE (default ~/.cache/drafthorse/cuda), once. ARCHS are the compute
# capabilities to make machine code for, as in "75 86" (default: those of runtime/build/cuda.rs); cards newer than
# the last run its PTX. With NVCC set, that compiler is used and nothing is fetched.
#
# KIT=DIR also puts into DIR what scripts/gpu-check.sh needs on a machine with a card and nothing else: the two
# programs, the GPU's tests and the scripts.
#
# Fails if the program is over 60 MiB stripped, or needs a library of CUDA's to start.
set -eu
cd "$(dirname "$0")/.."
limit_mib=60
[ $# -eq 0 ] || { DRAFTHORSE_CUDA_ARCHS=$*; export DRAFTHORSE_CUDA_ARCHS; }

fetch_nvcc() {
    cache=${CUDA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/drafthorse/cuda}
    mkdir -p "$cache"
    nvcc=$(echo "$cache"/cu/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
    if [ ! -e "$cache/complete" ] || [ ! -x "$nvcc" ]; then
        echo "fetching NVIDIA's compiler into $cache" >&2
        rm -f "$cache/complete"
        python3 -m venv "$cache/cu"
        "$cache/cu/bin/pip" install --quiet --disable-pip-version-check nvidia-cuda-nvcc==13.0.88 \
            nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
        nvcc=$(echo "$cache"/cu/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
        [ -x "$nvcc" ] || { echo "the wheels brought no nvcc at $nvcc" >&2; exit 1; }
        touch "$cache/complete"
    fi
    echo "$nvcc"
}

[ -n "${NVCC:-}" ] || NVCC=$(fetch_nvcc)
export NVCC
features="--release --workspace --features drafthorse-runtime/cuda"
# shellcheck disable=SC2086 # several words
cargo build $features

target=${CARGO_TARGET_DIR:-target}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
strip -o "$work/drafthorse" "$target/release/drafthorse"
bytes=$(wc -c <"$work/drafthorse")
fatbin=$(ls -t "$target"/release/build/drafthorse-runtime-*/out/kernels.fatbin | head -n 1)
echo "drafthorse: $((bytes / 1024)) KiB stripped, of which $(($(wc -c <"$fatbin") / 1024)) KiB are kernels"
[ "$bytes" -le $((limit_mib * 1024 * 1024)) ] || { echo "over $limit_mib MiB" >&2; exit 1; }

echo "libraries it needs to start:"
ldd "$target/release/drafthorse" | sed 's/ (0x.*//'
if ldd "$target/release/drafthorse" | grep -iE 'libcu|libnv'; then
    echo "it needs a library of CUDA's to start" >&2
    exit 1
fi
echo "and, to use a card, the driver's libcuda.so.1, which it opens itself"
"$target/release/drafthorse" --version

[ -n "${KIT:-}" ] || exit 0
mkdir -p "$KIT"
# The tests' build has the emulated card too: the kernels' tests fall back to it, and say which card they ran on.
# shellcheck disable=SC2086
tests=$(cargo test $features,drafthorse-runtime/gpu-emulator --lib --no-run --message-format=json-render-diagnostics |
    sed -n '/"name":"drafthorse_runtime"/s/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$tests" ] || { echo "cargo named no test program of the runtime" >&2; exit 1; }
strip -o "$KIT/gpu-tests" "$tests"
strip -o "$KIT/drafthorse-eval" "$target/release/drafthorse-eval"
cp "$work/drafthorse" scripts/gpu-check.sh scripts/gpu_check.py scripts/gpu_report.py runtime/demo/target.gguf \
    runtime/demo/draft.gguf "$KIT/"
echo "kit in $KIT ($(du -sm "$KIT" | cut -f 1) MiB); there: sh gpu-check.sh OUTDIR"
