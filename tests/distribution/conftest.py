from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distribution.client import Client
from support.servers import running
from tonnage.distribution.app import create_app

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # aiohttp 3.14 wants `shutdown_timeout` on the runner; `support.servers` still gives it to the site.
    ignored = pytest.mark.filterwarnings("ignore:shutdown_timeout should be set:DeprecationWarning")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(ignored)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    with running(create_app(root)) as host:
        yield Client(host)
