"""Every store passes the same suite."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conformance.store_suite import Store, StoreSuite
from support.peers import docker_registry
from support.servers import running
from tonnage.content.reference import Repository
from tonnage.distribution.app import create_app
from tonnage.stores.layout import LayoutStore
from tonnage.stores.memory import MemoryStore
from tonnage.stores.registry import RegistryStore

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
    def store(self, host: str) -> Iterator[Store]:
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
        with docker_registry(tmp_path_factory.mktemp("distribution")) as host:
            yield host
