#!/usr/bin/env python3
"""Runs the test programs of the workspace side by side, one thread each, the longest first; then the documentation's tests.

`cargo test` runs one program after another, so that a core waits where the last test of a program takes long. Arguments go to
every test program (a filter, `--ignored`). Exits with 1 if a test failed or a program could not be built.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time

# The programs that take longest, in this order; the others follow by name.
LONGEST = ["train", "check", "devices", "architectures", "documented", "serve", "bench", "sweep", "cache", "joined", "synth"]


def build():
    """Builds all test programs. Returns (name, executable, folder of the package) of each."""
    command = ["cargo", "test", "--release", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(1)
    programs = []
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["profile"]["test"] and message["executable"]:
            folder = os.path.dirname(message["manifest_path"])
            name = message["target"]["name"]
            unit = "" if "test" in message["target"]["kind"] else " (unit tests)"
            programs.append((name + unit, message["executable"], folder))
    place = {name: i for i, name in enumerate(LONGEST)}
    return sorted(programs, key=lambda p: (place.get(p[0], len(LONGEST)), p[0]))


def main():
    arguments = sys.argv[1:]
    programs = build()
    waiting = queue.SimpleQueue()
    for program in programs:
        waiting.put(program)
    said = threading.Lock()
    failed = []
    started = time.monotonic()

    def work():
        while True:
            try:
                name, executable, folder = waiting.get_nowait()
            except queue.Empty:
                return
            start = time.monotonic()
            done = subprocess.run(
                [executable, "--test-threads", "1", *arguments],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            with said:
                print(f"\n{name}: {time.monotonic() - start:.1f} s", flush=True)
                sys.stdout.buffer.write(done.stdout)
                sys.stdout.flush()
                if done.returncode:
                    failed.append(name)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = [threading.Thread(target=work) for _ in range(cores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    doc = subprocess.run(["cargo", "test", "--release", "--workspace", "--doc", "--", *arguments], stdin=subprocess.DEVNULL)
    if doc.returncode:
        failed.append("documentation")
    print(f"\n{len(programs)} test programs and the documentation's tests in {time.monotonic() - started:.0f} s")
    for name in failed:
        print(f"failed: {name}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
