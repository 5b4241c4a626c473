#!/usr/bin/env bash
# usage: scripts/check_dist.sh [ARCHIVE]
# Installs the archive of `make dist` in a bare Debian 11 (glibc 2.31, no compiler) and uses it there: version, self-test, training, the
# tour, chat, the server with its page, each CPU level forced; then under qemu as CPUs without AVX and without AVX-512. Vectors' bytes
# are compared with those of the build from source, $NATIVE (default target/release/bidpo). Needs root, debootstrap, qemu-user, python3.
# BIDPO_MODELS names the folder with the tour's model (`bidpo models fetch smollm2`); without it the tour is left out, and said so.
set -euo pipefail
cd "$(dirname "$0")/.."
archive=${1:-$(ls dist/bidpo-*-x86_64-linux.tar.gz)}
native=${NATIVE:-target/release/bidpo}
suite=bullseye
base=$PWD/target/dist/$suite
root=$PWD/target/dist/root
export BIDPO_THREADS=1
unset BIDPO_CPU

fail() {
    echo "check_dist: $*" >&2
    exit 1
}
say() { echo "check_dist: $*"; }
[ "$(id -u)" = 0 ] || fail "a bare root needs root"
for tool in debootstrap qemu-x86_64 python3 unshare; do
    command -v "$tool" >/dev/null || fail "$tool is missing (Debian: debootstrap qemu-user python3 util-linux)"
done
[ -x "$native" ] || fail "there is no $native to compare with: build it, or set NATIVE"

if [ ! -e "$base/complete" ]; then
    rm -rf "$base"
    debootstrap --variant=minbase "$suite" "$base" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >/dev/null
    touch "$base/complete"
fi
rm -rf "$root"
cp -a "$base" "$root"
for tool in cc gcc g++ clang cmake make cargo rustc python3; do
    [ ! -e "$root/usr/bin/$tool" ] || fail "$tool is in the bare root"
done
mkdir -p "$root/try"
cp "$archive" "$(dirname "$archive")/SHA256SUMS" "$root/try/"
name=$(basename "$archive")
tar -xzf "$archive" -C "$root/try" --strip-components 1 "${name%.tar.gz}/install.sh"

# inside COMMAND...: in the bare root, in its folder /try, with nothing of this machine's environment but BIDPO_ variables.
inside() {
    # shellcheck disable=SC2016  # expanded inside
    unshare --mount --kill-child --fork sh -c '
        mount -t proc proc "$0/proc"
        shift_env=$(env | grep "^BIDPO_" || true)
        exec env -i $shift_env PATH=/usr/local/bin:/usr/bin:/bin HOME=/root TERM=xterm LC_ALL=C.UTF-8 \
            chroot "$0" sh -c "cd /try && exec \"\$@\"" sh "$@"' "$root" "$@"
}
# Of doctor's JSON, the features that ggml was compiled with.
ggml_features() { python3 -c 'import json, sys; print([f["name"] for f in json.load(sys.stdin)["cpu_features"] if f["ggml"]])'; }
same() { cmp -s "$root/try/$1" "$2"; }

# Installing.
cp "$root/try/$name" "$root/try/changed.tar.gz"
printf x >> "$root/try/changed.tar.gz"
sum=$(awk -v name="$name" '$2 == name { print $1 }' "$root/try/SHA256SUMS")
if inside ./install.sh --prefix /usr/local --sha256 "$sum" changed.tar.gz 2>/dev/null; then fail "a changed archive was installed"; fi
[ ! -e "$root/usr/local/bin/bidpo" ] || fail "something of a changed archive was installed"
if inside bidpo --version 2>/dev/null; then fail "bidpo was there before it was installed"; fi
inside ./install.sh --prefix /usr/local "$name"
inside ./install.sh --prefix /usr/local "$name" >/dev/null
[ "$(ls -A "$root/usr/local" | grep -c '^\.bidpo')" = 0 ] || fail "the installation left something lying about"
say "installed on Debian 11 ($(inside ldd --version | head -1)), without a compiler"

# At the CPU's own level.
inside bidpo --version --verbose
inside bidpo doctor >/dev/null
inside bidpo self-test
for page in bidpo.1 bidpo-train.1; do [ -s "$root/usr/local/share/man/man1/$page" ] || fail "no manual page $page"; done

