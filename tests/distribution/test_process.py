"""The registry as a process: how much memory it takes, and what a full disk does to it."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distribution.client import Client, digest

MIB = 1 << 20
SERVE = """
import sys
from pathlib import Path
from aiohttp import web
from tonnage.distribution.app import create_app
sock = __import__("socket").create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
web.run_app(create_app(Path(sys.argv[1])), sock=sock, print=None, access_log=None)
"""


@pytest.fixture
def process(root: Path) -> Iterator[tuple[Client, int]]:
    with subprocess.Popen([sys.executable, "-c", SERVE, str(root)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield Client(f"127.0.0.1:{int(server.stdout.readline())}"), server.pid
        server.terminate()


def peak(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_memory_does_not_grow_with_the_blob(process: tuple[Client, int]) -> None:
    client, pid = process
    client.blob("a", bytes(8 * MIB))
    before = peak(pid)
    upload = client.start("a")
    assert client("PATCH", upload, (bytes(MIB) for _ in range(400))).status == 202
    assert client("GET", upload).headers["Range"] == f"0-{400 * MIB - 1}"
    assert peak(pid) - before < 24 * MIB


def test_full_disk(process: tuple[Client, int], root: Path) -> None:
    client, pid = process
    assert client("GET", "/v2/").status == 200
    # The kernel refuses to let a file grow, as it does on a full disk.
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (MIB, MIB))
    upload = client.start("a")
    reply = client("PATCH", upload, bytes(4 * MIB))
    assert (reply.status, reply.codes) == (507, ["STORAGE_FULL"])
    assert str(root) not in reply.body.decode()
    assert client("GET", upload).status == 404
    assert list((root / "uploads").iterdir()) == []
    small = client.blob("a", b"small")
    assert client("GET", f"/v2/a/blobs/{small}").body == b"small"
    assert small == digest(b"small")
