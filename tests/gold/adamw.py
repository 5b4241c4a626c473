"""100 steps of PyTorch's AdamW in f64 with a learning-rate schedule, for tests/oracles.rs:

    python3 tests/gold/adamw.py > tests/gold/adamw.json      (PyTorch on the CPU)

Parameters and gradients come from a formula that both sides compute exactly; two blocks have learning rates of their own. The
schedules are PyTorch's: a linear warm-up (LinearLR), then half a cosine to zero (CosineAnnealingLR) or a straight line to zero (LinearLR).
"""

import json
import math

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

STEPS, WARMUP, N = 100, 10, 8
RATES = [0.02, 0.005]
DECAY = 0.05


def gradient(step: int, i: int) -> float:
    """A multiple of 1/64 between -8 and 8, and every so often far larger."""
    k = (step * 37 + i * 101 + step * i * 13) % 1024 - 512
    return k / 64 * (50 if (step + i) % 17 == 0 else 1)


def run(schedule: str) -> list[list[float]]:
    x = [torch.tensor([(i - 3.5) / 4 for i in range(b * N // 2, (b + 1) * N // 2)], dtype=torch.float64) for b in (0, 1)]
    for block in x:
        block.requires_grad_(True)
    optimizer = torch.optim.AdamW([{"params": [p], "lr": lr} for p, lr in zip(x, RATES)], weight_decay=DECAY)
    warm = LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP - 1)
    rest = STEPS - WARMUP
    fall = CosineAnnealingLR(optimizer, rest) if schedule == "cosine" else LinearLR(optimizer, 1.0, 0.0, rest)
    scheduler = SequentialLR(optimizer, [warm, fall], [WARMUP])
    kept = []
    for step in range(STEPS):
        for b, block in enumerate(x):
            block.grad = torch.tensor([gradient(step, b * N // 2 + i) for i in range(N // 2)], dtype=torch.float64)
        optimizer.step()
        scheduler.step()
        if step in (0, 9, 10, 49, 99):
            kept.append({"step": step + 1, "x": [v.item() for block in x for v in block]})
    return kept


assert math.isclose(gradient(0, 0), -8 * 50)
runs = {schedule: run(schedule) for schedule in ("cosine", "linear")}
head = {"torch": torch.__version__, "steps": STEPS, "warmup": WARMUP, "rates": RATES, "weight_decay": DECAY}
print(json.dumps(head | runs, indent=1))
