#!/usr/bin/env bash
# usage: scripts/dist.sh [LEVEL...]
# Builds the portable archive into dist/: bidpo for several CPU levels behind a small launcher, stripped, with the C++ library inside,
# for glibc 2.28 and later; a second archive has the debug lines. Same commit, same folder, same tools: same bytes (docs/install.md).
# The levels are those of crates/bidpo-launch/levels.txt; scripts/dist/build.sh says how each is compiled.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
levels=("$@")
if [ ${#levels[@]} = 0 ]; then levels=(plain avx2 avx512-bf16); fi

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
    echo "dist: the working tree differs from its commit: the archive is for trials" >&2
fi
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
name=bidpo-$version-x86_64-linux

cargo_home=${CARGO_HOME:-$HOME/.cargo}
export LC_ALL=C TZ=UTC

# What a program needs of the system: nothing but the C library, at most of version 2.28, and libgcc_s.
check_needs() {
    local newest others
    newest=$(objdump -T "$1" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
    if [ "$(printf '%s\n' GLIBC_2.28 "$newest" | sort -V | tail -1)" != GLIBC_2.28 ]; then
        echo "dist: $1 needs $newest" >&2
        exit 1
    fi
    others=$(objdump -p "$1" | awk '$1 == "NEEDED" { print $2 }' |
        grep -Ev '^(libc\.so\.6|libm\.so\.6|libpthread\.so\.0|libdl\.so\.2|librt\.so\.1|libutil\.so\.1|libgcc_s\.so\.1|ld-linux-x86-64\.so\.2)$' || true)
    if [ -n "$others" ]; then
        echo "dist: $1 needs $others" >&2
        exit 1
    fi
    if grep -aqF -e "$root" -e "$cargo_home" "$1"; then
        echo "dist: $1 holds a path of this machine: $(grep -aoE "($root|$cargo_home)[[:print:]]{0,80}" "$1" | head -3)" >&2
        exit 1
    fi
}

# A program without debug lines, and the lines in a file that debuggers find by the program's build id and link.
place() {
    local from=$1 to=$2 debug=$3
    objcopy --only-keep-debug --compress-debug-sections "$from" "$debug"
    objcopy --strip-all "$from" "$to"
    (cd "$(dirname "$debug")" && objcopy --add-gnu-debuglink="$(basename "$debug")" "$to")
    check_needs "$to"
    chmod 755 "$to"
    chmod 644 "$debug"
}

pack() {
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --format=gnu -C "$stage" -c "$1" |
        gzip -n -9 > "dist/$1.tar.gz"
    echo "dist: dist/$1.tar.gz, $(stat -c %s "dist/$1.tar.gz") bytes" >&2
}

umask 022
stage=$root/target/dist/stage
rm -rf "$stage" dist/bidpo-* dist/SHA256SUMS
tree=$stage/$name
symbols=$stage/$name-debug
mkdir -p dist "$tree/bin" "$tree/libexec/bidpo" "$symbols"
for level in "${levels[@]}"; do
    echo "dist: bidpo for CPU level $level" >&2
    program=$(scripts/dist/build.sh "$level")
    place "$program" "$tree/libexec/bidpo/bidpo-$level" "$symbols/bidpo-$level.debug"
done
program=$(scripts/dist/build.sh launcher)
place "$program" "$tree/bin/bidpo" "$symbols/bidpo.debug"

# Manual pages and completions, from the lowest build, which runs anywhere.
lowest=$tree/libexec/bidpo/bidpo-${levels[0]}
"$lowest" man -o "$tree/share/man/man1" 2>/dev/null
completions() {
    mkdir -p "$tree/share/$2"
    "$lowest" completions "$1" > "$tree/share/$2/$3"
}
completions bash bash-completion/completions bidpo
completions zsh zsh/site-functions _bidpo
completions fish fish/vendor_completions.d bidpo.fish
mkdir -p "$tree/share/doc/bidpo"
cp LICENSE-APACHE LICENSE-MIT README.md CHANGELOG.md "$tree/share/doc/bidpo/"
scripts/dist/parts.py licences > "$tree/share/doc/bidpo/THIRD-PARTY.md"
cp scripts/install.sh "$tree/"
chmod -R u=rwX,go=rX "$tree" "$symbols"
pack "$name"
pack "$name-debug"
scripts/dist/parts.py sbom > "dist/$name.cdx.json"
wheel=$(scripts/dist/wheel.py "$tree" dist)
(cd dist && sha256sum "$name.tar.gz" "$name-debug.tar.gz" "$name.cdx.json" "$(basename "$wheel")" > SHA256SUMS)
