#!/usr/bin/env bash
# LoRA adapters against a constant vector: what each gains on TruthfulQA, and what it costs elsewhere, at scale 1 and at the scale at
# which it costs as much as the vector. Writes the tables of docs/adapters.md. `make adapters` builds first. Interrupted, the same
# command goes on where it stopped. What scripts/gates.sh has made in the same folder is used.
#
# TRUTHFULQA  TruthfulQA.csv, the January 2025 revision   [../shared/data/truthfulqa/TruthfulQA.csv]
# MMLU        the folder with MMLU's dev and test         [../shared/data/mmlu]
# BIDPO       the program                                 [target/release/bidpo]
# GATES       where everything is kept                    [runs/gates]
# KINDS       what to measure beside the constant vector  [lora-1 lora-8 lora-8+add]
# SEEDS       seeds of the training                       [0 1]
# EPOCHS      passes of the adapters over the training pairs           [5]
# RATES       learning rates of A and B to choose from: the one with the lowest loss of lora-8 on validation pairs  [0.0003 0.001 0.003]
# RATE_SEEDS  seeds that they are tried with                           [the first of SEEDS]
# AT          scales to measure at: own (scale 1), equal (that of the constant vector's price) [own equal]
# EVERY       every n-th test question is measured        [1]
# OUTSIDE     questions of MMLU on whose answers the divergence is measured [54]
# PER_SUBJECT questions of each subject of MMLU           [2]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${GATES:-runs/gates}
docs=${GATES_DOCS:-docs}
kinds=${KINDS:-lora-1 lora-8 lora-8+add}
seeds=${SEEDS:-0 1}
rates=${RATES:-0.0003 0.001 0.003}
scales=${AT:-own equal}
rate_seeds=${RATE_SEEDS:-${seeds%% *}}
. scripts/steps.sh
begin adapters "$mmlu/test" "$mmlu/dev"
. scripts/questions.sh

# No pairs held out: the test part of the split is.
train_file() { # name, seed, options
    step "train-$1" "$bidpo" train --model "$model" --data "$train" --test 0 --cache "$out/cache" --output "$out/$1.gguf" \
        --fresh --json --seed "$2" "${@:3}"
}
adapter() { # kind, learning rate, seed
    local rank=${1#lora-}
    local type=lora
    case $1 in *+add) type=lora+add ;; esac
    train_file "$1-lr$2-$3" "$3" --kind $type --rank "${rank%+add}" --lr "$2" --epochs "${EPOCHS:-5}"
}
# The constant vector of seed 0 is that of scripts/gates.sh.
vector() { # seed
    if [ "$1" = 0 ]; then echo constant; else echo "constant-$1"; fi
}
train_file "$(vector "${seeds%% *}")" "${seeds%% *}"
for seed in $rate_seeds; do
    for rate in $rates; do
        adapter lora-8 "$rate" "$seed"
    done
done
rate=$(python3 scripts/adapters.py rate "$out" "$rates" "$rate_seeds")
for seed in $seeds; do
    train_file "$(vector "$seed")" "$seed"
    for kind in $kinds; do
        adapter "$kind" "$rate" "$seed"
    done
done

# The model with a file at a scale, as options of `bidpo eval`.
with=()
at() { # name, scale
    case $1 in
    constant*) with=(--vector "$out/$1.gguf" --scale "$2") ;;
    *+add-*) with=(--lora "$out/$1.gguf:$2" --vector "$out/$1.vector.gguf" --scale "$2") ;;
    *) with=(--lora "$out/$1.gguf:$2") ;;
    esac
}
# The rows: name, kind, seed, scale. At equal price the constant vector of seed 0 is the measure.
: > "$out/rows.tmp"
for kind in constant $kinds; do
    for seed in $seeds; do
        name=$kind-lr$rate-$seed
        [ "$kind" != constant ] || name=$(vector "$seed")
        case "$kind $scales" in
        constant* | *own*) echo "$name $kind $seed 1" >> "$out/rows.tmp" ;;
        esac
        case "$kind $scales" in
        constant*) ;;
        *equal*)
            echo "$name $kind $seed $(python3 scripts/adapters.py match "$out" "$name")" >> "$out/rows.tmp"
            ;;
        esac
    done
done
mv "$out/rows.tmp" "$out/rows.txt"

# The unsteered model and the constant vector of seed 0 are computed once, and stand beside each row.
measure() { # name, scale, what, command
    local file=$out/$3-$1-at-$2.jsonl
    at "$1" "$2"
    if [ "$1 $2" = "constant 1" ]; then
        step "$3-$1-at-$2" "$bidpo" report "$out/$3-vector.jsonl" --json
        return
    fi
    [ -e "$file" ] || cp "$out/$3-beside.jsonl" "$file"
    step "$3-$1-at-$2" "${@:4}" "${with[@]}" --baselines unsteered --json --out "$file"
}
step thin python3 scripts/adapters.py thin "$split" "${EVERY:-1}" "$out/split-test.json"
on_test=("$bidpo" eval truthfulqa --model "$model" --data "$truthfulqa" --split "$out/split-test.json" --prompt chat)
on_mmlu=("$bidpo" eval mmlu --model "$model" --data "$mmlu" --per-subject "${PER_SUBJECT:-2}" --few-shot 0 --prompt chat)
beside() { # what, command
    at constant 1
    step "$1-vector" "${@:2}" "${with[@]}" --baselines unsteered --out "$out/$1-vector.jsonl"
    step "$1-beside" python3 scripts/adapters.py beside "$out/$1-vector.jsonl" "$out/$1-beside.jsonl"
}
each() { # command, which gets name and scale
    local name scale
    while read -r name _ _ scale; do
        "$@" "$name" "$scale"
    done < "$out/rows.txt"
}
# At scale 1 training has measured it.
text() { # name, scale
    at "$1" "$2"
    [ "$2" = 1 ] || step "text-$1-at-$2" "$bidpo" eval text --model "$model" "${with[@]}" --baselines none --json \
        --out "$out/text-$1-at-$2.jsonl"
}
answers() { # name, scale
    at "$1" "$2"
    step "answers-$1-at-$2" "$bidpo" eval text --model "$model" "${with[@]}" --answers "$out/outside-answers.jsonl" \
        --limit "${OUTSIDE:-54}" --baselines none --json --out "$out/answers-$1-at-$2.jsonl"
}
questions() { measure "$1" "$2" questions "${on_test[@]}"; }
subjects() { measure "$1" "$2" subjects "${on_mmlu[@]}"; }
each text
beside questions "${on_test[@]}"
each questions
each answers
beside subjects "${on_mmlu[@]}"
each subjects

python3 scripts/adapters.py table "$out" "$docs/adapters.md" "$rates" "$rate_seeds"
echo "adapters: the tables of $docs/adapters.md are written" >&2
