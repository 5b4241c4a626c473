#!/usr/bin/env bash
# Conditional steering against a constant vector: what each kind of intervention keeps of the gain on TruthfulQA, and what it
# costs elsewhere. Writes the table of docs/interventions.md. `make gates` builds first. Interrupted, the same command goes on
# where it stopped.
#
# TRUTHFULQA  TruthfulQA.csv, the January 2025 revision   [../shared/data/truthfulqa/TruthfulQA.csv]
# MMLU        the folder with MMLU's dev and test         [../shared/data/mmlu]
# BIDPO       the program                                 [target/release/bidpo]
# GATES       where everything is kept                    [runs/gates]
# KINDS       what to measure beside the constant vector  [all]
# SCALES      scales to choose from, on VALID validation questions; a single one is taken as it is   [1]  [128]
# LIMIT       test questions, at most                     [all]
# PER_SUBJECT questions of each subject of MMLU           [2]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${GATES:-runs/gates}
docs=${GATES_DOCS:-docs}
kinds="constant ${KINDS:-constant-retain prompt-only cast linear-gate gate prompt-gate lowrank}"
scales=${SCALES:-1}
. scripts/steps.sh
begin gates "$mmlu/test" "$mmlu/dev"
. scripts/questions.sh

# No pairs held out: the test part of the split is. The constant vector as in the study; all others begin with it.
train_kind() { # name, options
    local name=$1
    shift
    step "train-$name" "$bidpo" train --model "$model" --data "$train" --test 0 --cache "$out/cache" \
        --output "$out/$name.gguf" --fresh --json "$@"
}
short=(--init "$out/constant.gguf" --epochs 2 --lr 0.3%)
shut=(--retain "$out/retain.jsonl")
# CAST reads the prompts themselves, as a chat shows them.
cast() {
    local part
    for part in train retain-prompts; do
        "$bidpo" extract --model "$model" --data "$out/$part.jsonl" --layers 15 --template auto \
            --output "$out/$part.safetensors"
    done
    python3 scripts/gates.py pca "$out/cast.gguf" "$out/constant.gguf" "$out/train.safetensors" \
        "$out/retain-prompts.safetensors"
}
for kind in $kinds; do
    case $kind in
    constant) train_kind constant ;;
    constant-retain) train_kind $kind "${short[@]}" "${shut[@]}" ;;
    prompt-only) train_kind $kind "${short[@]}" --scope prompt ;;
    cast) step train-cast cast ;;
    gate | linear-gate | prompt-gate) train_kind $kind --kind $kind "${short[@]}" "${shut[@]}" ;;
    lowrank) train_kind $kind --kind lowrank "${short[@]}" "${shut[@]}" ;;
    *) echo "gates: there is no kind $kind in KINDS" >&2 && exit 1 ;;
    esac
done

# The scale of each: of several the best on validation questions.
if [ "$scales" = "${scales%% *}" ]; then
    for kind in $kinds; do
        echo "$kind $scales - 0"
    done > "$out/scales.txt"
else
    tried=()
    for kind in $kinds; do
        for scale in $scales; do
            [ "$kind $scale" = "constant 1" ] || tried+=(--compare "$kind at $scale=$out/$kind.gguf:$scale")
        done
    done
    "${mc[@]}" --part valid --limit "${VALID:-128}" --vector "$out/constant.gguf" --baselines unsteered "${tried[@]}" \
        --out "$out/valid.jsonl" > "$out/valid.txt"
    python3 scripts/gates.py scales "$out/valid.jsonl" > "$out/scales.txt"
fi

# Test questions: what does not depend on the kind is computed once.
mc+=(${LIMIT:+--limit "$LIMIT"})
step test-base "${mc[@]}" --baselines unsteered,choices-only --out "$out/test-base.jsonl"
compared=()
while read -r kind scale _; do
    [ -e "$out/test-$kind.jsonl" ] || cp "$out/test-base.jsonl" "$out/test-$kind.jsonl"
    step "test-$kind" "${mc[@]}" --vector "$out/$kind.gguf" --scale "$scale" \
        --baselines unsteered,choices-only,hidden-steered --out "$out/test-$kind.jsonl"
    "$bidpo" report "$out/test-$kind.jsonl" --json > "$out/test-$kind.json"
    if [ "$kind" = constant ]; then
        compared+=(--vector "$out/constant.gguf" --scale "$scale")
    else
        compared+=(--compare "$kind=$out/$kind.gguf:$scale")
    fi
done < "$out/scales.txt"

# The rows of these files are added to: a kind that is new is measured, and the others are there.
measure() { # name, command
    printf '\n%s\n' "$1" >&2
    "${@:2}" --model "$model" "${compared[@]}" --out "$out/$1.jsonl" > "$out/$1.txt"
}
measure text "$bidpo" eval text --baselines none
measure outside "$bidpo" eval text --answers "$out/outside-answers.jsonl" --limit 54 --baselines none
measure inside "$bidpo" eval text --answers "$out/inside-pairs.jsonl" --limit 54 --baselines none
measure mmlu "$bidpo" eval mmlu --data "$mmlu" --per-subject "${PER_SUBJECT:-2}" --few-shot 0 --prompt chat --baselines unsteered

# A style that can be seen: flowery answers to questions about food, and to nothing else.
food=$out/food
mkdir -p "$food"
grep '"topic": "food"' data/food-or-not.jsonl > "$food/inside-prompts.jsonl"
grep '"topic": "other"' data/food-or-not.jsonl > "$food/outside-prompts.jsonl"
style=("$bidpo" train --model "$model" --data data/flowery-food.jsonl --cache "$food/cache" --random 0 --fresh --json)
step food-constant "${style[@]}" --output "$food/constant.gguf"
step food-prompt-gate "${style[@]}" --kind prompt-gate --init "$food/constant.gguf" --epochs 2 --lr 0.3% \
    --retain data/not-food.jsonl --output "$food/prompt-gate.gguf"
for part in inside outside; do
    "$bidpo" eval text --model "$model" --answers "$food/$part-prompts.jsonl" --limit 16 --baselines none \
        --vector "$food/constant.gguf" --scale 1 --compare "prompt-gate=$food/prompt-gate.gguf:1" \
        --out "$food/$part.jsonl" > "$food/$part.txt"
    "$bidpo" report "$food/$part.jsonl" --json > "$food/$part.json"
done

for name in mmlu text outside inside; do
    "$bidpo" report "$out/$name.jsonl" --json > "$out/$name.json"
done
python3 scripts/gates.py table "$out" "$docs/interventions.md"
echo "gates: the table of $docs/interventions.md is written" >&2
