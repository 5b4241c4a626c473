# Steps of a long experiment, for scripts that source this file with the folder of their results in $out.
bidpo=${BIDPO:-target/release/bidpo}
models=${BIDPO_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/bidpo/models}
model=$models/SmolLM2-135M-Instruct.Q4_1.gguf
truthfulqa=${TRUTHFULQA:-../shared/data/truthfulqa/TruthfulQA.csv}
mmlu=${MMLU:-../shared/data/mmlu}

# Begins: the experiment's name, and the files that it needs beside model and questions.
begin() {
    local needed
    for needed in "$model" "$truthfulqa" "${@:2}"; do
        if [ ! -e "$needed" ]; then
            echo "$1: $needed is missing. TruthfulQA.csv: github.com/sylinrl/TruthfulQA; MMLU: github.com/hendrycks/test;" \
                "name them with TRUTHFULQA=FILE and MMLU=FOLDER." >&2
            exit 1
        fi
    done
    mkdir -p "$out"
    touch "$out/times.tsv"
}

# A step: its name for the table of times, and the command. What it prints on stdout is kept. A step that was done before is not
# done again.
step() {
    local name=$1 start=$SECONDS
    shift
    printf '\n%s\n' "$name" >&2
    if [ -e "$out/$name.done" ]; then
        echo "done before" >&2
        return
    fi
    "$@" > "$out/$name.txt"
    printf '%s\t%d\n' "$name" $((SECONDS - start)) >> "$out/times.tsv"
    touch "$out/$name.done"
}
