"""A whole run of BiPO and one of DPO in PyTorch, in f64, for tests/oracles.rs (with PyTorch on the CPU and the package gguf):

    cargo test --release --test oracles write_the_input_of_bipo_run -- --ignored
    python3 tests/gold/bipo_run.py target/tmp/bipo_run.gguf target/tmp/bipo_run_input.json > tests/gold/bipo_run.json

The model is a random one of the llama kind in F32. The input holds the pairs as tokens, the settings, and for each step its pairs with
their directions. A vector is added to the output of one block at every position; loss of Cao et al. 2024 (arXiv 2406.00045, eq. 4),
PyTorch's AdamW, a linear warm-up and half a cosine.
"""

import json
import sys

import torch
import torch.nn.functional as F
from gguf import GGUFReader
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

reader = GGUFReader(sys.argv[1])
given = json.load(open(sys.argv[2]))
weights = {t.name.removesuffix(".weight"): torch.tensor(t.data.copy(), dtype=torch.float64) for t in reader.tensors}


def setting(name: str):
    return reader.get_field(f"llama.{name}").contents()


N_HEAD, N_HEAD_KV, HEAD_DIM = (setting(f"attention.{k}") for k in ("head_count", "head_count_kv", "key_length"))
EPSILON = setting("attention.layer_norm_rms_epsilon")
ROPE_BASE = 10000.0  # llama.cpp's default


def rms_norm(x: torch.Tensor, name: str) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * weights[name]


def rope(x: torch.Tensor) -> torch.Tensor:
    """Rotates neighbouring components. x: [n_heads, n_tokens, head_dim]"""
    frequencies = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1).flatten(-2)


def attention(x: torch.Tensor, block: str) -> torch.Tensor:
    n = len(x)
    q, k, v = (
        (x @ weights[f"{block}.attn_{part}"].T).view(n, heads, HEAD_DIM).transpose(0, 1)
        for part, heads in (("q", N_HEAD), ("k", N_HEAD_KV), ("v", N_HEAD_KV))
    )
    k, v = (each.repeat_interleave(N_HEAD // N_HEAD_KV, 0) for each in (rope(k), v))
    scores = rope(q) @ k.transpose(1, 2) / HEAD_DIM**0.5
    scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ weights[f"{block}.attn_output"].T


def logits(tokens: list[int], added: torch.Tensor) -> torch.Tensor:
    x = weights["token_embd"][tokens]  # [n_tokens, n_embd]
    for i in range(setting("block_count")):
        block = f"blk.{i}"
        x = x + attention(rms_norm(x, f"{block}.attn_norm"), block)
        y = rms_norm(x, f"{block}.ffn_norm")
        gate, up, down = (weights[f"{block}.ffn_{part}"] for part in ("gate", "up", "down"))
        x = x + (F.silu(y @ gate.T) * (y @ up.T)) @ down.T
        if i == given["layer"]:
            x = x + added
    return rms_norm(x, "output_norm") @ weights["output"].T


def log_prob(prompt: list[int], answer: list[int], added: torch.Tensor) -> torch.Tensor:
    """Summed log-probability of the answer."""
    rows = logits(prompt + answer, added)[len(prompt) - 1 : -1].log_softmax(-1)
    return rows[range(len(answer)), answer].sum()


def run(steps: list) -> dict:
    v = torch.zeros(weights["output_norm"].numel(), dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(v)
    with torch.no_grad():
        reference = [[log_prob(p, answer, zero) for answer in (c, r)] for p, c, r in given["pairs"]]
    optimizer = torch.optim.AdamW([v], lr=given["lr"], weight_decay=given["weight_decay"])
    warmup = given["warmup"]
    warm = LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    scheduler = SequentialLR(optimizer, [warm, CosineAnnealingLR(optimizer, len(steps) - warmup)], [warmup])
    losses = []
    for members in steps:
        optimizer.zero_grad()
        each = []
        for pair, d in members:
            prompt, chosen, rejected = given["pairs"][pair]
            gains = [log_prob(prompt, a, d * v) - r for a, r in zip((chosen, rejected), reference[pair])]
            each.append(-F.logsigmoid(d * given["beta"] * (gains[0] - gains[1])))
        loss = torch.stack(each).mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return {"losses": losses, "vector": [float(f"{x:.9g}") for x in v.tolist()]}


runs = {name: run(steps) for name, steps in given["runs"].items()}
print(json.dumps({"torch": torch.__version__, "input": given} | runs))
