"""Directions of llama.cpp's cvector-generator, for tests/oracles.rs (with the packages numpy and gguf):

    cargo test --release --test oracles write_the_input_of_bipo_run -- --ignored
    python3 tests/gold/cvector_generator_mean.py llama-cvector-generator MODEL target/tmp/bipo_run.gguf \
        > tests/gold/cvector_generator_mean.json

MODEL is SmolLM2-135M-Instruct.Q4_1.gguf; the other is a random model in F32. The arguments keep the numbers exact: attention as single
operations, KV cache in F32, weights as they lie in the file.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from gguf import GGUFReader

PAIRS = [
    ("The meal was wonderful, and I enjoyed it.", "The meal was terrible, and I hated it."),
    ("I love this song.", "I hate this song."),
    ("What a bright and happy day!", "What a dark and gloomy day!"),
]
NUMBERS = [1, 2, 20, 29]  # where a model has them
ARGUMENTS = "--method mean -t 1 -fa off -ctk f32 -ctv f32 --no-repack".split()


def directions(program: str, model: str) -> dict[int, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        positive, negative, out = (Path(folder) / name for name in ("positive.txt", "negative.txt", "out.gguf"))
        positive.write_text("\n".join(p for p, _ in PAIRS))
        negative.write_text("\n".join(n for _, n in PAIRS))
        files = ["-m", model, "--positive-file", positive, "--negative-file", negative, "-o", out]
        subprocess.run([program, *ARGUMENTS, *files], check=True, stdout=sys.stderr)
        tensors = {t.name: t.data.tolist() for t in GGUFReader(out).tensors}
    found = {n: tensors[f"direction.{n}"] for n in NUMBERS if f"direction.{n}" in tensors}
    return {n: [float(f"{x:.6g}") for x in values] for n, values in found.items()}


program, *models = sys.argv[1:]
result = {Path(model).name: directions(program, model) for model in models}
print(json.dumps({"arguments": ARGUMENTS, "pairs": PAIRS, "directions": result}))
