#!/bin/sh
# usage: install.sh [--prefix DIR] [--sha256 HEX] ARCHIVE
# Installs bidpo from ARCHIVE, a file or an address of bidpo-VERSION-x86_64-linux.tar.gz, into DIR (default: ~/.local): DIR/bin/bidpo,
# DIR/libexec/bidpo, manual pages, completions. The archive's SHA-256 must be HEX, or what the file SHA256SUMS beside it says.
# Needs a shell, tar, gzip and sha256sum; for an address curl or wget. An installed version is replaced.
set -eu

fail() {
    echo "install: $*" >&2
    exit 1
}

prefix=${HOME:-}/.local
expected=
archive=
while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --sha256)
        [ $# -ge 2 ] || fail "$1 needs a value"
        if [ "$1" = --prefix ]; then prefix=$2; else expected=$2; fi
        shift 2
        ;;
    --help | -h)
        sed -n '2,/^set/s/^# //p' "$0"
        exit 0
        ;;
    -*) fail "unknown option $1 (see install.sh --help)" ;;
    *)
        [ -z "$archive" ] || fail "one archive, not $archive and $1"
        archive=$1
        shift
        ;;
    esac
done
[ -n "$archive" ] || fail "which archive? (see install.sh --help)"
[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
    fail "the archive is for Linux on x86-64, this is $(uname -s) on $(uname -m): compile bidpo from source"
command -v sha256sum >/dev/null || fail "sha256sum is missing (coreutils)"
case $prefix in
/*) ;;
*) prefix=$PWD/$prefix ;;
esac

mkdir -p "$prefix"
work=$(mktemp -d "$prefix/.bidpo-install.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# fetch ADDRESS FILE
fetch() {
    if command -v curl >/dev/null; then
        curl --fail --silent --show-error --location --output "$2" "$1"
    elif command -v wget >/dev/null; then
        wget -q -O "$2" "$1"
    else
        fail "neither curl nor wget is there: fetch $1 in another way and give the file"
    fi
}

name=${archive##*/}
folder=${archive%"$name"}
sums=$work/SHA256SUMS
case $archive in
http://* | https://*)
    file=$work/$name
    fetch "$archive" "$file" || fail "cannot fetch $archive"
    [ -n "$expected" ] || fetch "${folder}SHA256SUMS" "$sums" || fail "cannot fetch ${folder}SHA256SUMS: give --sha256 HEX"
    ;;
*)
    file=$archive
    [ -f "$file" ] || fail "there is no file $file"
    [ -n "$expected" ] || cp "${folder:-./}SHA256SUMS" "$sums" 2>/dev/null ||
        fail "there is no ${folder:-./}SHA256SUMS to check $name by: give --sha256 HEX"
    ;;
esac
if [ -z "$expected" ]; then
    expected=$(awk -v name="$name" '$2 == name || $2 == "*" name { print $1 }' "$sums")
    [ -n "$expected" ] || fail "SHA256SUMS does not list $name"
fi
found=$(sha256sum "$file" | cut -d ' ' -f 1)
[ "$found" = "$expected" ] || fail "$archive has SHA-256 $found, expected $expected: nothing was installed"

mkdir "$work/unpacked"
tar -xzf "$file" -C "$work/unpacked" --no-same-owner
tree=$(echo "$work"/unpacked/*)
[ -x "$tree/bin/bidpo" ] && [ -d "$tree/libexec/bidpo" ] || fail "$name holds no bin/bidpo with libexec/bidpo"

# The builds change together with what starts them: a folder of another version must not be left between them.
mkdir -p "$prefix/bin" "$prefix/libexec" "$prefix/share"
if [ -e "$prefix/libexec/bidpo" ]; then mv "$prefix/libexec/bidpo" "$work/replaced"; fi
mv "$tree/libexec/bidpo" "$prefix/libexec/bidpo"
mv "$tree/bin/bidpo" "$prefix/bin/bidpo"
(cd "$tree/share" && find . -type d) | while read -r folder; do mkdir -p "$prefix/share/$folder"; done
(cd "$tree/share" && find . -type f) | while read -r file; do mv "$tree/share/$file" "$prefix/share/$file"; done

"$prefix/bin/bidpo" --version >/dev/null || fail "$prefix/bin/bidpo is installed, but does not run here"
echo "$("$prefix/bin/bidpo" --version) is installed: $prefix/bin/bidpo"
case :$PATH: in
*":$prefix/bin:"*) ;;
*) echo "note: $prefix/bin is not in PATH" ;;
esac
