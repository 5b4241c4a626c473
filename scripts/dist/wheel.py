#!/usr/bin/env python3
"""usage: wheel.py TREE OUT

Writes the wheel of the Python package into the folder OUT: python/bidpo, and the program from TREE, the unpacked archive of
scripts/dist.sh. PEP 427; times are SOURCE_DATE_EPOCH, so that the same files give the same bytes.
"""

import base64
import hashlib
import os
import pathlib
import re
import sys
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TAG = "py3-none-manylinux_2_28_x86_64"


def metadata(version):
    readme = (ROOT / "python" / "README.md").read_text(encoding="utf-8")
    return f"""Metadata-Version: 2.1
Name: bidpo
Version: {version}
Summary: Train steering vectors and LoRA adapters by gradient on the quantized GGUF model you already run
License: MIT OR Apache-2.0
Keywords: llama,gguf,steering,control-vector,bidpo
Classifier: Environment :: Console
Classifier: Intended Audience :: Science/Research
Classifier: Operating System :: POSIX :: Linux
Classifier: Programming Language :: Python :: 3
Classifier: Topic :: Scientific/Engineering :: Artificial Intelligence
Requires-Python: >=3.9
Provides-Extra: numpy
Requires-Dist: numpy>=1.24; extra == 'numpy'
Requires-Dist: safetensors>=0.4; extra == 'numpy'
Description-Content-Type: text/markdown

{readme}"""


def main(tree, out):
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    info, data = f"bidpo-{version}.dist-info", f"bidpo-{version}.data"
    files = {}  # name in the wheel: (bytes, executable)
    for path in sorted((ROOT / "python" / "bidpo").iterdir()):
        if path.suffix == ".py" or path.name == "py.typed":
            files[f"bidpo/{path.name}"] = (path.read_bytes(), False)
    files[f"{data}/scripts/bidpo"] = ((tree / "bin" / "bidpo").read_bytes(), True)
    for path in sorted((tree / "libexec" / "bidpo").iterdir()):
        files[f"{data}/data/libexec/bidpo/{path.name}"] = (path.read_bytes(), True)
    for path in sorted((tree / "share" / "man").rglob("*.1")):
        files[f"{data}/data/{path.relative_to(tree)}"] = (path.read_bytes(), False)
    for name in ["LICENSE-APACHE", "LICENSE-MIT", "THIRD-PARTY.md"]:
        files[f"{info}/licenses/{name}"] = ((tree / "share" / "doc" / "bidpo" / name).read_bytes(), False)
    files[f"{info}/METADATA"] = (metadata(version).encode(), False)
    files[f"{info}/WHEEL"] = (f"Wheel-Version: 1.0\nGenerator: bidpo\nRoot-Is-Purelib: false\nTag: {TAG}\n".encode(), False)

    def digest(content):
        return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()

    record = "".join(f"{name},sha256={digest(content)},{len(content)}\n" for name, (content, _) in files.items())
    files[f"{info}/RECORD"] = (f"{record}{info}/RECORD,,\n".encode(), False)
    when = time.gmtime(max(int(os.environ["SOURCE_DATE_EPOCH"]), 315532800))[:6]
    path = out / f"bidpo-{version}-{TAG}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
        for name, (content, executable) in files.items():
            entry = zipfile.ZipInfo(name, when)
            entry.create_system = 3
            entry.external_attr = (0o100755 if executable else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(entry, content)
    print(path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
