#!/usr/bin/env python3
"""usage: use.py chat|serve COMMAND...

Uses an installed program as a person does: `chat` talks to COMMAND in a terminal of its own, `serve` asks the server that COMMAND
starts (`--port 0`) for its page and for an answer. For scripts/check_dist.sh.
"""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request

PATIENCE = 120  # seconds


def chat(command):
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(command[0], command)
    shown = b""

    def wait_for(mark):
        nonlocal shown
        end = time.monotonic() + PATIENCE
        while mark not in shown:
            if time.monotonic() > end:
                sys.exit(f"chat: no {mark!r} in {shown!r}")
            if select.select([terminal], [], [], 1)[0]:
                try:
                    shown += os.read(terminal, 4096)
                except OSError:
                    sys.exit(f"chat: it ended with {shown!r}")
        shown = shown[shown.index(mark) + len(mark):]

    prompt = b"\x1b[?2004h"  # a line is being edited
    wait_for(prompt)
    os.write(terminal, b"Hello\r")
    wait_for(prompt)
    os.write(terminal, b"/quit\r")
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            sys.exit(os.waitstatus_to_exitcode(status))
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                os.read(terminal, 4096)
            except OSError:
                pass
    os.kill(child, signal.SIGKILL)
    sys.exit("chat: it does not end")


def serve(command):
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            line = child.stdout.readline()
            found = re.search(r"http://[^\s]+", line)
            if not found:
                sys.exit(f"serve: it said {line!r}")
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            page = opener.open(found[0] + "/", timeout=PATIENCE).read().decode()
            if "<html" not in page:
                sys.exit(f"serve: the page is {page[:200]!r}")
            body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
            request = urllib.request.Request(
                found[0] + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            answer = json.load(opener.open(request, timeout=PATIENCE))
            if answer["usage"]["completion_tokens"] < 1:
                sys.exit(f"serve: the answer is {answer}")
        finally:
            child.terminate()


if __name__ == "__main__":
    ways = {"chat": chat, "serve": serve}
    if len(sys.argv) < 3 or sys.argv[1] not in ways:
        sys.exit(__doc__)
    ways[sys.argv[1]](sys.argv[2:])
