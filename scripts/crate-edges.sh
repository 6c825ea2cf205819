#!/bin/sh
# Fails when a crate of ours depends on another that DESIGN.md does not allow it to know.
set -eu
cd "$(dirname "$0")/.."
edges() { cargo tree -p "$1" --depth 1 --edges normal,build,dev --prefix none | sed -n '2,$s/^drafthorse-\([a-z]*\) .*/\1/p' | sort -u | tr '\n' ' '; }
allow() {
    for edge in $(edges "drafthorse-$1"); do
        case " $2 " in *" $edge "*) ;; *) echo "crate edge $1 -> $edge is not allowed" >&2; exit 1 ;; esac
    done
}
allow draft ""
allow offload ""
allow scheduler "draft offload"
allow runtime "draft offload scheduler"
allow eval "draft offload scheduler runtime"
for crate in draft offload scheduler; do
    # Policy crates know no tensors, and read no environment.
    if grep -rnE 'candle|gguf|std::env::var' "$crate/src" "$crate/Cargo.toml" | grep -vE '//[!/]? ' ; then
        echo "$crate names what it must not know" >&2
        exit 1
    fi
done
echo "crate edges are as designed"
