"""Gradients through recurrent layers in PyTorch, in F64, for tests/oracles.rs (PyTorch on the CPU):

    python3 tests/gold/recurrent.py > tests/gold/recurrent.json

Each layer is the published recurrence, written out token by token and differentiated by autograd. Inputs are numbers of a
formula that is exact in binary. For each source: the gradient of sum(seed * y), all elements. Layouts are ggml's: the last index
of a list here is the fastest one.
"""

import json

import torch
from torch.nn import functional as F


SEED = 100


def numbers(shape: tuple[int, ...], which: int, low: float, high: float) -> torch.Tensor:
    """Numbers between `low` and `high`, others for each `which`."""
    n = 1
    for extent in shape:
        n *= extent
    i = torch.arange(n, dtype=torch.int64)
    part = ((i * 7919 + which * 104729 + i * i * 31) % 1024).double() / 1024
    return (low + (high - low) * part).float().double().reshape(shape)


def mamba(tokens: int, heads: int, dim: int, groups: int, state: int, decays: int) -> dict:
    """Gu & Dao 2023 (one decay for each channel and number of the state: dim 1), Dao & Gu 2024 (one for each head)."""
    x = numbers((tokens, heads, dim), 1, -1.5, 1.5)
    dt = numbers((tokens, heads), 2, -2.0, 2.0)
    a = numbers((heads, decays), 3, -1.25, -0.25)
    b = numbers((tokens, groups, state), 4, -1.5, 1.5)
    c = numbers((tokens, groups, state), 5, -1.5, 1.5)
    seed = numbers((tokens, heads, dim), SEED, -1.0, 1.0)
    sources = {"x": x, "dt": dt, "b": b, "c": c}
    for source in sources.values():
        source.requires_grad_()
    step = F.softplus(dt)
    h = torch.zeros(heads, dim, state, dtype=torch.float64)
    rows = []
    for t in range(tokens):
        of_head = lambda v: v[t].repeat_interleave(heads // groups, dim=0)[:, None, :]
        decay = torch.exp(step[t][:, None] * a)[:, None, :]
        h = decay * h + (step[t][:, None] * x[t])[:, :, None] * of_head(b)
        rows.append((h * of_head(c)).sum(-1))
    y = torch.stack(rows)
    (seed * y).sum().backward()
    return {
        "tokens": tokens,
        "heads": heads,
        "dim": dim,
        "groups": groups,
        "state": state,
        "decays": decays,
        "y": y.flatten().tolist(),
        "gradients": {name: source.grad.flatten().tolist() for name, source in sources.items()},
    }


def finished(sources: dict, rows: list, tokens: int) -> dict:
    """The values and gradients of a layer whose results a token are `rows`."""
    y = torch.stack(rows)
    (numbers(tuple(y.shape), SEED, -1.0, 1.0) * y).sum().backward()
    gradients = {name: source.grad.flatten().tolist() for name, source in sources.items() if name != "u"}
    return {"tokens": tokens, "y": y.flatten().tolist(), "gradients": gradients}


def matrix_scan(ranges: dict, step, n: int = 16, tokens: int = 66, widths: dict | None = None) -> dict:
    """A scan over a state `[head, value, key]`. `step` takes the state and the sources of a token to the next state and y."""
    sources = {}
    for which, (name, (low, high)) in enumerate(ranges.items()):
        shape = (1, n) if name == "u" else (tokens, 1, (widths or {}).get(name, n))
        sources[name] = numbers(shape, which + 1, low, high).requires_grad_()
    state = torch.zeros(1, n, n, dtype=torch.float64)
    rows = []
    for t in range(tokens):
        state, y = step(state, {name: s if name == "u" else s[t] for name, s in sources.items()})
        rows.append(y)
    return {"n": n, **finished(sources, rows, tokens)}


def outer(v: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return v[:, :, None] * k[:, None, :]


def read(state: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (state * k[:, None, :]).sum(-1)


def wkv6(m, s):
    """Peng et al. 2024 (arXiv 2404.05892), equation 19."""
    now = outer(s["v"], s["k"])
    return m * s["w"][:, None, :] + now, read(m + now * s["u"][:, None, :], s["r"])


def wkv7(m, s):
    """Peng et al. 2025 (arXiv 2503.14456), equation 17, with a = -kappa and b = kappa times the learning rate."""
    m = m * s["w"][:, None, :] + outer(read(m, s["a"]), s["b"]) + outer(s["v"], s["k"])
    return m, read(m, s["r"])


def gated(m, s):
    """Yang et al. 2023 (arXiv 2312.06635), equation 3, times 1/4."""
    m = m * s["g"][:, None, :] + outer(s["v"], s["k"])
    return m, 0.25 * read(m, s["q"])


def delta_net(m, s):
    """Yang et al. 2024 (arXiv 2412.06464), equation 10, y divided by the root of the head's width."""
    m = m * torch.exp(s["g"])[:, None, :]
    m = m + outer(s["beta"] * (s["v"] - read(m, s["k"])), s["k"])
    return m, read(m, s["q"]) / s["q"].shape[-1] ** 0.5


def rounded(value):
    """To 7 digits."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


DELTA = {"q": (-1, 1), "k": (-0.5, 0.5), "v": (-1, 1), "g": (-1, 0), "beta": (0, 1)}
cases = {
    "mamba": mamba(tokens=70, heads=6, dim=1, groups=1, state=4, decays=4),
    "mamba2": mamba(tokens=70, heads=4, dim=3, groups=2, state=5, decays=1),
    "wkv6": matrix_scan({"k": (-1, 1), "v": (-1, 1), "r": (-1, 1), "u": (-1, 1), "w": (0.5, 1)}, wkv6),
    "wkv7": matrix_scan({"r": (-1, 1), "w": (0.5, 1), "k": (-1, 1), "v": (-1, 1), "a": (-0.125, 0.125), "b": (-0.125, 0.125)}, wkv7, 64, 7),
    "gated": matrix_scan({"k": (-1, 1), "v": (-1, 1), "q": (-1, 1), "g": (0.5, 1)}, gated),
    "delta_net": matrix_scan(DELTA, delta_net, widths={"g": 1, "beta": 1}),
    "delta_net_by_key": matrix_scan(DELTA, delta_net, widths={"beta": 1}),
}
print(json.dumps({"torch": torch.__version__.split("+")[0], **rounded(cases)}, separators=(",", ":")))
