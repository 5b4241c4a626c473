#!/usr/bin/env python3
"""Which architecture llama.cpp's converter gives each model_type of transformers: writes model_types.json.

Usage: model_types.py LLAMA_CPP_FOLDER TRANSFORMERS.whl

llama.cpp registers its converters by the names of classes (conversion/*.py); transformers maps each model_type to classes
(models/auto/modeling_auto.py). Both are read as text; nothing of them is run.
"""

import ast
import collections
import json
import pathlib
import re
import sys
import zipfile

llama, wheel = pathlib.Path(sys.argv[1]), sys.argv[2]
constants = (llama / "gguf-py/gguf/constants.py").read_text()
names = dict(re.findall(r'MODEL_ARCH\.(\w+): *"([^"]+)"', constants))
known = set(re.findall(r'LLM_ARCH_\w+, *"([^"]+)"', (llama / "src/llama-arch.cpp").read_text())) - {"clip", "(unknown)"}

# Converter class -> (its own architecture, its bases); registered class of transformers -> converter classes.
converters, registered = {}, []
for file in sorted((llama / "conversion").glob("*.py")):
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ClassDef):
            continue
        own = None
        for line in node.body:
            if isinstance(line, (ast.Assign, ast.AnnAssign)) and line.value is not None:
                target = line.targets[0] if isinstance(line, ast.Assign) else line.target
                if isinstance(target, ast.Name) and target.id == "model_arch":
                    own = ast.unparse(line.value).split(".")[-1]
        converters[node.name] = (own, [ast.unparse(base).split(".")[-1] for base in node.bases])
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "ModelBase.register":
                registered += [(argument.value, node.name) for argument in call.args]


def architecture(converter):
    own, bases = converters.get(converter, (None, []))
    return own or next(filter(None, map(architecture, bases)), None)


of_class = collections.defaultdict(set)
for name, converter in registered:
    found = names.get(architecture(converter) or "")
    if found in known:
        of_class[name].add(found)

text = zipfile.ZipFile(wheel).read("transformers/models/auto/modeling_auto.py").decode()
out = collections.defaultdict(set)
for _, body in re.findall(r"^(MODEL_\w*MAPPING_NAMES) *= *OrderedDict\((.*?)^\)", text, re.S | re.M):
    for kind, model in re.findall(r'\("([^"]+)", *\(?"?([^"\)]*)"?', body):
        out[kind] |= of_class.get(model, set())
out = {kind: sorted(found) for kind, found in sorted(out.items()) if found}
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps(out, indent=0) + "\n")
print(f"{len(out)} model types")
