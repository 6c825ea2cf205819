#!/bin/sh
# Builds decode_ids and logits_ids against a llama.cpp that is already built (libllama, libggml as shared
# libraries).
#   sh scripts/peer/build.sh LLAMA_SOURCE LLAMA_BUILD FOLDER
# e.g. LLAMA_SOURCE=.../vendor/llama.cpp, LLAMA_BUILD=.../build. FOLDER gets the programs; keep it outside the
# repository. Known to work with llama.cpp 0c1e57098 (llama-cpp-python 0.3.36, ggml 0.25.3).
set -eu
[ $# -eq 3 ] || { echo "usage: sh scripts/peer/build.sh LLAMA_SOURCE LLAMA_BUILD FOLDER" >&2; exit 2; }
source=$1 libraries=$(cd "$2/bin" && pwd) folder=$3
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
for program in decode_ids logits_ids; do
    c++ -std=c++17 -O2 -Wall -Wextra -I"$source/include" -I"$source/ggml/include" "$here/$program.cpp" \
        -o "$folder/$program" -L"$libraries" -Wl,-rpath,"$libraries" -lllama -lggml -lggml-base
done
