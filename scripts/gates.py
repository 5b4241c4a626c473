#!/usr/bin/env python3
"""Parts of scripts/gates.sh that bidpo has no command for. No package is needed.

gates.py prompts MMLU OUT             questions of MMLU's dev and test parts, as prompts
gates.py answers PROMPTS RESULTS OUT  prompts with the answers that `bidpo eval prompts` wrote
gates.py pca OUT CONSTANT.gguf INSIDE.safetensors OUTSIDE.safetensors
                                      a gate as CAST makes one (arXiv 2409.05907): first principal component, threshold by F1
gates.py scales RESULTS.jsonl         for each kind the scale that was best on the validation questions
gates.py table FOLDER PAGE.md         the measured table, between the markers of a page
"""

import csv
import json
import math
import random
import struct
import sys
from array import array
from operator import mul
from pathlib import Path

# Longer questions are left out: a retained text has at most 256 tokens, its answer among them.
LONGEST = 600
RETAINED_PER_SUBJECT = 2


def write(path, text):
    temporary = Path(f"{path}.tmp")
    temporary.write_text(text)
    temporary.rename(path)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


# Prompts


def questions(folder):
    """The questions of each subject, with and without their options, as `bidpo eval mmlu` shows them."""
    for file in sorted(Path(folder).glob("*.csv")):
        with open(file, newline="") as f:
            rows = [row for row in csv.reader(f) if len(row) == 6 and row[:2] != ["question", "choice0"]]
        shown = []
        for question, *options, _ in rows:
            listed = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options))
            text = f"{question.strip()}{listed}\nAnswer:"
            if len(text) <= LONGEST:
                shown.append((text, question.strip()))
        yield file.stem, shown


def prompts(mmlu, out):
    """Every other question has its options. The dev part is retained; the test part measures."""
    for part, name, each in (("dev", "retain", RETAINED_PER_SUBJECT), ("test", "outside", 2)):
        rows = [
            {"prompt": texts[i % 2], "subject": subject}
            for subject, shown in questions(Path(mmlu) / part)
            for i, texts in enumerate(shown[:each])
        ]
        if not rows:
            sys.exit(f"gates: {mmlu}/{part} holds no question of four options")
        write(Path(out) / f"{name}-prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def answers(asked, results, out, passages=None):
    said = {r["index"]: r["written"]["text"] for r in lines(results)[1:] if r["condition"] == "unsteered"}
    rows = [{"prompt": p["prompt"], "response": said[i]} for i, p in enumerate(lines(asked)) if said[i].strip()]
    if passages:
        rows += [{"text": " ".join(p.split())} for p in Path(passages).read_text().split("\n\n") if p.strip()]
    write(out, "".join(json.dumps(row) + "\n" for row in rows))


# A gate by principal components


def safetensors(path):
    data = Path(path).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    name, entry = next((k, v) for k, v in header.items() if k.startswith("layer."))
    start, end = entry["data_offsets"]
    numbers = array("f", data[8 + size + start : 8 + size + end])
    width = entry["shape"][1]
    return int(name.split(".")[1]), [numbers[i : i + width] for i in range(0, len(numbers), width)]


def dot(a, b):
    return sum(map(mul, a, b))


def normalised(row):
    """A row by its root mean square: what bidpo's gates read."""
    factor = 1 / math.sqrt(dot(row, row) / len(row) + 1e-12)
    return [factor * x for x in row]


def unit(row):
    length = math.sqrt(dot(row, row))
    return [x / length for x in row]


def component(rows, steps=200):
    """First principal component, by the power method."""
    draw = random.Random(0)
    axis = unit([draw.gauss(0, 1) for _ in rows[0]])
    for _ in range(steps):
        sums = [0.0] * len(axis)
        for row in rows:
            c = dot(row, axis)
            sums = [s + c * x for s, x in zip(sums, row)]
        new = unit(sums)
        change, axis = 1 - abs(dot(new, axis)), new
        if change < 1e-12:
            break
    return axis


def threshold(inside, outside):
    """The threshold with the highest F1 of `inside` above it."""
    scored = sorted([(s, True) for s in inside] + [(s, False) for s in outside], reverse=True)
    best, hits = (0.0, 0.0), 0
    for i, (score, is_inside) in enumerate(scored[:-1]):
        hits += is_inside
        f1 = 2 * hits / (i + 1 + len(inside))
        best = max(best, (f1, (score + scored[i + 1][0]) / 2))
    return best


def pca(out, constant, inside, outside):
    layer, on = safetensors(inside)
    _, off = safetensors(outside)
    on, off = [normalised(row) for row in on], [normalised(row) for row in off]
    mean = lambda rows: [sum(column) / len(rows) for column in zip(*rows)]
    centre = [(a + b) / 2 for a, b in zip(mean(on), mean(off))]
    axis = component([[x - c for x, c in zip(row, centre)] for row in on + off])
    # The sign of a component is free: both are tried, as CAST tries both directions of the comparison.
    found = [(*threshold([dot(axis, r) * sign for r in on], [dot(axis, r) * sign for r in off]), sign) for sign in (1, -1)]
    f1, at, sign = max(found)
    axis = [sign * x for x in axis]
    scores = [dot(axis, row) for row in on + off]
    spread = math.sqrt(sum((s - at) ** 2 for s in scores) / len(scores))
    # A threshold: the sigmoid goes from shut to open within a hundredth of the scores' spread.
    file = {
        "general.architecture": "bidpo.intervention",
        "bidpo.file_version": 1,
        "bidpo.kind": "prompt-gate",
        "bidpo.scope": "all",
        "bidpo.tau": spread / 100,
        "bidpo.decided_by": "last",
        "bidpo.method": f"first principal component of {len(on)} prompts inside and {len(off)} outside, F1 {f1:.3f}",
    }
    vector = direction(constant, layer)
    tensors = {f"gate.weight.{layer}": axis, f"gate.bias.{layer}": [-at], f"vector.{layer}": vector}
    write_gguf(out, file, tensors)
    print(f"F1 {f1:.3f} on the {len(on)} prompts inside and {len(off)} outside that it was made from")


ALIGN = 32


def write_gguf(path, keys, tensors):
    text = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
    body = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))
    for key, value in keys.items():
        body += text(key)
        if isinstance(value, str):
            body += struct.pack("<I", 8) + text(value)
        elif isinstance(value, int):
            body += struct.pack("<Iq", 11, value)
        else:
            body += struct.pack("<Id", 12, value)
    data = b""
    for name, numbers in tensors.items():
        data += b"\0" * (-len(data) % ALIGN)
        body += text(name) + struct.pack("<IQIQ", 1, len(numbers), 0, len(data))
        data += array("f", numbers).tobytes()
    temporary = Path(f"{path}.tmp")
    temporary.write_bytes(body + b"\0" * (-len(body) % ALIGN) + data + b"\0" * (-len(data) % ALIGN))
    temporary.rename(path)


