"""What a model says in a terminal: text, and nothing that the terminal obeys."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import tonnage as package
from support.gateways import gateway
from tonnage.gateway.engines.scripted import Script, ScriptedEngine
from tonnage.gateway.options import with_engine

# A title, in one piece and split inside the sequence; the same begun by one character (C1); a return; a deletion.
NASTY = [
    "a\x1b]0;title\x07",
    "b\x1b",
    "[31m",
    "c\x9d0;t\x9c",
    "d\re\x7f\x08\x00",
    "f\tg\n\u00e9\u4e2d\U0001f468\u200d\U0001f4bb",
]
SHOWN = "a]0;titleb[31mc0;tdef\tg\n\u00e9\u4e2d\U0001f468\u200d\U0001f4bb\n"


@pytest.fixture
def url() -> Iterator[str]:
    with gateway(with_engine(ScriptedEngine(play=lambda _: Script(pieces=NASTY)))) as address:
        yield address


def command(url: str) -> Sequence[str]:
    return [sys.executable, "-m", "tonnage", "chat", url, "-m", "hello"]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1]), "PYTHONUTF8": "1", **changes}


def in_terminal(command: Sequence[str]) -> str:
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment()) as process:
        os.close(theirs)
        read = b""
        try:
            while data := os.read(ours, 4096):
                read += data
        except OSError:
            pass  # EIO is how Linux says that the other end is closed.
        os.close(ours)
        _, problem = process.communicate(timeout=60)
    assert process.returncode == 0, problem
    return read.decode().replace("\r\n", "\n")


def test_a_terminal_gets_no_control_characters(url: str) -> None:
    assert in_terminal(command(url)) == SHOWN


def test_a_pipe_gets_what_the_model_said(url: str) -> None:
    done = subprocess.run(command(url), capture_output=True, env=environment(), timeout=60, check=True)
    assert done.stdout.decode() == "".join(NASTY) + "\n"


def test_what_the_encoding_has_no_bytes_for_is_replaced(url: str) -> None:
    changed = environment(PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    done = subprocess.run(command(url), capture_output=True, env=changed, timeout=60, check=True)
    assert done.stdout.decode("ascii").endswith("f\tg\n?????\n")
