"""Real peers: registries and clients of other projects, found on this machine and run on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{root}"}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def peer(name: str) -> str:
    """The path of a peer's program, from `$TONNAGE_PEERS` (a folder) or `$PATH`.

    Skips the test when it is not there, or fails it when `$TONNAGE_REQUIRE_PEERS` says that it must be.
    """
    folder = os.environ.get("TONNAGE_PEERS", "")
    found = shutil.which(name, path=folder) or shutil.which(name)
    if found is None:
        message = f"{name} is not installed; make test-peers installs or builds it"
        if os.environ.get("TONNAGE_REQUIRE_PEERS"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def run_peer(name: str, *arguments: str, cwd: Path | None = None) -> str:
    """Run a peer to its end; returns what it printed, and fails the test with it when it fails."""
    done = subprocess.run([peer(name), *arguments], cwd=cwd, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{name} {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def docker_registry(folder: Path) -> Iterator[str]:
    """Run distribution's registry, as Debian packages it; yields `127.0.0.1:PORT`."""
    program = peer("docker-registry")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "docker-registry.yml"
    config.write_text(CONFIG.format(root=folder / "docker-registry", port=port))
    log = (folder / "docker-registry.log").open("wb")
    with log, subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log) as process:
        try:
            _wait(process, port)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, "docker-registry ended at once; see its log"
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v2/")
            connection.getresponse().read()
            return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    pytest.fail("docker-registry does not answer")
