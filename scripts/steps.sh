# A step of a long experiment, for scripts that source this file with the folder of their results in $out: its name for the table
# of times, and the command. What it prints on stdout is kept. A step that was done before is not done again.
touch "$out/times.tsv"
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
