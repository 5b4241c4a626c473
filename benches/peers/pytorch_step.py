"""BiPO's training step in PyTorch, on the pairs that `bidpo bench --write-pairs` wrote.

As BiPO does it (Cao et al. 2024, arXiv 2406.00045): the model in full precision, here de-quantized from the same GGUF
file; chosen and rejected answers of all pairs as one padded batch, each with a prompt of its own; a vector added to the
output of block L at every position; a policy pass, a reference pass without the vector and without gradients, the
sigmoid loss, and the backward pass to the vector. The weights are frozen, so only the blocks above L are differentiated.
Two copies of the model, as in BiPO: the reference is a model of its own.

With `--lora RANK` the step of an adapter by peft instead: A and B of that rank on all seven projections of every block above L, the
loss of DPO, no vector.

Prints one JSON object: what was measured, and the milliseconds of each step. Nothing is downloaded.
"""

import argparse
import itertools
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM

BETA = 0.1


def load(path: Path, dtype: torch.dtype) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=dtype)
    model.requires_grad_(False)
    return model.eval()


def batch(pairs: list[dict]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, attention mask and mask of the answers' tokens; first all chosen, then all rejected. [2 * n_pairs, longest]"""
    rows = [(p["prompt"], p[which]) for which in ("chosen", "rejected") for p in pairs]
    longest = max(len(q) + len(a) for q, a in rows)
    shape = (len(rows), longest)
    tokens, mask, answer = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    for i, (q, a) in enumerate(rows):
        n = len(q) + len(a)
        tokens[i, :n] = torch.tensor(q + a)
        mask[i, :n] = 1
        answer[i, len(q) : n] = 1
    return tokens, mask, answer


def log_prob(model, tokens, mask, answer) -> torch.Tensor:
    """Summed log-probability of each row's answer. [2 * n_pairs]"""
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    each = F.log_softmax(logits, -1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return (each * answer[:, 1:]).sum(-1)


def add_at(model, layer: int, holder: dict) -> None:
    """Adds holder["added"] to the output of block `layer`, counted from 0, as `direction.N` of a control vector is."""

    def hook(_module, _inputs, output):
        if isinstance(output, tuple):
            return (output[0] + holder["added"].to(output[0].dtype), *output[1:])
        return output + holder["added"].to(output.dtype)

    model.model.layers[layer].register_forward_hook(hook)


def adapt(model, layer: int, rank: int):
    """The model with an adapter on the projections of all blocks above a layer."""
    from peft import LoraConfig, get_peft_model

    projections = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    blocks = list(range(layer + 1, model.config.num_hidden_layers))
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=projections, layers_to_transform=blocks)
    return get_peft_model(model, config)


def steps(path: Path, file: dict, dtype: torch.dtype, rank: int = 0):
    """Takes a step whenever it is asked for one; yields its milliseconds, and what can be compared with bidpo."""
    policy, reference = load(path, dtype), load(path, dtype)
    vector = torch.zeros(policy.config.hidden_size, requires_grad=True)
    holder = {}
    if rank:
        policy = adapt(policy, file["layer"], rank)
        trained = [p for p in policy.parameters() if p.requires_grad]
    else:
        add_at(policy, file["layer"], holder)
        trained = [vector]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.05)
    tokens, mask, answer = batch(file["pairs"])
    n = len(file["pairs"])
    for step in itertools.count():
        started = time.perf_counter()
        d = 1.0 if rank or step % 2 == 0 else -1.0
        holder["added"] = d * vector
        with torch.no_grad():
            before = log_prob(reference, tokens, mask, answer)
        after = log_prob(policy, tokens, mask, answer)
        gain = after - before
        loss = -F.logsigmoid(d * BETA * (gain[:n] - gain[n:])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken = 1e3 * (time.perf_counter() - started)
        print(f"{dtype}, step {step}: {taken:.0f} ms, loss {loss.item():.4f}", file=sys.stderr)
        gap = (before[:n] - before[n:]).tolist()
        norm = torch.stack([p.grad.float().norm() for p in trained]).norm().item()
        yield taken, {"reference_gaps": gap, "gradient_norm": norm}


def serve(each) -> None:
    """A step for each line read, its milliseconds as a line; the first, a rehearsal, unasked."""
    print(next(each)[0], flush=True)
    for _ in sys.stdin:
        print(next(each)[0], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["f32", "bf16"], help="one type alone, so that its peak memory is its own")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="the step of an adapter instead (needs peft)")
    parser.add_argument("--serve", action="store_true", help="take a step for each line read; needs --only")
    args = parser.parse_args()
    if args.serve and not args.only:
        parser.error("--serve needs --only")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    file = json.loads(args.pairs.read_text())
    pairs = file["pairs"]
    types = {"f32": torch.float32, "bf16": torch.bfloat16}
    if args.serve:
        serve(steps(args.model, file, types[args.only], args.lora))
        return
    result = {
        "model": file["model"],
        "layer": file["layer"],
        "threads": args.threads,
        "n_pairs": len(pairs),
        "lora_rank": args.lora,
        "unique_tokens": sum(len(p["prompt"]) + len(p["chosen"]) + len(p["rejected"]) for p in pairs),
        "tokens": sum(2 * len(p["prompt"]) + len(p["chosen"]) + len(p["rejected"]) for p in pairs),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    for name in [args.only] if args.only else types:
        taken = list(itertools.islice(steps(args.model, file, types[name], args.lora), args.rounds + 1))
        times, check = [t for t, _ in taken[1:]], taken[-1][1]  # the first is a rehearsal
        result[f"{name}_ms"] = times
        result[f"{name}_median_ms"] = statistics.median(times)
        result[f"{name}_check"] = check
        # ru_maxrss: kilobytes on Linux, bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        result[f"{name}_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
