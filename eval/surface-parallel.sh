#!/bin/sh
# The break-even surface on a machine of many cores: one sweep for each share of the experts, side by side, each on two
# cores of its own; then one report of all. Sweeps share memory's bandwidth, so compare within a share, not across.
#
#     eval/surface-parallel.sh target/release/drafthorse-eval OUTDIR MODEL 3%,5%,10%,20%,40%,100% [--set tokens=192 ...]
#
# What stopped on the way goes on with --resume.
set -eu
usage="usage: $0 DRAFTHORSE-EVAL OUTDIR MODEL SHARE,SHARE,... [arguments of drafthorse-eval speedup]"
[ $# -ge 4 ] || { echo "$usage" >&2; exit 2; }
eval_program=$1 out=$2 model=$3 shares=$(echo "$4" | tr , ' ')
shift 4
here=$(dirname "$0")
mkdir -p "$out"
core=0 pids=
for share in $shares; do
    folder=$out/$share
    taskset -c "$core,$((core + 1))" "$eval_program" speedup "$here/sweeps/surface.toml" -o "$folder" \
        --set "model=$model" --set "cache=[\"$share\"]" "$@" >"$out/$share.md" 2>"$out/$share.log" &
    pids="$pids $!" core=$((core + 2))
done
failed=0
for pid in $pids; do wait "$pid" || failed=1; done
[ $failed = 0 ] || { tail -n 2 "$out"/*.log >&2; exit 1; }
set --
for share in $shares; do set -- "$@" "$out/$share"; done
"$eval_program" report "$@" -o "$out/all"
