#!/usr/bin/env bash
# Trains the vectors in vectors/ again: both built-in sets on both test models, with the default settings but the exact forward and
# backward pass. One thread each, so that a machine with another number of cores writes the same bytes; two run at a time. About
# 20 minutes on two cores.
#
# BIDPO  the program  [target/release/bidpo]
set -euo pipefail
cd "$(dirname "$0")/.."
bidpo=${BIDPO:-target/release/bidpo}
models=${BIDPO_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/bidpo/models}
mkdir -p vectors
for set in plain-vs-flowery misconceptions; do
    running=()
    for model in gemma-3-270m-q4_k_m SmolLM2-135M-Instruct.Q4_1; do
        "$bidpo" train --model "$models/$model.gguf" --data "$set" --output "vectors/$set.$model.gguf" \
            --fresh --threads 1 --forward exact --backward f32 &
        running+=($!)
    done
    for id in "${running[@]}"; do
        wait "$id"
    done
done
# A gate that opens on questions about food, with the default kernels (scripts/gates.sh measures it).
model=SmolLM2-135M-Instruct.Q4_1
mkdir -p runs/vectors
gated=("$bidpo" train --model "$models/$model.gguf" --data data/flowery-food.jsonl --fresh --threads 1)
"${gated[@]}" --output runs/vectors/constant.gguf
"${gated[@]}" --kind prompt-gate --init runs/vectors/constant.gguf --epochs 2 --lr 0.3% --retain data/not-food.jsonl \
    --output "vectors/flowery-food.$model.gguf"
