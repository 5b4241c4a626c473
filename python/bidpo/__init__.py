"""bidpo from Python: train steering vectors and LoRA adapters on quantized GGUF models, and use them.

Every function is one call of the program ``bidpo`` that this package brings along, and returns what that prints as JSON. Options that
a function does not name are keyword arguments, spelled as on the command line with underscores:
``--max-tokens 8`` is ``max_tokens=8``. ``bidpo COMMAND --help`` lists them. Files are files: vectors and adapters are
given and returned as paths.

>>> import bidpo
>>> done = bidpo.train("smollm2", "misconceptions", "mine.gguf", steps=8)
>>> bidpo.Model("smollm2").generate("How are you?", steering={"mine.gguf": 1.5}, max_tokens=16)
"""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any, Dict, Iterable, Mapping, Optional, Sequence, Union

from ._program import BidpoError, Option, UsageError, options, program, run, run_json

if TYPE_CHECKING:
    import numpy

__all__ = ["BidpoError", "Model", "UsageError", "eval", "extract", "program", "run", "train"]

Path = Union[str, "os.PathLike[str]"]


def train(model: Path, data: Path, output: Optional[Path] = None, *, quiet: bool = False, **more: Option) -> Dict[str, Any]:
    """Trains a vector, or with ``kind="lora"`` an adapter, and returns the report of ``bidpo train --json``.

    ``data`` is a built-in set or a file of pairs. ``report["vector"]`` is the path of what was written.
    """
    return run_json(["train", *options({"model": model, "data": data, "output": output, **more})], quiet=quiet)


def extract(
    model: Path,
    prompts: Union[Path, Sequence[str]],
    layers: Union[str, int, Iterable[int]] = "all",
    *,
    positions: str = "last",
    quiet: bool = True,
    **more: Option,
) -> Dict[str, "numpy.ndarray"]:
    """The residual stream after blocks: the arrays of ``bidpo extract``'s file by name, as they are in it (docs/chat.md).

    ``prompts`` is a file, or a list of texts. Needs numpy and safetensors (``pip install 'bidpo[numpy]'``).
    """
    from safetensors.numpy import load_file

    if not isinstance(layers, (str, int)):
        layers = ",".join(str(layer) for layer in layers)
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(prompts, (str, os.PathLike)):
            data: Path = prompts
        else:
            data = pathlib.Path(folder, "prompts.jsonl")
            data.write_text("".join(json.dumps(text) + "\n" for text in prompts), encoding="utf-8")
        out = pathlib.Path(folder, "activations.safetensors")
        given = {"model": model, "data": data, "layers": layers, "positions": positions, "output": out, **more}
        run_json(["extract", *options(given)], quiet=quiet)
        return load_file(out)


def eval(
    benchmark: str,
    model: Path,
    data: Optional[Path] = None,
    *,
    vector: Option = None,
    out: Optional[Path] = None,
    quiet: bool = False,
    **more: Option,
) -> Dict[str, Any]:
    """Measures on a benchmark (``truthfulqa``, ``mmlu``, ``choice``, ``text``, ...): the analysis of ``bidpo eval --json``.

    ``out`` keeps the raw results in a file, from which an interrupted run resumes.
    """
    given = {"model": model, "data": data, "vector": vector, "out": out, **more}
    return run_json(["eval", benchmark, *options(given)], quiet=quiet)


class Model:
    """A model, and what it is loaded with: options of ``bidpo generate`` such as ``threads`` that hold for each call."""

    def __init__(self, model: Path, **loaded: Option) -> None:
        self.model = model
        self.loaded = loaded

    def generate(
        self, prompt: str, steering: Optional[Mapping[Any, float]] = None, *, quiet: bool = True, **more: Option
    ) -> str:
        """The answer to a prompt. ``steering`` maps vectors, by path or name, to their scales."""
        return self.answer(prompt, steering, quiet=quiet, **more)["text"]

    def answer(
        self, prompt: str, steering: Optional[Mapping[Any, float]] = None, *, quiet: bool = True, **more: Option
    ) -> Dict[str, Any]:
        """As :meth:`generate`, with tokens, the reason it stopped, and the vectors: the object of ``bidpo generate --json``."""
        vectors = [f"{os.fspath(name)}:{scale}" for name, scale in (steering or {}).items()]
        given = {"model": self.model, "prompt": prompt, "vector": vectors, **self.loaded, **more}
        return run_json(["generate", *options(given)], quiet=quiet)

    def __repr__(self) -> str:
        return f"bidpo.Model({os.fspath(self.model)!r})"
