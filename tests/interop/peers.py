"""The other side of tests/interop.rs: numpy, safetensors, gguf and repeng read what bidpo wrote, and write what it shall read.

    python3 peers.py write FOLDER          files of each of them, from numbers that both sides compute
    python3 peers.py read FOLDER           what they find in bidpo's files, as JSON
    python3 peers.py adapter FOLDER        what gguf finds in adapter.gguf, as JSON

PYTHONPATH names the folder where scripts/setup.sh put the packages.
"""

import importlib.abc
import importlib.machinery
import json
import sys
import types
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

LAYERS = (2, 3, 10)
N_EMBD = 64


def numbers(layer):
    """Exact in F32, and in F16 as well."""
    return (np.arange(N_EMBD, dtype=np.float32) - 31.0) * layer / 4


class StandIn(types.ModuleType):
    """Any name is there; none does anything."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return object


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """For the packages that repeng imports for training only: they are gigabytes, and its export needs none of them."""

    ROOTS = ("torch", "sklearn", "transformers", "huggingface_hub", "accelerate")

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in self.ROOTS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        if module.__name__ == "torch":
            module.nn = StandIn("torch.nn")


def repeng_vector_class():
    sys.meta_path.insert(0, StandIns())
    if not hasattr(np, "float_"):
        np.float_ = np.float64  # its annotations are older than numpy 2
    from repeng.extract import ControlVector

    return ControlVector


def write(folder):
    # Highest layer first, as its training goes through a model.
    vector = repeng_vector_class()("llama", {layer: numbers(layer) for layer in reversed(LAYERS)})
    vector.export_gguf(folder / "repeng.gguf")

    writer = gguf.GGUFWriter(folder / "python.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(LAYERS))
    for layer in LAYERS:
        writer.add_tensor(f"direction.{layer}", numbers(layer))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    for kind in ("float32", "float64", "float16"):
        tensors = {f"direction.{layer}": numbers(layer).astype(kind) for layer in LAYERS}
        save_file(tensors, folder / f"{kind}.safetensors")
        np.save(folder / f"{kind}.npy", np.stack([numbers(layer) for layer in LAYERS]).astype(kind))
    np.save(folder / "one.npy", numbers(10))
    np.save(folder / "big-endian.npy", numbers(10).astype(">f4"))
    np.save(folder / "fortran.npy", np.asfortranarray(np.stack([numbers(layer) for layer in LAYERS])))
    np.save(folder / "integers.npy", np.arange(64))
    np.save(folder / "cube.npy", np.zeros((2, 3, 4), np.float32))


def read(folder):
    found = {}
    reader = gguf.GGUFReader(folder / "bidpo.gguf")
    found["gguf"] = {t.name: t.data.tolist() for t in reader.tensors}
    found["gguf_keys"] = {key: field.contents() for key, field in reader.fields.items() if "." in key}
    loaded = repeng_vector_class().import_gguf(folder / "bidpo.gguf")
    found["repeng"] = {f"direction.{layer}": d.tolist() for layer, d in loaded.directions.items()}
    found["repeng_model_type"] = loaded.model_type
    with safe_open(folder / "bidpo.safetensors", "numpy") as file:
        found["safetensors"] = {name: file.get_tensor(name).tolist() for name in file.keys()}
        found["safetensors_meta"] = json.loads(file.metadata()["control_vector"])
    array = np.load(folder / "bidpo.npy", allow_pickle=False)
    found["npy"], found["npy_dtype"] = array.tolist(), str(array.dtype)
    found["npy_one"] = np.load(folder / "bidpo-one.npy", allow_pickle=False).tolist()
    print(json.dumps(found))


def adapter(folder):
    reader = gguf.GGUFReader(folder / "adapter.gguf")
    found = {
        "keys": {key: field.contents() for key, field in reader.fields.items() if "." in key},
        # In numpy's order: the last dimension is contiguous.
        "tensors": {t.name: t.data.astype(np.float32).tolist() for t in reader.tensors},
        "types": sorted({t.tensor_type.name for t in reader.tensors}),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    {"write": write, "read": read, "adapter": adapter}[sys.argv[1]](Path(sys.argv[2]))
