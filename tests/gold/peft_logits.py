"""Logits of a model with a LoRA adapter in PyTorch with peft, for tests/adapters.rs (PyTorch on the CPU, transformers, peft, gguf):

    bidpo vector convert a.gguf -o folder --model SmolLM2-135M-Instruct.Q4_1.gguf
    python3 tests/gold/peft_logits.py SmolLM2-135M-Instruct.Q4_1.gguf folder > tests/gold/peft_logits.json

The model is de-quantized to F32. The test makes the adapter and the folder anew, and compares the folder's hash. Written are some
logits behind the last token of a prompt, with the adapter and without it.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

PROMPT = [504, 2365, 282, 4649, 314]
PLACES = list(range(0, 49152, 1021))

path, folder = Path(sys.argv[1]), Path(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def logits(of) -> list[float]:
    with torch.no_grad():
        last = of(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    return [round(x, 5) for x in last[PLACES].tolist()]


plain = logits(model)
adapted = logits(PeftModel.from_pretrained(model, folder).eval())
weights = (folder / "adapter_model.safetensors").read_bytes()
print(
    json.dumps(
        {
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "prompt": PROMPT,
            "places": PLACES,
            "plain": plain,
            "adapted": adapted,
        }
    )
)
