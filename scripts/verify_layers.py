#!/usr/bin/env python3
"""Tries `bidpo verify` on vectors whose block is known: the figures of docs/adapters.md (Layers).

usage: scripts/verify_layers.py BIDPO MODEL FOLDER

Vectors are made of activations that `bidpo extract` reads from 48 pairs, by mean difference and by principal component (as repeng
takes it), at the layers 2-27 and at layer 15; they are numbered rightly, one too low and one too high, and checked with 16 other
pairs. Prints a JSON line a case, then how often the block with the largest mean cosine was the true one, and how often a verdict named
a block. Needs numpy and safetensors.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

MADE, HELD = 48, 24
LAYERS = range(30)


def run(bidpo, *args):
    done = subprocess.run([bidpo, *map(str, args)], capture_output=True, text=True)
    if not done.stdout and done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def activations(bidpo, model, folder, name, rows):
    """By position and answer, the residual stream at all layers."""
    found = {}
    for answer in ("chosen", "rejected"):
        prompts = folder / f"{name}.{answer}.jsonl"
        prompts.write_text("".join(json.dumps(f"{r['prompt']}\n{r[answer]}") + "\n" for r in rows))
        for position in ("last", "mean"):
            out = folder / f"{name}.{position}.{answer}.safetensors"
            run(bidpo, "extract", "-m", model, "-d", prompts, "--layers", "all", "--positions", position, "-o", out, "--force")
            found[position, answer] = load_file(str(out))
    return found


def directions(acts, method):
    position = "mean" if method == "mean" else "last"
    out = {}
    for layer in LAYERS:
        key = f"layer.{layer}"
        d = acts[position, "chosen"][key].astype(np.float64) - acts[position, "rejected"][key]
        v = d.mean(0)
        if method == "pca":
            first = np.linalg.svd(np.concatenate([d, -d]), full_matrices=False)[2][0]
            v = first * np.sign(first @ v) * np.linalg.norm(v)
        out[layer] = v.astype(np.float32)
    return out


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    bidpo, model, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(__file__).resolve().parent.parent / "data" / "misconceptions.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    held = folder / "held.jsonl"
    held.write_text("".join(json.dumps(r) + "\n" for r in rows[MADE : MADE + HELD]))
    acts = activations(bidpo, model, folder, "made", rows[:MADE])
    cases = leads = named = 0
    for method in ("last", "mean", "pca"):
        true = directions(acts, method)
        for layers in ([*range(2, 28)], [15]):
            for shift in (-1, 0, 1):
                vector = folder / f"{method}.{layers[0]}.{shift}.safetensors"
                save_file({f"direction.{n}": true[n + shift] for n in layers}, str(vector), {"model_hint": "llama"})
                said = run(bidpo, "verify", vector, "-m", model, "--pairs", held, "--limit", 16, "--json")
                found = json.loads(said)["layers"]
                cosines = [found["block_n_minus_1"], found["block_n"], found["block_n_plus_1"]]
                cases += 1
                leads += int(np.argmax(cosines)) == shift + 1
                named += found["belongs_to"] is not None
                row = {"method": method, "layers": len(layers), "shift": shift, "cosines": cosines, "verdict": found["verdict"]}
                print(json.dumps(row), flush=True)
    print(f"the true block has the largest mean cosine in {leads} of {cases} cases; a verdict named a block in {named}")


if __name__ == "__main__":
    main()
