#!/bin/sh
# gpu-check.sh [-m LAYERS] [-l SECONDS] [-q] [-d DEVICE] [--sanitize] OUTDIR [DRAFTHORSE DRAFTHORSE_EVAL GPU_TESTS] : what a machine with an
# NVIDIA card can say about the GPU backend, in one command. Needs the card's driver, Python 3 and the programs
# of `KIT=DIR sh scripts/cuda-build.sh` (default: beside this script), no network and no cargo.
#
# 1. The kernels' tests, on the card: the processor's bits are the reference.
# 2. Whole models, GPU against CPU: logits bit by bit, ids at every draft length, at several sizes of --vram, and with
#    experts that are read in the host's memory (gpu.unified).
# 3. Speed: the demo pair, and a synthetic mixture of LAYERS layers (default 48: 7.5 GB) at --vram 4, 8 and 12 GiB and all
#    of it, without and with a draft whose acceptance is set to 0.8; the link against its measured peak.
#
# Writes gpu-check.json, gpu-check.md and gpu-check.log into OUTDIR. Ends within SECONDS (default 460): what does not fit is
# named as not run. Exit code: 0 all that was run is right, 1 something is wrong (goals of speed that were missed are
# stated, not counted), 2 usage. -q compares two models alone and in fewer settings. -d emulated
# tries the check itself where there is no card (programs built with the feature gpu-emulator). --sanitize runs the kernels' tests under compute-sanitizer instead, and no more.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
layers=48 limit=460 sanitize= quick= device=cuda
while [ $# -gt 0 ]; do
    case "$1" in
    -m) layers=${2:?}; shift 2 ;;
    -l) limit=${2:?}; shift 2 ;;
    -d) device=${2:?}; shift 2 ;;
    -q) quick=--quick; shift ;;
    --sanitize) sanitize=1; shift ;;
    -*) usage ;;
    *) break ;;
    esac
done
[ $# -eq 1 ] || [ $# -eq 4 ] || usage
out=$1
drafthorse=${2:-$here/drafthorse} eval=${3:-$here/drafthorse-eval} tests=${4:-$here/gpu-tests}
for program in "$drafthorse" "$eval" "$tests"; do
    [ -x "$program" ] || { echo "$program: no such program; KIT=DIR sh scripts/cuda-build.sh makes it" >&2; exit 2; }
done
mkdir -p "$out"
if [ -n "$sanitize" ]; then
    exec compute-sanitizer --error-exitcode 9 --print-limit 20 "$tests" gpu:: --test-threads 1 >"$out/sanitizer.log" 2>&1
fi
demo=$here
[ -f "$demo/target.gguf" ] || demo=$here/../runtime/demo
exec python3 "$here/gpu_check.py" --drafthorse "$drafthorse" --eval "$eval" --tests "$tests" --demo "$demo" \
    --layers "$layers" --limit-s "$limit" --device "$device" $quick "$out"
