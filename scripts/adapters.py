#!/usr/bin/env python3
"""Parts of scripts/adapters.sh that bidpo has no command for. No package is needed.

adapters.py rate FOLDER RATES SEEDS         the learning rate with the lowest validation loss of lora-8, the mean over seeds
adapters.py match FOLDER NAME               the scale at which NAME moves neutral text as far as the constant vector at scale 1
adapters.py beside RESULTS.jsonl OUT.jsonl  results of the constant vector, as those of a vector beside another one
adapters.py thin SPLIT.json N OUT.json      a split with every N-th of its test questions, of all categories
adapters.py table FOLDER PAGE.md RATES SEEDS
                                            the measured tables, between the markers of a page
"""

import json
import math
import sys
from pathlib import Path

from gates import between, lines, points, rows_of, write

VECTOR = "constant vector"
NAMES = {
    "constant": VECTOR,
    "lora-1": "adapter, rank 1",
    "lora-8": "adapter, rank 8",
    "lora-8+add": "adapter, rank 8, with a vector",
}


def printed(folder, step):
    """What a step printed: one JSON object, or a list of one."""
    found = json.loads((Path(folder) / f"{step}.txt").read_text())
    return found[0] if isinstance(found, list) else found


def measured(folder, step):
    """False for a step that did not begin, or has not ended: it prints at its end."""
    path = folder / f"{step}.txt"
    return path.exists() and path.stat().st_size > 0


# Learning rates


def best_epoch(run):
    """The kept epoch: its step, the loss on training and on validation pairs."""
    return next(epoch for epoch in run["history"] if epoch["step"] == run["best_step"])


def losses(folder, rates, seeds):
    """By learning rate the runs of lora-8, one a seed."""
    return {rate: [printed(folder, f"train-lora-8-lr{rate}-{seed}") for seed in seeds.split()] for rate in rates.split()}


def mean(numbers):
    return sum(numbers) / len(numbers)


def lowest(runs):
    return min(runs, key=lambda rate: mean([best_epoch(run)["valid_loss"] for run in runs[rate]]))


def rate(folder, rates, seeds):
    print(lowest(losses(folder, rates, seeds)))


# Scales of equal price


def divergence(folder, name, scale):
    """KL(unsteered || steered) on neutral text, nats a token: value and interval. At scale 1 training has measured it."""
    if scale == "1":
        price = printed(folder, f"train-{name}")["price"]["kl_per_token"]
        return {"value": price["value"], "interval": [price["low"], price["high"]]}
    return rows_of(printed(folder, f"text-{name}-at-{scale}"), "kl_per_token")["steered"]


def match(folder, name):
    """To second order in the scale KL grows with its square. The table has what was measured there."""
    vector, own = (divergence(folder, of, "1")["value"] for of in ("constant", name))
    print(f"{math.sqrt(vector / own):.3g}")


# Results beside others


def beside(results, out):
    manifest, *records = lines(results)
    for condition in manifest["manifest"]["conditions"]:
        if condition["name"] == "steered":
            (vector,) = condition.pop("vectors")
            condition.pop("layers", None)
            condition.update(
                name=VECTOR, kind="other vector", file=vector["file"], sha256=vector["sha256"], scale=vector["scale"],
                length="as in the file, times the scale",
            )  # fmt: skip
    for record in records:
        if record["condition"] == "steered":
            record["condition"] = VECTOR
    write(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [manifest, *records]))


def thin(split, every, out):
    found = json.loads(Path(split).read_text())
    write(out, json.dumps({**found, "test": found["test"][:: int(every)]}) + "\n")


# Tables


def nats(found):
    low, high = found["interval"]
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]"


def rate_table(folder, rates, seeds):
    runs = losses(folder, rates, seeds)
    rows = ""
    for rate, of in runs.items():
        for seed, run in zip(seeds.split(), of):
            kept, kl = best_epoch(run), run["price"]["kl_per_token"]["value"]
            rows += (
                f"| {rate} | {seed} | {kept['valid_loss']:.3f} | {kept['train_loss']:.3f} | {kept['step']} of {run['steps']} | "
                f"{kl:.3f} |\n"
            )
    head = (
        "| learning rate | seed | validation loss | training loss | kept step | KL, neutral text |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
    )
    pairs = next(iter(runs.values()))[0]["pairs"]
    return (
        f"{head}{rows}\nAdapters of rank 8, {pairs['train']} training pairs; loss on {pairs['valid']} validation pairs (that of "
        f"the untrained model is 0.693) at the kept epoch, which it chose. The lowest mean over seeds: {lowest(runs)}.\n"
    )


def table(folder, page, rates, seeds):
    folder = Path(folder)
    head = (
        "| | seed | scale | MC1, points | minus the vector's, points | KL, neutral text | KL, MMLU | MMLU, points |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    rows, n = "", {}
    for row in (folder / "rows.txt").read_text().splitlines():
        name, kind, seed, scale = row.split()
        steps = {of: f"{of}-{name}-at-{scale}" for of in ("questions", "subjects", "answers")}
        found = {of: printed(folder, step) for of, step in steps.items() if measured(folder, step)}
        n.update({of: results["n"] for of, results in found.items()})
        if "questions" not in found:
            continue
        mc1 = rows_of(found["questions"], "mc1")
        same = name == "constant"
        less = None if same else mc1[VECTOR]["steered_against"]
        cells = [
            NAMES[kind],
            seed,
            scale,
            points(mc1["steered"]["against_unsteered"]),
            "-" if less is None else points(less),
            nats(divergence(folder, name, scale)),
            nats(rows_of(found["answers"], "kl_per_token")["steered"]) if "answers" in found else "-",
            points(rows_of(found["subjects"], "accuracy")["steered"]["against_unsteered"]) if "subjects" in found else "-",
        ]
        rows += "| " + " | ".join(cells) + " |\n"
    passages = printed(folder, "train-constant")["price"]["passages"]
    of_mmlu = f"difference of the accuracy on {n['subjects']} questions, no examples" if "subjects" in n else "not measured"
    outside = f"on the unsteered model's answers to {n['answers']} questions of MMLU's test part" if "answers" in n else "not on MMLU"
    words = (
        "Scale 1 is that of the training; at another scale the divergence on neutral text is about that of the constant vector of seed 0. "
        f"MC1: difference to the unsteered model on {n['questions']} test questions; behind it the difference to the constant "
        "vector of seed 0 at scale 1 on the same questions; 95 % intervals over their categories. KL(unsteered \\|\\| steered), nats a "
        f"token, on {passages} neutral passages and {outside}. MMLU: {of_mmlu}. Learning rate of A and B: "
        f"{lowest(losses(folder, rates, seeds))}.\n"
    )
    between(page, "rates", rate_table(folder, rates, seeds))
    between(page, "adapters", f"{head}{rows}\n{words}")


COMMANDS = {f.__name__: f for f in (rate, match, beside, thin, table)}
if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])
