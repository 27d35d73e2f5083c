"""Runs a gateway as its users do, on a free loopback port, in a thread of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from support.servers import running
from tonnage.gateway.server import Option, Server


@contextmanager
def gateway(*options: Option) -> Iterator[str]:
    """Serve while the block runs; yields `http://127.0.0.1:PORT`."""
    with running(Server(*options).app()) as host:
        yield f"http://{host}"
