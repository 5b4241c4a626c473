#!/usr/bin/env python3
"""Kills, a full disk, and hostile clients: what `bidpo` does under them, written as a table into docs/reliability.md.

    scripts/torture.py BIDPO [--minutes N] [--seed S] [--no-page]

A tiny random model, one thread, the loopback address. Only Python's standard library. Ends with 1 if there was a fault.
"""

import argparse
import csv
import datetime
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs/reliability.md"
BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"
ENV = {**os.environ, "BIDPO_THREADS": "1", "BIDPO_NEUTRAL_PASSAGES": "2"}
# Shares of the time.
SHARES = {"train": 0.12, "lora": 0.12, "eval": 0.12, "extract": 0.06, "sweep": 0.12, "serve": 0.12, "disk": 0.10, "load": 0.24}


class Faults(list):
    def add(self, what):
        print(f"FAULT: {what}", flush=True)
        self.append(what)


FAULTS = Faults()
ROWS = []


def row(what, how, result):
    ROWS.append((what, how, result))
    print(f"{what} | {how} | {result}", flush=True)


def counted(n, one, many=None):
    return f"{n:,} {one if n == 1 else many or one + 's'}"


# An adapter for two of the four blocks.
LORA = "--kind lora --rank 2 --layers 1-2 --batch 4 --lr 1e-2"


class Bench:
    """The folder with model, data, a vector, and an adapter."""

    def __init__(self, bidpo, folder):
        self.bidpo, self.folder = bidpo, folder
        shape = "--arch llama --layers 4 --embd 32 --heads 1 --kv-heads 1 --head-dim 32 --ff 32 --vocab 300 --ctx 2048 --type q8_0"
        self.must(["synth", *shape.split(), "-o", "m.gguf"])
        with open(folder / "p.jsonl", "w") as file:
            for i in range(40):
                pair = {"prompt": f"Is {i} a number?", "chosen": f" Yes, it is number {i}.", "rejected": f" No, {i} is a word."}
                file.write(json.dumps(pair) + "\n")
        with open(folder / "prompts.txt", "w") as file:
            file.writelines(f"What is number {i} good for, and for whom?\n" for i in range(600))
        with open(folder / "q.csv", "w") as file:
            out = csv.writer(file)
            out.writerow(["Category", "Question", "Best Answer", "Best Incorrect Answer", "Correct Answers", "Incorrect Answers"])
            for i in range(60):
                yes, no = f"Yes, {i} and more", f"No, {i} does not"
                out.writerow([f"c{i % 3}", f"Does topic{i} make thing{i}?", no, yes, no, yes])
        self.must(["train", "-m", "m.gguf", "--data", "p.jsonl", "-o", "v.gguf", "--layer", "2", "--epochs", "2"])
        self.must(["train", "-m", "m.gguf", "--data", "p.jsonl", "-o", "a.gguf", *LORA.split(), "--epochs", "1"])
        self.must(["data", "split", "q.csv", "--train", "20", "--valid", "20", "-o", "split.json"])

    def must(self, args):
        done = subprocess.run([self.bidpo, *args], cwd=self.folder, env=ENV, capture_output=True, text=True)
        assert done.returncode == 0, (args, done.stderr)
        return done

    def job(self, name):
        """A command and its outputs, in a folder of its own."""
        up = lambda file: f"../{file}"
        model = ["-m", up("m.gguf")]
        if name == "train":
            args = ["train", *model, "--data", up("p.jsonl"), "-o", "v.gguf", "--layer", "2", "--epochs", "40", "--batch", "4"]
            return Job(name, [*args, "--patience", "0"], ["v.gguf"], ["--resume"])
        if name == "lora":
            args = ["train", *model, "--data", up("p.jsonl"), "-o", "a.gguf", *LORA.split(), "--epochs", "10", "--patience", "0"]
            return Job("train --kind lora", args, ["a.gguf"], ["--resume"])
        if name == "eval":
            args = ["eval", "truthfulqa", *model, "-v", up("v.gguf"), "-d", up("q.csv"), "--limit", "20", "--random", "2"]
            return Job(name, [*args, "--out", "r.jsonl"], ["r.jsonl"], [])
        if name == "extract":
            args = ["extract", *model, "-d", up("prompts.txt"), "--layers", "all", "-o", "e.safetensors"]
            return Job(name, args, ["e.safetensors"], [])
        if name == "sweep":
            args = ["sweep", *model, "-v", up("v.gguf"), "-d", up("q.csv"), "--split", up("split.json")]
            args += ["--scales=-10%,5%,10%", "--limit", "4", "--random", "2", "--same-norm-only", "--out", "."]
            outputs = ["valid.jsonl", "text.jsonl", "system-prompts.jsonl"]
            return Job(name, args, outputs, [])
        raise ValueError(name)


