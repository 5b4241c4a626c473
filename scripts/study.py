#!/usr/bin/env python3
"""Puts docs/study.md together: study.py FOLDER OUT.md REPORT.md"""

import os
import sys
from pathlib import Path

folder, out, report = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]).read_text()
times = dict(line.split("\t") for line in (folder / "times.tsv").read_text().splitlines())
total = sum(map(int, times.values()))


def card(name):
    """What a vector's card says of how it was made, and its losses."""
    lines = (folder / f"{name}.md").read_text().splitlines()
    start, end = lines.index("## How it was made") + 1, lines.index("## How to use it")
    keep = [line for line in lines[start:end] if not line.startswith(("## ", "Nothing was held out"))]
    return "\n".join(keep).strip().replace("\n\n\n", "\n")


def inspection():
    """What `data inspect` found out about the pairs, without the samples: they are the data's own text."""
    lines = (folder / "inspect.txt").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.split() == ["chosen", "rejected", "z"])
    end = next(i for i in range(start, len(lines)) if not lines[i].strip())
    beware = [line for line in lines if line.startswith(("Warning:", "Beware:", "A classifier"))]
    return "\n".join("    " + line for line in lines[start:end]) + "\n\n" + "\n>\n".join(f"> {line}" for line in beware)


def short():
    """What the figures of the test questions say: the words of the run whose setting was chosen on others."""
    sections = report.split("\n## ")
    chosen = next(s for s in sections if "was chosen among" in s)
    return "\n>\n".join(line for line in chosen.splitlines() if line.startswith("> "))


def price():
    """What the chosen scale costs, as the sweep says it."""
    lines = (folder / "sweep.txt").read_text().splitlines()
    said = [line for line in lines if line.startswith(("Chosen on the ", "Price at "))]
    return "\n>\n".join(f"> {line}" for line in said)


def minutes(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


rows = "\n".join(f"| {name} | {minutes(seconds)} |" for name, seconds in times.items())
page = f"""# A whole study: BiDPO on TruthfulQA, SmolLM2-135M-Instruct Q4_1

Written by `make study` ({minutes(total)} of computing on {os.cpu_count()} cores), figures as they came out. The plots, and the exact protocol of every
run: [study.html](study.html), one page to download and open. `scripts/study.sh` has the commands.

On the test questions:

{short()}

{price()}

## How

1. TruthfulQA (January 2025) is split: 256 questions to train on, 256 to choose by, the rest to report on; near-duplicates never
   cross. The pairs are each training question's best answer against its best incorrect one.
2. `bidpo train` makes a vector for the middle layer by BiDPO with the default settings, and one by DPO.
3. `bidpo sweep` tries scales on the 256 questions to choose by, and what each costs on MMLU and on neutral text. It chooses the
   smallest scale within one standard error of the best one, and the best of six system prompts.
4. The chosen scale is measured once on the test questions, beside everything that could do the same: ten random vectors, the
   mean difference of activations, DPO, the system prompt, as many solved examples as fit; and both models with the question
   hidden or replaced by another one, which shows how much of the gain needs the question.
5. With that scale the model answers in its own words, and a judge (the model itself: a weak one) compares the answers.

| step | minutes |
| --- | --- |
{rows}

## The pairs

{inspection()}

## The vectors

BiDPO:

{card("bidpo")}

DPO, on the same pairs:

{card("dpo")}

# Results

{report.strip()}
"""
temporary = out.with_suffix(".tmp")
temporary.write_text(page)
temporary.rename(out)
