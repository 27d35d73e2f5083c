"""The whole road of a model here, with real weights: plan, registry, push, inspect, pull, verify, serve, ask.

    make quickstart                 leaves the API running until Ctrl-C
    make quickstart ARGS=--exit     ends after the answers

Every step prints the command it runs and what that command says. Registry, node cache and model are real; only the
network is this machine's loopback. Everything happens in `.cache/quickstart`, which is emptied first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".cache" / "quickstart"
MODEL = ROOT / ".cache" / "models" / "smollm2"
DOCUMENT = ROOT / "examples" / "harbour-policy.txt"
PORT = 8080
READY_TIMEOUT = 120.0
"""Seconds within which a server must say that it is ready."""
STOP_TIMEOUT = 40.0
"""Seconds that a server gets to finish; a little more than its own grace."""

PLAIN_QUESTION = "What is photosynthesis? Answer in one sentence."
QUESTION = "How many days of annual leave do employees get?"
GROUNDING = "You answer questions about the company policy below. Use only the policy."


class Failed(Exception):
    """A step did not work; the message says which."""


def main() -> int:
    """Run every step; 0 when all of them worked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--exit", action="store_true", help="end after the answers instead of serving on")
    options = parser.parse_args()
    # Both, because a shell starts background jobs with SIGINT ignored.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.default_int_handler)
    try:
        with ExitStack() as servers:
            run(servers, stay=not options.exit)
    except KeyboardInterrupt:
        print("\nStopped.")
    except Failed as error:
        print(f"\nquickstart: {error}", file=sys.stderr)
        return 1
    return 0


def run(servers: ExitStack, *, stay: bool) -> None:
    """The steps, in order; `servers` stops what they start."""
    start = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    model = shown(MODEL)

    step("What would be packed: which files, in which layers")
    tonnage("pack", model, "--plan")

    step("A registry on this machine")
    root = shown(WORK / "registry")
    registry = servers.enter_context(server("registry", "serve", "--root", root, "--listen", "127.0.0.1:0", "--json"))
    target = registry["url"].removeprefix("http://") + "/demo/smollm2:v1"

    step("Push: straight from the model's folder, with nothing staged on disk")
    tonnage("push", model, target)

    step("Inspect: what the registry holds, without fetching the weights")
    tonnage("inspect", target)

    step("Serve: pull into an empty node cache, every byte verified, and start the engine")
    cache, listen = shown(WORK / "node"), f"127.0.0.1:{free_port(PORT)}"
    api = servers.enter_context(server("serve", target, "--cache", cache, "--listen", listen, "--json"))

    step("Ask it something")
    show_answer(api, PLAIN_QUESTION)

    step(f"Ask it about a document ({shown(DOCUMENT)})")
    show_answer(api, QUESTION, system=f"{GROUNDING}\n\n{DOCUMENT.read_text()}")

    print(f"\nAll of it took {time.monotonic() - start:.1f} s.\n")
    if stay:
        print(how_to_call(api))
        print("\nThe API runs until Ctrl-C.", flush=True)
        while True:
            signal.pause()


def step(title: str) -> None:
    """Announce a step."""
    print(f"\n== {title}", flush=True)


def tonnage(*arguments: str) -> None:
    """Run a command, with its output where the user sees it, and say how long it took."""
    print(f"$ {shlex.join(('tonnage', *arguments))}", flush=True)
    start = time.monotonic()
    status = subprocess.run(command(arguments), cwd=ROOT, check=False).returncode
    if status:
        raise Failed(f"tonnage {arguments[0]} ended with exit code {status}")
    took(start)


@contextmanager
def server(*arguments: str) -> Iterator[dict[str, Any]]:
    """Run a server until the block ends; gives the line of JSON that it prints when it is ready."""
    print(f"$ {shlex.join(('tonnage', *arguments))} &", flush=True)
    start = time.monotonic()
    # A session of its own: Ctrl-C reaches only this script, which then stops the servers in order.
    process = subprocess.Popen(command(arguments), cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    try:
        line = first_line(process)
        if not line:
            raise Failed(
                f"{shlex.join(('tonnage', *arguments))} ended, or was not ready in {READY_TIMEOUT:.0f} seconds"
            )
        print(line.decode().rstrip())
        took(start)
        yield json.loads(line)
    finally:
        stop(process)


def command(arguments: tuple[str, ...]) -> list[str]:
    """The command line of this environment's own `tonnage`."""
    return [sys.executable, "-m", "tonnage", *arguments]


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    """The first line of output, or nothing when the process ends or takes too long."""
    assert process.stdout
    ready, _, _ = select.select([process.stdout], [], [], READY_TIMEOUT)
    return process.stdout.readline() if ready else b""


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server as an orchestrator would: SIGTERM, patience, SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        # A second Ctrl-C means: now.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        assert process.stdout
        process.stdout.close()


def took(start: float) -> None:
    """Say how long a step took."""
    print(f"({time.monotonic() - start:.1f} s)", flush=True)


def show_answer(api: dict[str, Any], question: str, *, system: str = "") -> None:
    """Ask, and print question, answer and time."""
    start = time.monotonic()
    print(f"> {question}", flush=True)
    print(ask(api, question, system=system))
    took(start)


def ask(api: dict[str, Any], question: str, *, system: str = "") -> str:
    """One question through the API, answered the same way every time."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    body = {"model": api["model"], "messages": messages, "temperature": 0, "max_tokens": 80}
    request = urllib.request.Request(
        f"{api['url']}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=READY_TIMEOUT) as response:
            answer = json.load(response)
    except OSError as error:
        raise Failed(f"the API did not answer: {error}") from error
    return str(answer["choices"][0]["message"]["content"]).strip()


def how_to_call(api: dict[str, Any]) -> str:
    """The same API, from a shell and from OpenAI's SDK."""
    messages = json.dumps([{"role": "user", "content": PLAIN_QUESTION}])
    body = f'{{"model": "{api["model"]}", "messages": {messages}}}'
    return f"""Call it from a shell:

  curl {api["url"]}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d {shlex.quote(body)}

or with OpenAI's SDK (pip install openai):

  from openai import OpenAI
  client = OpenAI(base_url="{api["url"]}/v1", api_key="unused")
  print(client.chat.completions.create(model="{api["model"]}", messages={messages}).choices[0].message.content)"""


def free_port(wanted: int) -> int:
    """`wanted`, or 0, which lets the system choose, if somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


def shown(path: Path) -> str:
    """A path as the user would type it, in the repository."""
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())
