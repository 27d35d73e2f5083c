from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distribution.client import Client
from support.servers import running
from tonnage.distribution.app import create_app


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    with running(create_app(root)) as host:
        yield Client(host)
