#!/bin/sh
# Tests scripts/gpu-check.sh without a card, on programs that print what a GPU build would (fixtures/fake_gpu_kit.py): what
# is right passes, and each thing that is wrong fails and is named.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'wait; rm -rf "$work"' EXIT
# They are started hundreds of times: by the interpreter itself, not by what may stand for it in the path.
python=$(python3 -c 'import sys; print(sys.executable)')
for name in drafthorse drafthorse-eval gpu-tests; do
    { echo "#!$python -S" && sed 1d fixtures/fake_gpu_kit.py; } >"$work/$name"
    chmod +x "$work/$name"
done
holds() { # FAKE_KIT, exit code, a line of the table, options
    code=0 out=$work/out-$1
    # shellcheck disable=SC2086
    FAKE_KIT=$1 sh gpu-check.sh -q ${4:-} "$out" "$work/drafthorse" "$work/drafthorse-eval" "$work/gpu-tests" \
        >"$out.table" 2>"$out.errors" || code=$?
    if [ "$code" -ne "$2" ] || ! grep -qF -e "$3" "$out.table" || ! python3 -m json.tool "$out/gpu-check.json" >/dev/null; then
        echo "gpu-check with FAKE_KIT='$1' ended with $code, not $2, or has no line '$3':" >&2
        cat "$out.table" "$out.errors" >&2
        exit 1
    fi
}
# It waits for its time to be over, beside the others.
holds hang 0 '**Out of time** during: speed of mid' '-l 20' &
hang=$!
holds '' 0 '| mid, draft auto | 4 GiB | 80.0 | 900.0 | 2.50 | 64 | 66.7 | 2.50 GB | 25.0 GB/s | 0.050 | 3 |'
grep -qF '| copies while missing >= 85% of the link | yes | 96%; such copies alone reach 90% |' "$work/out-.table"
grep -qF 'Copies of 1.7 MiB, 4 at a time: 25.0 GB/s.' "$work/out-.table"
grep -qF '| work (mid, eight rows a pass, profiled) |' "$work/out-.table"
holds logits 1 "- demo at all: logits : {'differing': 24, 'of': 96,"
holds ids 1 "runtime/demo/draft.gguf 8 : other ids than the CPU's"
holds tests 1 'failed: gpu::kernel_tests::a_kernel'
holds skipped 1 'skipped: no GPU can be used'
holds emulated 1 'on Emulated card'
holds cpu 1 'no gpu object'
holds copied 1 'experts were not read in place'
wait "$hang"
echo "gpu-check tells right from wrong (on programs that only print)"
