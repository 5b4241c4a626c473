# The questions of scripts/gates.sh and scripts/adapters.sh, which source this file behind steps.sh and `begin`: the study's split of
# TruthfulQA with its pairs, and questions of MMLU with the unsteered model's answers, all in $out.
split=$out/split.json
train=$out/train.jsonl
step split "$bidpo" data split "$truthfulqa" --train 256 --valid 256 --seed 0 --split-by prompts --out "$split"
step pairs "$bidpo" data pairs "$truthfulqa" --split "$split" --part train --out "$train"
step inside "$bidpo" data pairs "$truthfulqa" --split "$split" --part test --out "$out/inside-pairs.jsonl"

# Outside: MMLU, its dev part to train on, its test part to measure on. The unsteered model's own answers, written once.
step prompts python3 scripts/gates.py prompts "$mmlu" "$out"
for name in retain outside; do
    step "answers-$name" "$bidpo" eval prompts --model "$model" --data "$out/$name-prompts.jsonl" --max-tokens 32 \
        --out "$out/answers-$name.jsonl"
done
step retain python3 scripts/gates.py answers "$out/retain-prompts.jsonl" "$out/answers-retain.jsonl" "$out/retain.jsonl" \
    data/retain.txt
step outside python3 scripts/gates.py answers "$out/outside-prompts.jsonl" "$out/answers-outside.jsonl" "$out/outside-answers.jsonl"

# What the study measures on the questions of a part.
mc=("$bidpo" eval truthfulqa --model "$model" --data "$truthfulqa" --split "$split" --prompt chat)
