#!/usr/bin/env python3
"""usage: parts.py licences|sbom

Prints what the program is made of, from `cargo metadata`: the crates that are linked into it, and llama.cpp. `licences` is their
licences with their texts, as Markdown; `sbom` a list for machines, in the form CycloneDX 1.5 (JSON). The same lock file gives the
same bytes.
"""

import json
import pathlib
import re
import subprocess
import sys

TARGET = "x86_64-unknown-linux-gnu"
TEXTS = re.compile(r"(licen[sc]e|copying|notice|unlicense)", re.IGNORECASE)


def linked_crates():
    """The packages that the crate bidpo links, without those of tests and build scripts, by name and version."""
    out = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET],
        check=True, capture_output=True, text=True,
    ).stdout
    data = json.loads(out)
    packages = {package["id"]: package for package in data["packages"]}
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    seen, waiting = set(), [data["resolve"]["root"]]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        for dep in nodes[one]["deps"]:
            if any(kind["kind"] is None for kind in dep["dep_kinds"]):
                waiting.append(dep["pkg"])
    return sorted((packages[one] for one in seen), key=lambda p: (p["name"], p["version"]))


def texts(package):
    """The licence files of a package: its own, and llama.cpp's where it brings that."""
    folder = pathlib.Path(package["manifest_path"]).parent
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and TEXTS.match(path.name)]
    files += [path for path in [folder / "llama.cpp" / "LICENSE"] if path.is_file()]
    return [(str(path.relative_to(folder)), path.read_text(encoding="utf-8", errors="replace").strip()) for path in files]


def licences(packages):
    print("# Licences of what bidpo is made of\n")
    print("The program holds these packages. Texts that several of them share are printed once.\n")
    print("| package | version | licence | authors |\n| --- | --- | --- | --- |")
    for p in packages:
        print(f"| {p['name']} | {p['version']} | {p['license'] or 'see its text'} | {', '.join(p['authors']).replace('|', '/')} |")
    shared = {}
    for p in packages:
        for name, text in texts(p):
            shared.setdefault(text, []).append(f"{p['name']} {p['version']} ({name})")
    print("\nThe C++ library of GCC, which is linked in, is under the GPL 3 with the GCC Runtime Library Exception 3.1.")
    for text, owners in sorted(shared.items(), key=lambda item: item[1][0]):
        fence = "`" * 4
        print(f"\n## {', '.join(owners)}\n\n{fence}text\n{text}\n{fence}")


def sbom(packages):
    lock = pathlib.Path("Cargo.lock").read_text(encoding="utf-8")
    sums = dict(
        ((name, version), digest)
        for name, version, digest in re.findall(r'name = "([^"]+)"\nversion = "([^"]+)"\nsource = [^\n]+\nchecksum = "([^"]+)"', lock)
    )

    def component(p, kind):
        purl = f"pkg:cargo/{p['name']}@{p['version']}"
        one = {"type": kind, "bom-ref": purl, "name": p["name"], "version": p["version"], "purl": purl}
        if p["license"]:
            one["licenses"] = [{"expression": p["license"].replace("/", " OR ")}]
        if (p["name"], p["version"]) in sums:
            one["hashes"] = [{"alg": "SHA-256", "content": sums[p["name"], p["version"]]}]
        return one

    own = next(p for p in packages if p["name"] == "bidpo")
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(own, "application")},
        "components": [component(p, "library") for p in packages if p is not own],
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    forms = {"licences": licences, "sbom": sbom}
    if len(sys.argv) != 2 or sys.argv[1] not in forms:
        sys.exit(__doc__)
    forms[sys.argv[1]](linked_crates())
