"""Every store passes the same suite."""

from __future__ import annotations

import http.client
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conformance.store_suite import Store, StoreSuite
from support.servers import running
from tonnage.content.reference import Repository
from tonnage.distribution.app import create_app
from tonnage.stores.layout import LayoutStore
from tonnage.stores.memory import MemoryStore
from tonnage.stores.registry import RegistryStore

CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""
_names = itertools.count()


class TestMemory(StoreSuite):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()


class TestLayout(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return LayoutStore(tmp_path / "layout", create=True)


class RegistrySuite(StoreSuite):
    """A repository of its own for each test, in one registry for the class."""

    @pytest.fixture
    def store(self, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        with closing(RegistryStore(Repository(host, f"models/m{next(_names)}"))) as store:
            yield store


class TestOurRegistry(RegistrySuite):
    @pytest.fixture(scope="class")
    @classmethod
    def host(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        with running(create_app(tmp_path_factory.mktemp("registry"))) as host:
            yield host


@pytest.mark.peers
class TestDistribution(RegistrySuite):
    """The registry that most others are made of: Debian's `docker-registry`."""

    lists_referrers = False

    @pytest.fixture(scope="class")
    @classmethod
    def host(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        program = shutil.which("docker-registry")
        if program is None:
            if os.environ.get("TONNAGE_REQUIRE_PEERS") == "1":
                pytest.fail("docker-registry is not installed, and TONNAGE_REQUIRE_PEERS is 1")
            pytest.skip("docker-registry is not installed")
        folder = tmp_path_factory.mktemp("distribution")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config = folder / "config.yml"
        config.write_text(CONFIG.format(root=folder / "data", port=port))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
        try:
            _until_it_answers(port, process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def _until_it_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        assert process.poll() is None, "docker-registry ended at once"
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            try:
                connection.request("GET", "/v2/")
                connection.getresponse().read()
                return
            except ConnectionRefusedError:
                _wait(process)
    raise AssertionError("docker-registry does not answer")


def _wait(process: subprocess.Popen[bytes]) -> None:
    """A tenth of a second, or until the process ends."""
    try:
        process.wait(0.1)
    except subprocess.TimeoutExpired:
        return
