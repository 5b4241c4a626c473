#!/usr/bin/env bash
# BiPO's training step in PyTorch, on the same model and the same tokens as `bidpo bench`. Makes a Python environment under
# target/ (PyTorch is large: some gigabytes), and writes target/peers/pytorch.json.
#
#   benches/peers/run.sh MODEL.gguf [LAYER]      THREADS=2 ROUNDS=5
#   target/release/bidpo bench --model MODEL.gguf --layer LAYER --only step,pytorch,pytorch-lora --pytorch target/peers/pytorch.json
set -euo pipefail
cd "$(dirname "$0")/../.."
model=${1:?usage: benches/peers/run.sh MODEL.gguf [LAYER]}
out=target/peers
threads=${THREADS:-$(nproc 2>/dev/null || sysctl -n hw.ncpu)}
mkdir -p "$out"
if [ ! -x "$out/venv/bin/python" ]; then
    python3 -m venv "$out/venv"
fi
if ! "$out/venv/bin/python" -c 'import torch, transformers, gguf, accelerate, peft' 2>/dev/null; then
    "$out/venv/bin/pip" install --quiet torch transformers gguf accelerate peft sentencepiece protobuf
fi
layer=()
if [ -n "${2:-}" ]; then layer=(--layer "$2"); fi
target/release/bidpo bench --model "$model" "${layer[@]+"${layer[@]}"}" --write-pairs "$out/pairs.json"
# A process for each type, so that the peak memory of each is its own.
for type in f32 bf16; do
    OMP_NUM_THREADS=$threads "$out/venv/bin/python" benches/peers/pytorch_step.py --model "$model" \
        --pairs "$out/pairs.json" --threads "$threads" --rounds "${ROUNDS:-5}" --only "$type" > "$out/$type.json"
done
# The step of an adapter of the rank of `bidpo bench`.
OMP_NUM_THREADS=$threads "$out/venv/bin/python" benches/peers/pytorch_step.py --model "$model" --pairs "$out/pairs.json" \
    --threads "$threads" --rounds "${ROUNDS:-5}" --only f32 --lora 8 > "$out/lora.json"
"$out/venv/bin/python" - "$out" <<'MERGE'
import json, sys
from pathlib import Path
out = Path(sys.argv[1])
result = json.loads((out / "f32.json").read_text()) | json.loads((out / "bf16.json").read_text())
result["lora"] = json.loads((out / "lora.json").read_text())
(out / "pytorch.json").write_text(json.dumps(result, indent=2) + "\n")
print(f"{out}/pytorch.json: f32 {result['f32_median_ms']:.0f} ms, bf16 {result['bf16_median_ms']:.0f} ms a step, "
      f"an adapter's f32 {result['lora']['f32_median_ms']:.0f} ms")
MERGE
