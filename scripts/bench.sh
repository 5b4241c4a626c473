#!/usr/bin/env bash
# Measures everything that docs/performance.md tells and writes it again, with its plots. About fifteen minutes on two quiet
# cores. `make bench` builds first.
#
#   TRUTHFULQA=mc_task.json   measures that line too (the file is not part of this repository)
#   PYTORCH=FILE.json         a result of benches/peers/run.sh of this machine [default: the last one, else the committed one]
set -euo pipefail
cd "$(dirname "$0")/.."
models=${BIDPO_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/bidpo/models}
out=target/performance
mkdir -p "$out"
pytorch=${PYTORCH:-target/peers/pytorch.json}
if [ ! -f "$pytorch" ]; then pytorch=benches/peers/SmolLM2-135M-Instruct.Q4_1.json; fi
python=target/peers/venv/bin/python
if [ ! -x "$python" ]; then python=; fi
target/release/bidpo bench --json --pytorch "$pytorch" ${python:+--pytorch-python "$python"} ${TRUTHFULQA:+--truthfulqa "$TRUTHFULQA"} --rounds "${ROUNDS:-3}" \
    --model "$models/SmolLM2-135M-Instruct.Q4_1.gguf" "$models/gemma-3-270m-q4_k_m.gguf" > "$out/bench.json"
cargo run --release --quiet --example performance docs/performance.md "$out/bench.json" "$pytorch"
