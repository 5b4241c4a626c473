"""The program: where it is, how it is run, and what is made of its errors."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from typing import Any, Iterable, Mapping, Sequence, Union

#: What an option may be given as: a value, a list for an option that is repeated, True for a flag, None or False for nothing.
Option = Union[str, int, float, bool, None, "os.PathLike[str]", Sequence[Union[str, int, float, "os.PathLike[str]"]]]

#: Lines of stderr that an error keeps.
_KEPT = 200


class BidpoError(RuntimeError):
    """The program failed; the message is the program's.

    Attributes: ``exit_code`` (1 failed, 2 wrong usage), ``stderr`` (the last lines), ``command``.
    """

    def __init__(self, message: str, exit_code: int, stderr: str, command: Sequence[str]) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.stderr = stderr
        self.command = list(command)


class UsageError(BidpoError, ValueError):
    """The program was given an option that it does not take, or a value that is none (exit code 2)."""


def program() -> str:
    """The path of the program: ``$BIDPO_PROGRAM``, or the one installed with this package, or the one in ``PATH``."""
    named = os.environ.get("BIDPO_PROGRAM")
    if named:
        return named
    try:
        files = importlib.metadata.distribution("bidpo").files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    # pip install --target moves what it installs without saying so.
    beside = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bin", "bidpo")
    for path in [*(os.path.normpath(str(file.locate())) for file in files), beside]:
        if path.endswith(os.path.join(os.sep, "bin", "bidpo")) and os.path.isfile(path):
            return path
    found = shutil.which("bidpo")
    if found is None:
        raise FileNotFoundError("the program bidpo is not there: install the wheel, or name the program in BIDPO_PROGRAM")
    return found


def options(given: Mapping[str, Option]) -> list[str]:
    """Command-line options of keyword arguments: ``max_tokens=8`` is ``--max-tokens=8``."""
    out: list[str] = []
    for key, value in given.items():
        name = "--" + key.rstrip("_").replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            out.append(name)
        elif isinstance(value, (str, int, float, os.PathLike)):
            out.append(f"{name}={_text(value)}")
        else:
            out.extend(f"{name}={_text(one)}" for one in value)
    return out


def _text(value: Any) -> str:
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def run(args: Iterable[str], *, quiet: bool = False) -> str:
    """Runs the program and returns what it prints on stdout. Its stderr (progress, warnings) is shown as it comes.

    Ctrl-C is handed on once: the program saves what it has and ends, then KeyboardInterrupt is raised. A second one ends it at once.
    """
    command = [program(), *args]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a Ctrl-C of the terminal reaches it through this process only
    )
    kept: deque[str] = deque(maxlen=_KEPT)
    printed: list[str] = []

    def read_stdout() -> None:
        assert child.stdout is not None
        printed.append(child.stdout.read())

    reader = threading.Thread(target=read_stdout, daemon=True)
    reader.start()

    def follow() -> None:
        assert child.stderr is not None
        for line in child.stderr:
            kept.append(line)
            if not quiet:
                print(line, end="", file=sys.stderr, flush=True)
        child.wait()

    interrupted = False
    try:
        follow()
    except KeyboardInterrupt:
        interrupted = True
        child.send_signal(signal.SIGINT)
        try:
            follow()
        except KeyboardInterrupt:
            child.kill()
            child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise
    reader.join()
    for pipe in (child.stdout, child.stderr):
        assert pipe is not None
        pipe.close()
    if interrupted:
        raise KeyboardInterrupt
    if child.returncode != 0:
        stderr = "".join(kept)
        kind = UsageError if child.returncode == 2 else BidpoError
        raise kind(_message(stderr, child.returncode), child.returncode, stderr, command)
    return "".join(printed)


def _message(stderr: str, code: int) -> str:
    """The program's own message: from its last line that begins with ``bidpo:`` or ``error:`` on."""
    lines = stderr.strip().splitlines()
    for i in range(len(lines) - 1, -1, -1):
        for mark in ("bidpo: ", "error: "):
            if lines[i].startswith(mark):
                return "\n".join([lines[i][len(mark):], *lines[i + 1:]]).strip()
    if code < 0:
        return f"the program was ended by signal {-code}"
    return lines[-1] if lines else f"the program ended with exit code {code} and said nothing"


def run_json(args: Iterable[str], *, quiet: bool = False) -> Any:
    """As :func:`run`, of a command that prints JSON."""
    return json.loads(run([*args, "--json"], quiet=quiet))
