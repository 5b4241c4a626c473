#!/usr/bin/env bash
# Trains the vectors in vectors/ again, with the defaults but for what is rounded for speed (nothing): both built-in sets on
# both test models. About 17 minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
models=${BIDPO_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/bidpo/models}
mkdir -p vectors
for model in SmolLM2-135M-Instruct.Q4_1 gemma-3-270m-q4_k_m; do
    for set in misconceptions plain-vs-flowery; do
        target/release/bidpo train --model "$models/$model.gguf" --data "$set" \
            --output "vectors/$set.$model.gguf" --fresh --forward exact --backward f32
    done
done
