#!/usr/bin/env python3
"""Puts docs/study.md together: study.py FOLDER OUT.md REPORT.md"""

import os
import sys
from pathlib import Path

folder, out, report = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]).read_text()
times = dict(line.split("\t") for line in (folder / "times.tsv").read_text().splitlines())
total = sum(map(int, times.values()))


def text(name):
    return (folder / f"{name}.txt").read_text().strip()


def minutes(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


rows = "\n".join(f"| {name} | {minutes(seconds)} |" for name, seconds in times.items())
page = f"""# A whole study: BiDPO on TruthfulQA, SmolLM2-135M-Instruct Q4_1

Written by `make study` ({minutes(total)} on {os.cpu_count()} cores), figures as they came out. The plots, and the exact protocol of every
run: [study.html](study.html), one page to download and open. `scripts/study.sh` has the commands.

1. TruthfulQA (January 2025) is split: 256 questions to train on, 256 to choose by, the rest to report on; near-duplicates never
   cross. The pairs are each training question's best answer against its best incorrect one.
2. `bidpo train` makes a vector for the middle layer by BiDPO with the default settings, and one by DPO.
3. `bidpo sweep` tries scales on the 256 questions to choose by, and what each costs on MMLU and on running text.
4. The best scale is measured once on the test questions, beside everything that could do the same.
5. With that scale the model answers in its own words, and a judge (the model itself: a weak one) compares the answers.

| step | minutes |
| --- | --- |
{rows}

## The vectors

BiDPO:

{text("train-bidpo")}

DPO:

{text("train-dpo")}

# Results

{report.strip()}
"""
temporary = out.with_suffix(".tmp")
temporary.write_text(page)
temporary.rename(out)
