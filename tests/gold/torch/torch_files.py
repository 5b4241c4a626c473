#!/usr/bin/env python3
"""Small vector files as PyTorch users write them, and what is in them: values.json. PyTorch 2.15, numpy 2.

The forms: CAA saves one tensor a file, named by its layer; BiPO one tensor a file, named by epoch and layer; others a dict of
layer and tensor, a list, or a matrix with a row for each layer.
"""

import collections
import json
import pathlib

import numpy as np
import torch

here = pathlib.Path(__file__).parent
N = 6
expected = {}


def numbers(k):
    return torch.tensor([(-1.0) ** i * (k + i / 8) for i in range(N)], dtype=torch.float64)


def save(name, value, layers):
    torch.save(value, here / name)
    expected[name] = {str(layer): row.double().tolist() for layer, row in layers.items()}


f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
save("vec_layer_3_example.pt", numbers(3).to(f16), {3: numbers(3).to(f16)})
save("vec_ep1_layer2.pt", torch.nn.Parameter(numbers(2).to(f32)), {2: numbers(2)})
save("bf16_layer1.pt", numbers(1).to(bf16)[None, None], {1: numbers(1).to(bf16)})
save("f64_layer1.pt", numbers(1), {1: numbers(1)})
save("by_layer.pt", {layer: numbers(layer).to(f32) for layer in range(4)}, {i: numbers(i) for i in range(1, 4)})
named = collections.OrderedDict((f"model.layers.{i}.direction", numbers(i).to(f16)[None]) for i in (2, 1))
save("named.pt", named, {i: numbers(i).to(f16) for i in (1, 2)})
save("with_settings.pt", {"vector": numbers(2).to(f32), "layer": 2, "dtype": f32, "lr": 0.5}, {2: numbers(2)})
# Every second column of a wider matrix, transposed: strides, and an offset into a storage that others share.
wide = torch.zeros(2 * N, 3)
wide[::2] = torch.stack([numbers(i) for i in range(3)], 1).to(f32)
save("stack.pt", wide[::2].T, {i: numbers(i) for i in range(3)})
save("view_layer4.pt", wide[::2, 1], {4: numbers(1)})
save("list.pt", [numbers(i).to(f32) for i in (1, 2, 3)], {i: numbers(i) for i in (1, 2, 3)})
torch.save(numbers(1).to(f32), here / "old_layer1.pt", _use_new_zipfile_serialization=False)
torch.save({"layer_1": numbers(1).to(f32), "made": pathlib.PurePosixPath("x")}, here / "object.pt")
torch.save(torch.arange(N), here / "integers_layer1.pt")

arrays = {f"layer_{i}": numbers(i).numpy().astype(np.float32) for i in range(3)}
np.savez(here / "plain.npz", **arrays)
np.savez_compressed(here / "packed.npz", **arrays)
for name in ("plain.npz", "packed.npz"):
    expected[name] = {str(i): numbers(i).tolist() for i in (1, 2)}
np.savez(here / "one_layer5.npz", numbers(5).numpy())
expected["one_layer5.npz"] = {"5": numbers(5).tolist()}

(here / "values.json").write_text(json.dumps(expected, indent=0) + "\n")
