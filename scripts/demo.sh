#!/usr/bin/env bash
# The tour: train a vector on a small quantized model, see what it does, measure it. `make demo` builds first.
set -euo pipefail
cd "$(dirname "$0")/.."
bidpo=target/release/bidpo
models=${BIDPO_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/bidpo/models}
model=$models/SmolLM2-135M-Instruct.Q4_1.gguf
out=runs/demo
vector=$out/misconceptions.gguf
mkdir -p "$out"

say() { printf '\n\033[1m%s\033[0m\n\n' "$*"; }
dial() { # vector, question, scales
    echo "> $2"
    echo
    "$bidpo" generate --model "$model" --vector "$1" --scales="${3:--1,0,1}" --columns --max-tokens 48 \
        --repeat-penalty 1.1 --prompt "$2"
    echo
}

say "1. Train: 128 pairs of a true answer and a popular myth, on SmolLM2-135M-Instruct Q4_1, by gradient"
"$bidpo" train --model "$model" --data misconceptions --output "$vector" --fresh

say "2. Three questions at three scales of that vector (percent of the residual norm)"
echo "Do not expect a 135M model to become truthful: the table above says how far the vector moves it, and no further."
echo
dial "$vector" "Do penguins live at the North Pole?"
dial "$vector" "What causes the seasons on Earth?"
dial "$vector" "How does a refrigerator keep food cold?"

say "3. A dial that is easy to see: plain (-1) to flowery (+1), a vector that ships with bidpo"
style=vectors/plain-vs-flowery.SmolLM2-135M-Instruct.Q4_1.gguf
dial "$style" "Describe a rainy morning."
dial "$style" "How do I make a cup of tea?"
dial "$style" "What is the moon?"

say "4. A dial with a gate: flowery about food, and about nothing else (scale 0 and scale 1.5)"
gated=vectors/flowery-food.SmolLM2-135M-Instruct.Q4_1.gguf
for question in "How do I make a grilled cheese sandwich?" "Tell me about strawberries." \
    "How do I clean a window?" "Why does ice float?"; do
    dial "$gated" "$question" 0,1.5
done

say "5. Now you"
cat <<END
Chat, and turn the dial while you talk (/scale 1.5, /scale -1, /off, /help):

    $bidpo chat --model $model --vector $style --scale 1

Where a gate opens, token by token (/gate after an answer):

    $bidpo chat --model $model --vector $gated --scale 1

The vector without a gate in llama.cpp's own programs:

    llama-cli -m $model --control-vector-scaled $style:1.0

The vector you just trained, its card, and what is in the file:

    $vector
    ${vector%.gguf}.md
    $bidpo vector show $vector

A benchmark, if you have the official file (see docs/evaluation.md):

    $bidpo eval truthfulqa --model $model --data mc_task.json --vector $vector --limit 100
END
