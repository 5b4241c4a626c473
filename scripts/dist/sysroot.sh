#!/usr/bin/env bash
# usage: sysroot.sh FOLDER
# Fills FOLDER with what a program is linked with so that it starts on glibc 2.28 (2018) and every later one: start files, libraries
# that hold names and versions only, and the few symbols of compat.c. zig makes them from its tables of glibc's versions and from
# glibc's own sources; no code of zig's gets into the program, and the compiler stays the system's.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
glibc=2.28
if cmp -s "$here/compat.c" "$out/complete"; then exit 0; fi
work=$out.work
rm -rf "$out" "$work"
mkdir -p "$out" "$work"
python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
    --target "$work/python" -r "$here/zig.txt"
export ZIG_GLOBAL_CACHE_DIR=$work/cache ZIG_LOCAL_CACHE_DIR=$work/cache
echo 'int main(void) { return 0; }' > "$work/empty.c"
"$work/python/ziglang/zig" cc -target "x86_64-linux-gnu.$glibc" -pie -fPIE -fno-sanitize=all "$work/empty.c" -lm -lpthread -ldl \
    -o "$work/empty"
# The one file of this name among those that zig made.
made() {
    local found
    found=$(find "$work/cache/o" -name "$1" -type f)
    if [ "$(printf '%s\n' "$found" | grep -c .)" != 1 ]; then
        echo "sysroot: expected one $1 from zig, found: ${found:-none}" >&2
        exit 1
    fi
    printf '%s\n' "$found"
}
for name in c m dl pthread rt util resolv; do
    for file in "$work"/cache/o/*/lib"$name".so.*; do cp "$file" "$out/"; done
    ln -s "$(basename "$(made "lib$name.so.*")")" "$out/lib$name.so"
done
cp "$(made 'libld.so.*')" "$out/ld-linux-x86-64.so.2"
cp "$(made Scrt1.o)" "$out/"
cc -O2 -fPIC -c "$here/compat.c" -o "$work/compat.o"
cp "$(made libc_nonshared.a)" "$out/"
ar rcsD "$out/libc_nonshared.a" "$work/compat.o"
rm "$out/libc.so"
echo 'GROUP ( libc.so.6 libc_nonshared.a AS_NEEDED ( ld-linux-x86-64.so.2 ) )' > "$out/libc.so"
rm -rf "$work"
cp "$here/compat.c" "$out/complete"