def direction(path, layer):
    """The vector direction.LAYER of a GGUF file: its tensors are read, its keys skipped."""
    data = Path(path).read_bytes()
    at = 8
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def number(form):
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize(form)
        return value

    def string():
        nonlocal at
        n = number("Q")
        at += n
        return data[at - n : at].decode()

    def skip(kind):
        nonlocal at
        if kind == 8:
            string()
        elif kind == 9:
            of, n = number("I"), number("Q")
            for _ in range(n):
                skip(of)
        else:
            at += sizes[kind]

    n_tensors, n_keys = number("Q"), number("Q")
    for _ in range(n_keys):
        string()
        skip(number("I"))
    found = None
    for _ in range(n_tensors):
        name, ne = string(), [number("Q") for _ in range(number("I"))]
        number("I")
        offset = number("Q")
        if name == f"direction.{layer}":
            found = (offset, ne[0])
    if found is None:
        sys.exit(f"gates: {path} has no direction.{layer}")
    start = at + (-at % ALIGN) + found[0]
    return array("f", data[start : start + 4 * found[1]])


# Results


def right(record):
    """MC1: the best answer above every false one."""
    scores = record["views"][0]["logprobs"]
    of = lambda truth: [s for s, a in zip(scores, record["answers"]) if a.get("mc1") is truth]
    return of(True)[0] > max(of(False))


def scales(results):
    """Conditions are called KIND at SCALE, but for that of --vector: `steered`, the constant vector at scale 1."""
    hits = {}
    for record in lines(results)[1:]:
        hits.setdefault(record["condition"], []).append(right(record))
    hits["constant at 1"] = hits.pop("steered")
    best = {}
    for name, of in hits.items():
        if " at " in name:
            kind, scale = name.split(" at ")
            key = (sum(of), -float(scale))
            best[kind] = max(best.get(kind, (key, scale)), (key, scale))
    for kind, (key, scale) in best.items():
        n = len(hits["unsteered"])
        print(kind, scale, f"{100 * key[0] / n:.1f}", n)


NAMES = {
    "constant": "constant vector",
    "constant-retain": "constant vector, retention",
    "prompt-only": "constant vector, scope `prompt`",
    "cast": "PCA gate on the prompt, as CAST",
    "linear-gate": "`linear-gate`",
    "gate": "`gate`",
    "prompt-gate": "`prompt-gate`",
    "lowrank": "`lowrank`, rank 8",
}


def report(folder, name):
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return found[0] if isinstance(found, list) else found


def rows_of(results, measure):
    table = next((m for m in results["measures"] if m["measure"] == measure), None)
    return {c["condition"]: c for c in table["conditions"]} if table else {}


def points(difference):
    low, high = difference["interval"]
    return f"{100 * difference['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def gates_of(path):
    """Of each condition: the fraction of the items at whose answers the gates are more than half open on average."""
    found = {}
    for record in lines(path)[1:]:
        gate = record["text"].get("gate")
        if gate:
            found.setdefault(record["condition"], []).append(gate["opening"] > 0.5 * record["text"]["n_tokens"])
    return {name: (sum(of), len(of)) for name, of in found.items()}


