#!/usr/bin/env bash
# The whole experiment, from raw data to a report: does a vector trained by BiDPO on TruthfulQA make SmolLM2-135M-Instruct more
# truthful, what does it cost, and would something simpler do as well? Writes docs/study.md and docs/study.html. `make study`
# builds first. Interrupted, the same command goes on where it stopped.
#
# TRUTHFULQA  TruthfulQA.csv, the January 2025 revision   [../shared/data/truthfulqa/TruthfulQA.csv]
# MMLU        the folder with MMLU's dev and test         [../shared/data/mmlu]
# BIDPO       the program                               [target/release/bidpo]
# STUDY       where everything is kept                    [runs/study]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${STUDY:-runs/study}
docs=${STUDY_DOCS:-docs}
. scripts/steps.sh
begin study "$mmlu/test"

split=$out/split.json
pairs=$out/train.jsonl
step split "$bidpo" data split "$truthfulqa" --train 256 --valid 256 --seed 0 --split-by prompts --out "$split"
step pairs "$bidpo" data pairs "$truthfulqa" --split "$split" --part train --out "$pairs"
step inspect "$bidpo" data inspect "$pairs"
for objective in bidpo dpo; do
    # No pairs held out: the test part of the split is.
    step "train-$objective" "$bidpo" train --model "$model" --data "$pairs" --objective $objective --test 0 \
        --cache "$out/cache" --output "$out/$objective.gguf" --fresh
done
step sweep "$bidpo" sweep --model "$model" --vector "$out/bidpo.gguf" --data "$truthfulqa" --split "$split" --protocol mc \
    --scales=-10%..20%/5% --mmlu "$mmlu" --per-subject 2 --prompt chat --random 10 \
    --compare "DPO=$out/dpo.gguf" --out "$out/sweep"
# The chosen scale, of the file with the test items.
chosen=$(python3 - "$out/sweep" <<'PY'
import glob, json, sys
manifests = [json.loads(open(f).readline())["manifest"] for f in glob.glob(sys.argv[1] + "/test-*.jsonl")]
steered = [c for m in manifests for c in m["conditions"] if c["name"] == "steered"]
# Of several (an earlier sweep chose another one) the one chosen among most settings.
best = max(steered, key=lambda c: c["chosen_on"]["settings"])
print(best["vectors"][0]["scale"], best["layers"])
PY
)
read -r scale layer <<< "$chosen"
# Answers end at an empty line: without it this model repeats itself, and even 512 tokens cut off a third of the steered ones.
step generate "$bidpo" eval truthfulqa --model "$model" --data "$truthfulqa" --split "$split" --protocol generate \
    --vector "$out/bidpo.gguf" --scale="$scale" --layers "$layer" --prompt chat --max-tokens 128 --stop '\n\n' \
    --limit 128 --baselines unsteered,random,system --random 1 --out "$out/generate"
results=("$out"/sweep/{valid,mmlu,text}.jsonl "$out"/sweep/test-*.jsonl "$out/generate")
"$bidpo" report "${results[@]}" --html "$docs/study.html" --no-items > "$out/words.txt"
python3 scripts/study.py "$out" "$docs/study.md" <("$bidpo" report "${results[@]}")
echo "study: $docs/study.md and $docs/study.html are written" >&2