class Job:
    def __init__(self, name, args, outputs, again):
        self.name, self.args, self.outputs, self.again = name, args, outputs, again
        self.folder = name.replace(" ", "")

    def read(self, folder):
        """The bytes of all outputs: of a sweep's also those whose names the chosen setting decides."""
        names = set(self.outputs) | {p.name for p in folder.glob("*.jsonl")}
        return {name: (folder / name).read_bytes() for name in sorted(names) if (folder / name).exists()}


def panicked(text):
    return "panicked at" in text or "RUST_BACKTRACE" in text


def left(folder):
    """Temporary files, which a finished run must have removed."""
    return [p.name for p in folder.iterdir() if p.name.startswith(".bidpo-") or p.name.endswith((".lock", ".ckpt"))]


def kills(bench, job, seconds, rng):
    """Kills a command at random times, lets it go on, and compares the outputs of the end with those of a quiet run."""
    quiet = bench.folder / f"{job.folder}-quiet"
    quiet.mkdir()
    began = time.monotonic()
    done = subprocess.run([bench.bidpo, *job.args], cwd=quiet, env=ENV, capture_output=True, text=True)
    whole = time.monotonic() - began
    if done.returncode != 0:
        raise SystemExit(f"{job.name} fails without a kill: {done.stderr}")
    expected = job.read(quiet)
    rounds, killed, same = 0, {s: 0 for s in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)}, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        folder = bench.folder / f"{job.folder}-{rounds}"
        folder.mkdir()
        rounds += 1
        started = False
        for _ in range(rng.randint(1, 4)):
            args = [*job.args, *(job.again if started and any(p.suffix == ".ckpt" for p in folder.iterdir()) else [])]
            process = subprocess.Popen([bench.bidpo, *args], cwd=folder, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            started = True
            time.sleep(rng.random() * whole * 1.05)
            how = rng.choice(list(killed))
            was_running = process.poll() is None
            if was_running:
                process.send_signal(how)
                killed[how] += 1
            try:
                said = process.communicate(timeout=60)[1].decode(errors="replace")
            except subprocess.TimeoutExpired:
                process.kill()
                FAULTS.add(f"{job.name}: {how.name} did not end it within 60 s")
                break
            if panicked(said) or process.returncode not in (0, 1, 130, 143, -how):
                FAULTS.add(f"{job.name}: {how.name}: exit {process.returncode}: {said[-500:]}")
            if not was_running and process.returncode == 0:
                break
        # What a kill left behind is removed by a later run, once it is too old to be a file that another run just made.
        for path in folder.glob(".bidpo-*"):
            os.utime(path, (0, 0))
        args = [*job.args, *(job.again if any(p.suffix == ".ckpt" for p in folder.iterdir()) else [])]
        done = subprocess.run([bench.bidpo, *args], cwd=folder, env=ENV, capture_output=True, text=True)
        if done.returncode != 0 or panicked(done.stderr):
            FAULTS.add(f"{job.name}: the run after the kills: exit {done.returncode}: {done.stderr[-500:]}")
        elif job.read(folder) != expected:
            FAULTS.add(f"{job.name}: other bytes than without kills, round {rounds} ({folder})")
            continue
        elif left(folder):
            FAULTS.add(f"{job.name}: left behind: {left(folder)}")
        else:
            same += 1
        shutil.rmtree(folder)
    signals = ", ".join(f"{n} {s.name}" for s, n in killed.items())
    row(f"`{job.name}` killed at random times and run again", f"{rounds} rounds, {sum(killed.values())} kills ({signals})",
        f"{same} of {rounds} outputs byte-equal to the quiet run's")


def full_disk(bench, jobs, seconds, rng):
    """No file may grow beyond a limit (RLIMIT_FSIZE), as on a full disk: an error, no half-written output, and the next run
    without the limit ends as always."""
    quiet = {job.name: job.read(bench.folder / f"{job.folder}-quiet") for job in jobs}
    tries, refused, same = 0, 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job = rng.choice(jobs)
        folder = bench.folder / f"disk-{tries}"
        folder.mkdir()
        tries += 1
        largest = max(len(b) for b in quiet[job.name].values())
        limit = rng.choice([0, 1, 100, 4096, rng.randrange(largest + 1), rng.randrange(largest + 1), largest - 1])

        def limited():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        done = subprocess.run([bench.bidpo, *job.args], cwd=folder, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              preexec_fn=limited, restore_signals=False)
        said = done.stderr.decode(errors="replace")
        if done.returncode not in (0, 1) or panicked(said):
            FAULTS.add(f"{job.name} with files of at most {limit} bytes: exit {done.returncode}: {said[-500:]}")
        refused += done.returncode == 1
        for name, whole in job.read(folder).items():
            there = (folder / name).read_bytes()
            lines = name.endswith(".jsonl") and whole.startswith(there)
            if done.returncode == 0 and there != quiet[job.name].get(name) and len(there) > limit:
                FAULTS.add(f"{job.name} with files of at most {limit} bytes: exit 0 and another {name}")
            if not lines and there != quiet[job.name].get(name):
                FAULTS.add(f"{job.name} with files of at most {limit} bytes: a half-written {name}")
        args = [*job.args, *(job.again if any(p.suffix == ".ckpt" for p in folder.iterdir()) else [])]
        done = subprocess.run([bench.bidpo, *args], cwd=folder, env=ENV, capture_output=True, text=True)
        if done.returncode == 0 and job.read(folder) == quiet[job.name]:
            same += 1
        else:
            FAULTS.add(f"{job.name} after a limit of {limit} bytes: exit {done.returncode}: {done.stderr[-500:]}")
        shutil.rmtree(folder)
    row("Disk full: no file beyond a random size", f"{tries} runs, {refused} of them ended with an error",
        f"{same} of {tries} outputs byte-equal after a run with space")


class Server:
    def __init__(self, bench, *more):
        vectors = bench.folder / "vectors"
        vectors.mkdir(exist_ok=True)
        for name in ("v.gguf", "a.gguf"):
            shutil.copy(bench.folder / name, vectors / name)
        args = [bench.bidpo, "serve", "-m", "m.gguf", "--vectors", "vectors", "--port", "0", "--slots", "4", "--ctx", "256"]
        self.process = subprocess.Popen([*args, *more], cwd=bench.folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.port = int(self.process.stdout.readline().decode().rsplit(":", 1)[1])

    def connect(self, timeout=60):
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def ask(self, body, path="/v1/completions", timeout=60):
        """Status and parsed answer of a POST; of a GET without a body. The end of the connection before the answer: None."""
        head = f"{'POST' if body is not None else 'GET'} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        data = b""
        if body is not None:
            data = json.dumps(body).encode()
            head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
        with self.connect(timeout) as stream:
            stream.sendall(head.encode() + b"\r\n" + data)
            answer = b""
            while piece := stream.recv(65536):
                answer += piece
        head, _, text = answer.partition(b"\r\n\r\n")
        if not head:
            return None
        try:
            return int(head.split()[1]), json.loads(text)
        except ValueError:
            return int(head.split()[1]), None

    def memory(self):
        """Resident memory in MiB, and open files."""
        pid = self.process.pid
        with open(f"/proc/{pid}/status") as file:
            kib = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
        return kib / 1024, len(os.listdir(f"/proc/{pid}/fd"))

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        began = time.monotonic()
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = None
        return code, time.monotonic() - began


def requests(rng, n):
    """Requests whose answers do not depend on the time: greedy or with a seed, steered or not."""
    for i in range(n):
        body = {"prompt": f"number {rng.randrange(1000)} is " * rng.randint(1, 6), "max_tokens": rng.randint(1, 40), "seed": i}
        body["temperature"] = rng.choice([0, 0.8])
        if rng.random() < 0.6:
            body["steering"] = [{"vector": "v", "scale": round(rng.uniform(-3, 3), 2)}]
        if rng.random() < 0.25:
            # Few scales, so that some requests share a batch.
            body.setdefault("steering", []).append({"vector": "a", "scale": rng.choice([-1, 0.5, 1])})
        yield body


def text(answer):
    return None if answer is None or answer[0] != 200 else answer[1]["choices"][0]["text"]


def load(bench, seconds, rng, clients=32):
    """Good clients in parallel, slow, half-closed and abusive ones beside them: each answer is that of the request alone."""
    server = Server(bench)
    asked = list(requests(rng, 200))
    alone = [text(server.ask(body)) for body in asked]
    if None in alone:
        FAULTS.add("serve: a request alone is not answered with 200")
    stop, lock = threading.Event(), threading.Lock()
    count = {"right": 0, "wrong": 0, "busy": 0, "lost": 0, "health": 0, "hostile": 0}
    slowest = 0.0

    def note(what, n=1):
        with lock:
            count[what] += n

    def good(seed):
        own = random.Random(seed)
        while not stop.is_set():
            i = own.randrange(len(asked))
            try:
                answer = server.ask(asked[i])
            except OSError:
                answer = None
            if answer is not None and answer[0] in (429, 503):
                note("busy")
                time.sleep(0.05)
            elif answer is None:
                note("lost")
            elif text(answer) == alone[i]:
                note("right")
            else:
                note("wrong")
                FAULTS.add(f"serve: {asked[i]} answered {answer} beside others, {alone[i]!r} alone")

    def hostile(seed):
        own = random.Random(seed)
        body = json.dumps({"prompt": "tea", "max_tokens": 200, "stream": True}).encode()
        post = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        while not stop.is_set():
            kind = own.randrange(8)
            try:
                with server.connect(10) as stream:
                    if kind == 0:  # bytes that are no request
                        stream.sendall(own.randbytes(own.randrange(1, 5000)))
                    elif kind == 1:  # half a head, slowly
                        for byte in b"GET /health HTTP/1.1\r\nhost: loc":
                            stream.sendall(bytes([byte]))
                            time.sleep(0.02)
                    elif kind == 2:  # gone in the middle of an answer
                        stream.sendall(post + body)
                        stream.recv(100)
                    elif kind == 3:  # half-closed
                        stream.sendall(post + body)
                        stream.shutdown(socket.SHUT_WR)
                        while stream.recv(4096):
                            pass
                    elif kind == 4:  # pages that are never read
                        stream.sendall(b"GET /app.js HTTP/1.1\r\nhost: localhost\r\n\r\n" * 50)
                        time.sleep(1)
                    elif kind == 5:  # a body far too large, and one that is not JSON
                        stream.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n{")
                        stream.recv(1000)
                    elif kind == 6:  # a scale that overflows: a vector's is refused, an adapter's makes numbers that are not finite
                        steering = [{"vector": own.choice("va"), "scale": 3e38}]
                        data = json.dumps({"prompt": "tea" * own.randint(1, 60), "max_tokens": 3, "steering": steering}).encode()
                        stream.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
                        stream.recv(1000)
                    else:  # many connections without a word
                        others = [server.connect(10) for _ in range(20)]
                        time.sleep(0.2)
                        for other in others:
                            other.close()
                note("hostile")
            except OSError:
                note("hostile")

    def health():
        nonlocal slowest
        while not stop.is_set():
            began = time.monotonic()
            try:
                answer = server.ask(None, "/health", timeout=30)
            except OSError:
                answer = None
            took = time.monotonic() - began
            slowest = max(slowest, took)
            if answer is None or answer[0] != 200:
                FAULTS.add(f"serve: /health answered {answer} after {took:.1f} s")
            note("health")
            time.sleep(0.5)

    threads = [threading.Thread(target=good, args=(rng.random(),)) for _ in range(clients)]
    threads += [threading.Thread(target=hostile, args=(rng.random(),)) for _ in range(8)]
    threads.append(threading.Thread(target=health))
    for thread in threads:
        thread.start()
    # Buffers and slots have their size after a fifth of the time.
    time.sleep(seconds / 5)
    before, _ = server.memory()
    time.sleep(seconds * 4 / 5)
    stop.set()
    for thread in threads:
        thread.join()
    time.sleep(2)
    after, files = server.memory()
    if after > before * 1.1 + 8:
        FAULTS.add(f"serve: memory grew from {before:.0f} to {after:.0f} MiB")
    if files > 64:
        FAULTS.add(f"serve: {files} files are open after all clients left")
    code, took = server.end()
    if code != 0:
        FAULTS.add(f"serve: SIGTERM: exit {code} after {took:.1f} s")
    if count["lost"]:
        FAULTS.add(f"serve: {count['lost']} connections of good clients were closed without an answer")
    row(f"`serve`: {clients} clients for {seconds:.0f} s, vectors and adapters mixed, 8 hostile ones beside them",
        f"{counted(count['right'] + count['wrong'], 'answer')}, {counted(count['busy'], 'refusal')} (429), {counted(count['hostile'], 'hostile connection')}",
        f"{count['wrong']} differ from the answer alone; memory {before:.1f} to {after:.1f} MiB; slowest `/health` {slowest:.2f} s of {count['health']}")


def serve_kills(bench, seconds, rng):
    """Signals under load: SIGTERM and SIGINT end in good order with every running answer whole, SIGKILL leaves nothing behind."""
    rounds, whole, cut = 0, 0, 0
    asked = list(requests(rng, 24))
    server = Server(bench)
    alone = [text(server.ask(body)) for body in asked]
    server.end()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rounds += 1
        server = Server(bench)
        answers = [None] * len(asked)

        def one(i):
            try:
                answers[i] = server.ask(asked[i])
            except OSError:
                pass

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(asked))]
        for thread in threads:
            thread.start()
        time.sleep(rng.random() * 0.5)
        how = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        code, took = server.end(how)
        for thread in threads:
            thread.join()
        if code != (-signal.SIGKILL if how == signal.SIGKILL else 0):
            FAULTS.add(f"serve: {how.name} under load: exit {code} after {took:.1f} s")
        for i, answer in enumerate(answers):
            if answer is None or answer[0] == 503:
                cut += 1
            elif text(answer) == alone[i]:
                whole += 1
            elif how != signal.SIGKILL:
                FAULTS.add(f"serve: {how.name}: {asked[i]} answered {answer}, {alone[i]!r} alone")
    row("`serve` ended by a random signal under load", f"{rounds} rounds, {counted(whole, 'whole answer')}, {cut} refused or not begun",
        "every answer that came is that of the request alone; exit 0 after SIGTERM and SIGINT")


def write(minutes, version):
    lines = [f"`make torture` of {datetime.date.today()}, {version}, {minutes:g} minutes, seed {ARGS.seed}, {os.cpu_count()} cores: "
             f"{counted(len(FAULTS), 'fault')}.", "", "| what | how often | result |", "| --- | --- | --- |"]
    lines += [f"| {a} | {b} | {c} |" for a, b, c in ROWS]
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"{PAGE} has no lines {BEGIN} and {END}"
    PAGE.write_text(before + BEGIN + "\n\n" + "\n".join(lines) + "\n\n" + END + after)


def main():
    rng = random.Random(ARGS.seed)
    bidpo = str(pathlib.Path(ARGS.bidpo).resolve())
    version = subprocess.run([bidpo, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    seconds = {name: share * ARGS.minutes * 60 for name, share in SHARES.items()}
    folder = pathlib.Path(tempfile.mkdtemp(prefix="bidpo-torture-"))
    bench = Bench(bidpo, folder)
    jobs = {name: bench.job(name) for name in ("train", "lora", "eval", "extract", "sweep")}
    for name, job in jobs.items():
        kills(bench, job, seconds[name], rng)
    full_disk(bench, [jobs[name] for name in ("train", "lora", "eval", "extract")], seconds["disk"], rng)
    serve_kills(bench, seconds["serve"], rng)
    load(bench, seconds["load"], rng)
    if not ARGS.no_page:
        write(ARGS.minutes, version)
    print(f"{counted(len(FAULTS), 'fault')}; the folder {folder} {'is kept' if FAULTS else 'is removed'}")
    if not FAULTS:
        shutil.rmtree(folder)
    return 1 if FAULTS else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bidpo")
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("TORTURE_MINUTES", "60")))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-page", action="store_true", help="do not write docs/reliability.md")
    ARGS = parser.parse_args()
    sys.exit(main())
