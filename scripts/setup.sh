#!/usr/bin/env bash
# Checks what the build needs (with BIDPO_SETUP_TESTS=1 what the tests need, too); installs what is missing on Debian and
# Ubuntu, says what to install elsewhere.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }

# bindgen loads libclang at build time; it lies in one of these places, or where LIBCLANG_PATH says.
have_libclang() {
    if [ -n "${LIBCLANG_PATH:-}" ]; then
        if compgen -G "$LIBCLANG_PATH/libclang*" >/dev/null || [ -f "$LIBCLANG_PATH" ]; then return 0; fi
    fi
    local pattern
    for pattern in /usr/lib/llvm-*/lib /usr/lib/*-linux-gnu /usr/lib64 /usr/lib /usr/local/lib \
        /opt/homebrew/opt/llvm/lib /usr/local/opt/llvm/lib /Library/Developer/CommandLineTools/usr/lib \
        /Applications/Xcode.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib; do
        # shellcheck disable=SC2086  # the pattern is meant to be expanded
        if compgen -G "$pattern/libclang.so*" >/dev/null || compgen -G "$pattern/libclang-*.so*" >/dev/null ||
            compgen -G "$pattern/libclang.dylib" >/dev/null; then return 0; fi
    done
    return 1
}

# On Linux llama.cpp's threads wait by GNU's OpenMP, which comes with GCC and is linked statically.
have_openmp() {
    [ "$(uname)" != Linux ] || case "$("${CC:-cc}" -print-file-name=libgomp.a 2>/dev/null)" in */*) ;; *) return 1 ;; esac
}

# Prints the Debian names of the packages that are missing.
missing() {
    have cmake || echo cmake
    have clang || echo clang
    have_libclang || echo libclang-dev
    { { have c++ || have g++ || have clang++; } && have_openmp; } || echo g++
    have make || echo make
    have python3 || echo python3
    { have python3 && python3 -m pip --version >/dev/null 2>&1; } || echo python3-pip
    # The tests open a report and the server's page in it, and call the server with OpenAI's Python client.
    if [ -n "${BIDPO_SETUP_TESTS:-}" ]; then
        have_browser || echo "$(browser_package)"
        { have python3 && python3 -c 'import ensurepip, venv' >/dev/null 2>&1; } || echo python3-venv
    fi
}

# Ubuntu has it under another name than Debian.
browser_package() { if grep -qs "^ID=ubuntu" /etc/os-release; then echo chromium-browser; else echo chromium; fi; }

have_browser() { have chromium || have chromium-browser || have google-chrome; }

packages=$(missing | tr '\n' ' ')
if [ -n "$packages" ]; then
    echo "setup: missing: $packages" >&2
    if ! have apt-get; then
        echo "setup: install cmake, clang with libclang, a C++ compiler, make, and python3 with pip (for the tests chromium)" >&2
        echo "setup: (Fedora: dnf install cmake clang-devel gcc-c++ make python3-pip; macOS: brew install cmake llvm)" >&2
        exit 1
    fi
    if [ "$(id -u)" = 0 ]; then
        as_root=()
    elif have sudo; then
        as_root=(sudo)
    else
        echo "setup: as root, run: apt-get install $packages" >&2
        exit 1
    fi
    "${as_root[@]+"${as_root[@]}"}" apt-get update -qq
    # shellcheck disable=SC2086  # a list of package names
    "${as_root[@]+"${as_root[@]}"}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages
    packages=$(missing | tr '\n' ' ')
    if [ -n "$packages" ]; then
        echo "setup: still missing after the installation: $packages" >&2
        exit 1
    fi
fi

# Python packages that tests/interop.rs compares files with: in a folder of their own, away from what is installed. repeng
# without the gigabytes that it needs for training only.
python_packages() {
    local folder=${XDG_CACHE_HOME:-$HOME/.cache}/bidpo/python-packages
    if [ -f "$folder/complete" ]; then return 0; fi
    echo "setup: Python packages for the tests, into $folder" >&2
    rm -rf "$folder"
    if python3 -m pip install --quiet --disable-pip-version-check --target "$folder" "numpy>=1.24" "safetensors>=0.4" "gguf>=0.10" &&
        python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" "repeng==0.4.0"; then
        touch "$folder/complete"
    else
        echo "setup: the Python packages cannot be installed" >&2
        exit 1
    fi
}

# axe-core, which the tests of the server's page run in it: a Python package holds it as one file.
axe_core() {
    local folder=${XDG_CACHE_HOME:-$HOME/.cache}/bidpo/axe
    if [ -f "$folder/axe_playwright_python/axe.min.js" ]; then return 0; fi
    echo "setup: axe-core for the tests, into $folder" >&2
    if ! python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" "axe-playwright-python==0.1.8"; then
        echo "setup: axe-core cannot be installed" >&2
        exit 1
    fi
}

if [ -n "${BIDPO_SETUP_TESTS:-}" ]; then python_packages; axe_core; fi
# OpenAI's Python client, for the tests alone, in a folder that `cargo clean` takes away.
client=target/openai-client
if [ -n "${BIDPO_SETUP_TESTS:-}" ] && ! "$client/bin/python" -c 'import openai' >/dev/null 2>&1; then
    echo "setup: OpenAI's Python client for the tests, into $client" >&2
    python3 -m venv "$client"
    "$client/bin/python" -m pip install --quiet --disable-pip-version-check 'openai==3.57.0'
fi

if ! have cargo; then
    echo "setup: cargo is missing: install Rust 1.89 or later, see https://www.rust-lang.org/tools/install" >&2
    exit 1
fi
echo "setup: the build's needs are there"
