#!/bin/sh
# Builds decode_ids against a llama.cpp that is already built (libllama, libggml as shared libraries).
#   sh scripts/peer/build.sh LLAMA_SOURCE LLAMA_BUILD OUT
# e.g. LLAMA_SOURCE=.../vendor/llama.cpp, LLAMA_BUILD=.../build. OUT is the program; keep it outside the
# repository. Known to work with llama.cpp 0c1e57098 (llama-cpp-python 0.3.36, ggml 0.25.3).
set -eu
[ $# -eq 3 ] || { echo "usage: sh scripts/peer/build.sh LLAMA_SOURCE LLAMA_BUILD OUT" >&2; exit 2; }
source=$1 libraries=$(cd "$2/bin" && pwd) out=$3
here=$(cd "$(dirname "$0")" && pwd)
c++ -std=c++17 -O2 -Wall -Wextra -I"$source/include" -I"$source/ggml/include" "$here/decode_ids.cpp" -o "$out" \
    -L"$libraries" -Wl,-rpath,"$libraries" -lllama -lggml -lggml-base