def table(folder, page):
    folder = Path(folder)
    chosen = [line.split() for line in (folder / "scales.txt").read_text().splitlines()]
    condition = lambda kind: "steered" if kind == "constant" else kind
    text, outside, mmlu = (report(folder, name) for name in ("text", "outside", "mmlu"))
    opened = {name: gates_of(folder / f"{name}.jsonl") for name in ("inside", "outside")}
    kl = lambda results, kind: rows_of(results, "kl_per_token")[condition(kind)]["value"]
    base = rows_of(report(folder, "test-constant"), "mc1")["steered"]["against_unsteered"]["difference"]
    head = (
        "| | scale | MC1, points | of the constant's gain | with the question hidden | KL, neutral text | KL, MMLU | "
        "MMLU, points | open inside | open outside |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    body, target = "", []
    for kind, scale, *_ in chosen:
        test = report(folder, f"test-{kind}")
        if test is None:
            continue
        mc1 = rows_of(test, "mc1")
        difference = mc1["steered"]["against_unsteered"]
        hidden = 100 * (mc1["question hidden, steered"]["value"] - mc1["question hidden"]["value"])
        # A constant vector that gains nothing has no part to keep: no kind reaches the target then.
        share = difference["difference"] / base if base > 0 else math.nan
        kls = [kl(results, kind) for results in (text, outside)]
        part = [value / kl(results, "constant") for value, results in zip(kls, (text, outside))]
        accuracy = rows_of(mmlu, "accuracy")[condition(kind)]["against_unsteered"] if mmlu else None
        opens = []
        for where in ("inside", "outside"):
            hit, n = opened[where].get(condition(kind), (None, 0))
            opens.append("-" if hit is None else f"{100 * hit / n:.0f} % of {n}")
        cells = [
            NAMES[kind],
            scale,
            points(difference),
            "-" if math.isnan(share) else f"{100 * share:.0f} %",
            f"{hidden:+.1f}",
            *(f"{value:.3f} ({100 * p:.0f} %)" for value, p in zip(kls, part)),
            points(accuracy) if accuracy else "-",
            *opens,
        ]
        body += "| " + " | ".join(cells) + " |\n"
        if kind not in ("constant", "constant-retain") and share >= 0.85 and max(part) <= 0.15:
            target.append(NAMES[kind])
    n = {name: report(folder, name)["n"] for name in ("test-constant", "text", "outside")}
    of_mmlu = f"difference of the accuracy on {mmlu['n']} questions, no examples" if mmlu else "not measured"
    valid = int(chosen[0][3])
    chose = (
        f"The scale of each kind was the best of its scales on {valid} validation questions."
        if valid
        else "Each kind acts as it was trained, at scale 1; no scale was chosen."
    )
    reached = f"Reached by {', '.join(target)}." if target else "No kind reaches it."
    words = (
        f"MC1: difference to the unsteered model on the {n['test-constant']} test questions, 95 % interval over their "
        f"categories. {chose} KL(unsteered \\|\\| "
        f"steered), nats a token, on {n['text']} neutral passages (for a prompt gate the first half of "
        f"each stands for the prompt and stays as it is) and on the unsteered model's answers to {n['outside']} "
        f"questions of MMLU's test part (in brackets: part of the constant vector's). MMLU: {of_mmlu}. Open: prompts at whose "
        "answers the gate is more than half open on average, those inside being test questions of TruthfulQA with their best answers.\n\n"
        "Target: at least 85 % of the constant vector's gain of MC1 at no more than 15 % of its KL, on neutral text and on "
        f"MMLU. {reached}\n"
    )
    between(page, "gates", head + body + "\n" + words)
    if report(folder / "food", "outside"):
        between(page, "food", style(folder / "food", folder))


def between(page, name, text):
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, rest = Path(page).read_text().split(begin)
    write(page, before + begin + "\n" + text + "\n" + end + rest.split(end)[1])


def style(food, folder):
    """Flowery answers about food: the change of the held-out pairs, and what happens to other prompts."""
    rows = ""
    for kind, condition, name in (
        ("constant", "steered", "constant vector"),
        ("prompt-gate", "prompt-gate", "`prompt-gate`"),
    ):
        held = next(
            row
            for row in json.loads((folder / f"food-{kind}.txt").read_text())["heldout"]
            if row["condition"] == "vector, scale +1"
        )
        change = held["logp_diff_change"]
        opened = {part: gates_of(food / f"{part}.jsonl").get(condition) for part in ("inside", "outside")}
        cells = [
            name,
            f"{change['mean']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]",
            *(f"{rows_of(report(food, part), 'kl_per_token')[condition]['value']:.3f}" for part in opened),
            *("-" if of is None else f"{of[0]} of {of[1]}" for of in opened.values()),
        ]
        rows += "| " + " | ".join(cells) + " |\n"
    head = (
        "| | change on test pairs, nats | KL inside | KL outside | open inside | open outside |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
    )
    n = held["n"]
    return (
        head + rows + f"\nChange of the log-probability difference, flowery minus plain, on {n} held-out pairs about food, 95 % "
        "interval. KL: nats a token on the unsteered model's answers to other prompts of `data/food-or-not.jsonl`.\n"
    )


COMMANDS = {f.__name__: f for f in (prompts, answers, pca, scales, table)}
if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])
