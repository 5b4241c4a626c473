"""Gradients of a LoRA adapter in PyTorch with peft, for tests/lora.rs (PyTorch on the CPU, transformers, peft, gguf):

    python3 tests/gold/lora_gradient.py SmolLM2-135M-Instruct.Q4_1.gguf > tests/gold/lora_gradient.json

The model is de-quantized to F32. A and B are numbers of a formula that is exact in binary, in the order of the GGUF file's rows:
transformers keeps the rows of Q and K in another order than llama's GGUF files, so those of B are moved. Written are
log p(chosen) - log p(rejected), and of the gradient of that difference with respect to each A and B the norm and some elements.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

BLOCKS = [27, 29]
RANK, ALPHA = 4, 6.0
NAMES = {
    "attn_k": "self_attn.k_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
}
PROMPT, CHOSEN, REJECTED = [504, 2365, 282, 4649, 314], [7042, 30, 198], [6330, 17]

path = Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
config = LoraConfig(
    r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=[n.split(".")[1] for n in NAMES.values()], layers_to_transform=BLOCKS
)
model = get_peft_model(model, config).eval()
heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}


def numbers(rows: int, columns: int, matrix: int, shift: int) -> torch.Tensor:
    i, j = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    return (((i * 131 + j * 17 + matrix * 7 + shift) % 1024 - 512) / 2**14).float()


def to_transformers(x: torch.Tensor, n: int) -> torch.Tensor:
    """Rows of the GGUF file, where the two halves of each head alternate, in transformers' order."""
    return x.view(n, x.shape[0] // n // 2, 2, x.shape[1]).transpose(1, 2).reshape(x.shape)


def to_gguf(x: torch.Tensor, n: int) -> torch.Tensor:
    return x.view(n, 2, x.shape[0] // n // 2, x.shape[1]).transpose(1, 2).reshape(x.shape)


pairs = []
for block in BLOCKS:
    for name, module in NAMES.items():
        layer = model.base_model.model.model.layers[block].get_submodule(module)
        a, b = (getattr(layer, f"lora_{side}")["default"].weight for side in "AB")
        matrix = len(pairs)
        with torch.no_grad():
            a.copy_(numbers(*a.shape, matrix, 0))
            of_b = numbers(*b.shape, matrix, 5)
            b.copy_(to_transformers(of_b, heads[name]) if name in heads else of_b)
        pairs.append((f"blk.{block}.{name}.weight", name, a, b))


def log_prob(answer: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([PROMPT + answer])).logits[0].double().log_softmax(-1)
    return sum(logits[len(PROMPT) - 1 + i, token] for i, token in enumerate(answer))


difference = log_prob(CHOSEN) - log_prob(REJECTED)
difference.backward()
matrices = []
for tensor, name, a, b in pairs:
    for side, x in (("a", a.grad), ("b", to_gguf(b.grad, heads[name]) if name in heads else b.grad)):
        flat = x.flatten().double()
        at = [len(flat) * k // 7 for k in range(7)]
        matrices.append(
            {"name": f"{tensor}.lora_{side}", "norm": flat.norm().item(), "at": at, "values": flat[at].tolist()}
        )
json.dump(
    {
        "blocks": BLOCKS,
        "rank": RANK,
        "alpha": ALPHA,
        "prompt": PROMPT,
        "chosen": CHOSEN,
        "rejected": REJECTED,
        "difference": difference.item(),
        "matrices": matrices,
    },
    sys.stdout,
    indent=1,
)
print()
