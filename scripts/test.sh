#!/usr/bin/env bash
# Runs all tests of the workspace (arguments go to the test programs), then lists the tests that were skipped, and why. The models and
# packages that `make test` fetches are required: a test that lacks them fails.
set -euo pipefail
cd "$(dirname "$0")/.."
list=${CARGO_TARGET_DIR:-target}/tmp/skipped-tests.txt
rm -f "$list"
status=0
BIDPO_REQUIRE_MODELS=1 BIDPO_THREADS=1 python3 scripts/run_tests.py "$@" || status=$?
if [ -s "$list" ]; then
    echo "tests skipped: $(sort -u "$list" | wc -l)"
    sort -u "$list" | sed 's/^/  /'
else
    echo "tests skipped: 0"
fi
exit "$status"
