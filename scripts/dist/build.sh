#!/usr/bin/env bash
# usage: build.sh LEVEL|launcher
# Compiles bidpo for a CPU level of crates/bidpo-launch/levels.txt, or the launcher, in target/dist/LEVEL, and prints the path of the
# program. With ccache installed, llama.cpp's files that do not depend on the level are compiled once.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
what=$1
target=x86_64-unknown-linux-gnu
table=crates/bidpo-launch/levels.txt

BIDPO_COMMIT=$(git rev-parse HEAD)
if [ -n "$(git status --porcelain --untracked-files=no)" ]; then BIDPO_COMMIT=$BIDPO_COMMIT-changed; fi
# ggml asks neither the clock nor the CPU where this is set.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
BIDPO_SYSROOT=$root/target/dist/sysroot
export BIDPO_COMMIT SOURCE_DATE_EPOCH BIDPO_SYSROOT
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=$root/scripts/dist/portable-cc.sh
scripts/dist/sysroot.sh "$BIDPO_SYSROOT" >&2

# Paths of this machine, in messages and debug lines.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="--remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$root=/bidpo"
export CFLAGS="-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$root=/bidpo"
export CXXFLAGS=$CFLAGS
export LC_ALL=C TZ=UTC

build=(cargo build --release --locked --target "$target" --target-dir "target/dist/$what")
if [ "$what" = launcher ]; then
    "${build[@]}" -p bidpo-launch
    echo "target/dist/$what/$target/release/bidpo-launch"
    exit
fi

# The features of the level and those below it, for this workspace's crates, and as options for ggml.
features=$(awk -v level="$what" '/^#/ { next } { for (i = 2; i <= NF; i++) print $i } $1 == level { found = 1; exit } END { exit !found }' \
    "$table") || { echo "build.sh: $table has no level $what" >&2; exit 1; }
BIDPO_FEATURES=$(echo "$features" | sed 's/^/+/' | paste -sd ,)
export BIDPO_FEATURES BIDPO_BUILD_LEVEL=$what RUSTC_WORKSPACE_WRAPPER=$root/scripts/dist/rustc-level.sh
option() {
    local is=OFF
    if grep -qxF "$1" <<<"$features"; then is=ON; fi
    export "$2=$is"
}
option sse4.2 GGML_SSE42
option avx GGML_AVX
option avx2 GGML_AVX2
option bmi2 GGML_BMI2
option f16c GGML_F16C
option fma GGML_FMA
option avx512f GGML_AVX512
option avx512vbmi GGML_AVX512_VBMI
option avx512vnni GGML_AVX512_VNNI
option avx512bf16 GGML_AVX512_BF16

# Another level's build has all that does not depend on the level: everything but llama.cpp and what is compiled after it.
if [ ! -e "target/dist/$what" ]; then
    for other in target/dist/*/; do
        if [ ! -e "$other$target/release/bidpo" ] || [ "$other" = target/dist/launcher/ ]; then continue; fi
        cp -a "$other" "target/dist/$what.copy"
        rm -rf "target/dist/$what.copy/$target"/release/{build,.fingerprint}/{llama-cpp-sys-2,ggml-grad,bidpo}* \
            "target/dist/$what.copy/$target/release"/bidpo*
        mv "target/dist/$what.copy" "target/dist/$what"
        break
    done
fi
"${build[@]}" --features static-stdcxx --bin bidpo
echo "target/dist/$what/$target/release/bidpo"