# Training at each level, and what the build from source makes of the same.
model=random.gguf
inside bidpo synth --arch llama --type q4_k -o "$model" >/dev/null
"$native" synth --arch llama --type q4_k --force -o target/dist/"$model" >/dev/null
same "$model" target/dist/"$model" || fail "synth wrote another model than the build from source"
train=(train --model "$model" --data misconceptions --steps 8 --batch 4 --template none --force)
mkdir -p target/dist/native
cp target/dist/"$model" target/dist/native/
levels=$(inside sh -c 'ls /usr/local/libexec/bidpo | sed s/^bidpo-//')
for level in $levels; do
    export BIDPO_CPU=$level
    inside bidpo doctor --json >target/dist/doctor.json
    case $(python3 -c 'import json, sys; d = json.load(sys.stdin); print(d["build_level"], d["kernel_level"])' <target/dist/doctor.json) in
    "$level $level") ;;
    *None)
        say "$level: this CPU does not have it"
        continue
        ;;
    *) fail "BIDPO_CPU=$level does not lead to the build for $level" ;;
    esac
    inside bidpo self-test >/dev/null || fail "$level: self-test"
    inside bidpo "${train[@]}" -o "$level.gguf" >/dev/null 2>"$root/try/said" || fail "$level: training: $(cat "$root/try/said")"
    inside bidpo "${train[@]}" -t 2 -o "$level-2.gguf" >/dev/null 2>&1 || fail "$level: training with two threads"
    same "$level.gguf" "$root/try/$level-2.gguf" || fail "$level: two threads train another vector than one"
    (cd target/dist/native && "$OLDPWD/$native" "${train[@]}" -o "$level.gguf" >/dev/null 2>&1) || fail "$level: training from source"
    inside bidpo check --model "$model" >/dev/null || fail "$level: check"
    # Where both builds of ggml use the same features, the bytes must be the same.
    if same "$level.gguf" "target/dist/native/$level.gguf"; then
        found="the bytes"
    elif [ "$(ggml_features <target/dist/doctor.json)" != "$("$native" doctor --json | ggml_features)" ]; then
        found="other bytes (ggml's features differ) than those"
    else
        fail "$level: ggml has the same features as in the build from source, but the vector has other bytes"
    fi
    say "$level: self-test and check pass, 8 steps give $found of the build from source with BIDPO_CPU=$level"
done
unset BIDPO_CPU

# Chat in a terminal, and the server with its page.
export -f inside
export root
scripts/dist/use.py chat bash -c 'inside bidpo chat -n 8 --model random.gguf --template chatml' || fail "chat"
scripts/dist/use.py serve bash -c 'inside bidpo serve --port 0 --model random.gguf --template chatml' 2>"$root/try/said" ||
    fail "serve: $(cat "$root/try/said")"
say "chat in a terminal, serve with its page: they answer"

# The tour, with the model that a person has fetched.
tour=${BIDPO_MODELS:-$HOME/.cache/bidpo/models}
unset BIDPO_MODELS
if ls "$tour"/SmolLM2-135M* >/dev/null 2>&1; then
    mkdir -p "$root/root/.cache/bidpo/models"
    cp "$tour"/SmolLM2-135M* "$root/root/.cache/bidpo/models/"
    export BIDPO_NEUTRAL_PASSAGES=2
    inside bidpo demo --steps 8 -n 8 -o demo >"$root/try/said" 2>&1 || fail "demo: $(tail -20 "$root/try/said")"
    rm -rf target/dist/demo
    BIDPO_MODELS=$tour "$native" demo --steps 8 -n 8 -o target/dist/demo >/dev/null 2>&1 || fail "the demo of the build from source"
    unset BIDPO_NEUTRAL_PASSAGES
    if same demo/misconceptions.gguf target/dist/demo/misconceptions.gguf; then found=the; else found="other than the"; fi
    say "demo: 8 steps give $found bytes of the build from source"
else
    say "demo: NOT RUN, its model is not in $tour (bidpo models fetch smollm2)"
fi

# CPUs of old. A program that the launcher becomes runs outside qemu: what it chooses is asked first, then the build itself is run.
tree=$root/usr/local
emulated() { qemu-x86_64 -L "$root" -cpu "$1" "${@:2}"; }
for cpu in Nehalem:plain Haswell:avx2; do
    level=${cpu#*:}
    chosen=$(emulated "${cpu%:*}" "$tree/bin/bidpo" --version --verbose 2>/dev/null | sed -n 's/^build  *for CPU level //p')
    [ "$chosen" = "$level" ] || fail "on a ${cpu%:*} the launcher takes the build for $chosen"
    emulated "${cpu%:*}" "$tree/libexec/bidpo/bidpo-$level" self-test 2>"$root/try/said" ||
        fail "${cpu%:*}: self-test: $(cat "$root/try/said")"
    say "as a ${cpu%:*} (qemu): the launcher takes the build for $level, its self-test passes"
done
say "all passed"
