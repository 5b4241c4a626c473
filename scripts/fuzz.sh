#!/usr/bin/env bash
# Fuzzes the readers (fuzz/README.md): FUZZ_SECONDS each (600), FUZZ_READERS (all). With libFuzzer where cargo-fuzz and a nightly
# compiler are installed (FUZZ_DRIVER=1: not even then), else with the driver.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-600}
read -ra readers <<< "${FUZZ_READERS:-}"

drive() {
    cargo run --quiet --release --manifest-path fuzz/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-target}" --no-default-features --bin drive -- "$@"
}

if [ -z "${FUZZ_DRIVER:-}" ] && cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo "fuzzing with libFuzzer and the address sanitizer: $(cargo fuzz --version), $(rustc +nightly --version)"
    [ "${#readers[@]}" -gt 0 ] || mapfile -t readers < <(cargo +nightly fuzz list --fuzz-dir fuzz)
    drive --seeds fuzz/corpus "${readers[@]}"
    failed=0
    for reader in "${readers[@]}"; do
        cargo +nightly fuzz run --fuzz-dir fuzz "$reader" -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=524288 -print_final_stats=1 \
            || { echo "$reader: FAULT (fuzz/artifacts/$reader)"; failed=1; }
    done
    exit "$failed"
fi
echo "fuzzing with the driver, without coverage: $(rustc --version)"
drive --seconds "$seconds" "${readers[@]}"
